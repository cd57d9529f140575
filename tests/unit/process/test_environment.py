"""Numbers in variables are numbers, or the user's mistake in one line."""

from __future__ import annotations

import pytest

from horovod_yolo.core.errors import UserError
from horovod_yolo.process.environment import check_numbers, number


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("HOROVOD_YOLO_HEARTBEAT_SECONDS", "60s"),
        ("HOROVOD_STALL_SHUTDOWN_TIME_SECONDS", "10m"),
        ("HOROVOD_STALL_CHECK_TIME_SECONDS", "ten"),
        ("HOROVOD_GLOO_TIMEOUT_SECONDS", "-1"),
        ("HOROVOD_CYCLE_TIME", "5ms"),
        ("HOROVOD_FUSION_THRESHOLD", "64MB"),
        ("HOROVOD_CACHE_CAPACITY", "nan"),
        ("HOROVOD_NUM_NCCL_STREAMS", "inf"),
    ],
)
def test_a_number_with_a_unit_is_named(name: str, value: str) -> None:
    with pytest.raises(UserError, match=f"^{name}: '{value}' is no number. write it without a unit"):
        check_numbers({"PATH": "/bin", name: value})


def test_numbers_and_what_is_none() -> None:
    check_numbers(
        {"HOROVOD_CYCLE_TIME": "2.5", "HOROVOD_YOLO_HEARTBEAT_SECONDS": " 0 ", "HOROVOD_TIMELINE": "t.json"}
    )
    check_numbers(
        {"HOROVOD_CYCLE_TIME": "", "RUN_TIME": "60s", "HOROVOD_HOSTNAME": "h", "HOROVOD_CONTROLLER": "gloo"}
    )
    assert number("X", 7, {}) == number("X", 7, {"X": " "}) == 7 and number("X", 7, {"X": "1e3"}) == 1000
