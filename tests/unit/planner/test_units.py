"""Quantities with units, and the one line that a wrong one gets."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from horovod_yolo.core.errors import UserError
from horovod_yolo.planner.units import bandwidth, data_size, duration


@pytest.mark.parametrize(
    ("text", "bytes_per_s"),
    [
        ("200Gbit", 25e9),
        ("200gbit/s", 25e9),
        ("200 Gbps", 25e9),
        ("200Gb/s", 25e9),
        ("25GB", 25e9),
        ("25GB/s", 25e9),
        ("1MiB/s", 2**20),
        ("1.5Mbits", 187_500),
        ("8bit", 1),
        (".5kB", 500),
        ("1e3kbit", 125_000),
    ],
)
def test_bandwidth(text: str, bytes_per_s: float) -> None:
    assert bandwidth(text, "--bandwidth") == pytest.approx(bytes_per_s)


@pytest.mark.parametrize(
    ("text", "seconds"), [("5us", 5e-6), ("5 µs", 5e-6), ("2ms", 2e-3), ("0s", 0), ("1ns", 1e-9)]
)
def test_duration(text: str, seconds: float) -> None:
    assert duration(text, "--latency") == pytest.approx(seconds)


def test_data_size() -> None:
    assert data_size("160kB", "--image-size") == 160e3
    assert data_size("8Mbit", "--image-size") == 1e6


@pytest.mark.parametrize(
    "text", ["", "200", "Gbit", "200 Gbyte", "-5Gbit", "200Gbit/min", "0Gbit", "1e999GB", "5us", "٢GB"]
)
def test_a_wrong_bandwidth_is_one_line(text: str) -> None:
    with pytest.raises(UserError, match=r"^--bandwidth .*(write 200Gbit|more than 0)") as caught:
        bandwidth(text, "--bandwidth")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["5", "us", "-5us", "5 minutes", "5Gbit", "nan s"])
def test_a_wrong_duration_is_one_line(text: str) -> None:
    with pytest.raises(UserError, match=r"^--latency .*write 5us, 2ms or 0.1s"):
        duration(text, "--latency")


@given(st.text())
def test_no_text_is_another_error(text: str) -> None:
    for read in (bandwidth, data_size, duration):
        try:
            assert read(text, "--flag") >= 0
        except UserError as error:
            assert str(error).startswith("--flag ")
