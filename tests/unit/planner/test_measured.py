"""Files of `bench`: what is written is read again, and anything else is one line."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from horovod_yolo.core.errors import UserError
from horovod_yolo.planner.measured import CommFile, StepFile, as_json, read, write
from horovod_yolo.planner.timeline import Compute, Group

COMM = CommFile("cpu", 2, 2, "torch", ((256.0, 0.001), (1e6, 0.1)), {"host": "a"})
STEP = StepFile(
    cfg="yolov5n",
    imgsz=64,
    images=64,
    precision="fp32",
    device="cpu",
    ranks=2,
    hosts=2,
    compute=Compute(0.2, 0.4, 0.05),
    step_s=0.8,
    groups=(Group(4e6, 0.5), Group(3e6, 1.0)),
    small_sums=1,
    peak_memory_bytes=5e8,
    loader_images_per_s=20.0,
    comm=COMM,
)


@pytest.mark.parametrize("found", [COMM, STEP, replace(COMM, small_sum_s=2e-5)])
def test_what_is_written_is_read(found: Any, tmp_path: Path) -> None:
    write(found, tmp_path / "a.json")
    assert read(tmp_path / "a.json") == found


def test_small_sums_were_not_always_measured(tmp_path: Path) -> None:
    content = json.loads(as_json(replace(COMM, small_sum_s=2e-5)))
    del content["small_sum_s"]
    (tmp_path / "a.json").write_text(json.dumps(content))
    assert read(tmp_path / "a.json") == COMM
    assert COMM.small_sum_over(8) is None
    assert replace(COMM, small_sum_s=2e-5).small_sum_over(8) == pytest.approx(6e-5)


def changed(**values: Any) -> str:
    return json.dumps({**json.loads(as_json(STEP)), **values})


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "it is no JSON"),
        ("[" * 100_000, "it is no JSON"),
        ("[1]", "it says no kind"),
        ('{"kind": "comms"}', "it says no kind"),
        ('{"kind": "comm", "format": 2}', "it has format 2, known is 1"),
        ('{"kind": "comm", "format": 1}', "'allreduce' is missing"),
        (changed(compute={"forward_s": 1}), "'backward_s' is missing"),
        (changed(step_s=-1), "-1 is not above 0"),
        (changed(step_s="soon"), "could not convert string to float"),
        (changed(images=1.5), "1.5 is no count"),
        (changed(groups=[{"size": 1, "ready": 2}]), "2 is no share"),
        (changed(groups=3), "not iterable"),
        (changed(comm={**json.loads(as_json(COMM)), "allreduce": [[1, 1]]}), "two ranks and two sizes"),
    ],
)
def test_what_is_no_file_of_bench_is_one_line(text: str, why: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(UserError, match="this is no file of horovod-yolo bench") as caught:
        read(tmp_path / "a.json")
    assert why in str(caught.value) and "\n" not in str(caught.value)


def test_what_cannot_be_read_or_written_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.json: cannot be read"):
        read(tmp_path / "none.json")
    with pytest.raises(UserError, match="cannot be written"):
        write(COMM, tmp_path / "none" / "a.json")
