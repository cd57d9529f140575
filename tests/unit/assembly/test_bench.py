"""Measurements for the planner, on ranks in one process and by the command."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from horovod_yolo import cli
from horovod_yolo.assembly.bench import CommOptions, StepOptions, bench_comm, bench_step
from horovod_yolo.core.errors import UserError
from horovod_yolo.distributed.communicator import Communicator
from horovod_yolo.distributed.local import LocalCommunicator
from horovod_yolo.planner.comm import sizes_up_to
from horovod_yolo.planner.measured import CommFile, StepFile
from horovod_yolo.planner.workload import workload
from tests.helpers.world import run_world

SETTINGS = {"cfg": "yolov5n", "imgsz": 64, "batch_size": 4, "fusion_mb": 2.0, "device": "cpu"}


def test_sums_are_measured_up_to_the_largest_the_same_on_all_ranks() -> None:
    def job(comm: Communicator) -> CommFile:
        return bench_comm(CommOptions(device="cpu", max_mb=0.25, seconds=60.0), comm)

    first, *others = run_world(3, job)
    sizes = [size for size, _ in first.allreduce]
    assert sizes == sizes_up_to(2**18) and sizes[-1] == 2**18
    assert all(other.allreduce == first.allreduce for other in others)
    assert first.ranks == 3 and first.link.latency_s > 0


def test_a_slow_network_ends_it_early() -> None:
    def job(comm: Communicator) -> CommFile:
        return bench_comm(CommOptions(device="cpu", max_mb=64.0, seconds=1e-9), comm)

    found, _ = run_world(2, job)
    assert 3 <= len(found.allreduce) < len(sizes_up_to(2**26))


def test_one_rank_has_no_sums() -> None:
    with pytest.raises(UserError, match="bench comm measures sums over ranks, and there is one"):
        bench_comm(CommOptions(device="cpu"), LocalCommunicator())


@pytest.mark.parametrize("name", ["yolov5n", "yolo11n"])
def test_a_step_is_measured_in_parts_with_its_groups(name: str) -> None:
    def job(comm: Communicator) -> StepFile:
        return bench_step(StepOptions(settings={**SETTINGS, "cfg": name}, steps=1, seconds=0.2), comm)

    found, other = run_world(2, job)
    assert found == other
    counted = workload(name, 80, 64, 2.0)
    assert [group.size for group in found.groups] == [group.size for group in counted.groups]
    ready = [group.ready for group in found.groups]
    assert ready == sorted(ready) and 0 < ready[0] < ready[-1] <= 1
    assert found.images == 2 and found.ranks == 2 and found.small_sums == counted.small_sums(False)
    assert found.step_s > 0 and found.compute.step_s > 0 and found.peak_memory_bytes > 2**20
    assert found.comm is not None and len(found.comm.allreduce) >= 3


def test_an_unequal_share_is_refused() -> None:
    def job(comm: Communicator) -> str:
        with pytest.raises(UserError, match="--batch-size 5 is no multiple of the 2 ranks") as caught:
            bench_step(StepOptions(settings={**SETTINGS, "batch_size": 5}), comm)
        return str(caught.value)

    assert len(set(run_world(2, job))) == 1


def test_the_command_writes_what_plan_reads(
    digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "step.json"
    threads = torch.get_num_threads()
    words = f"bench step --cfg yolo11n --img 64 --batch 64 --steps 1 --device cpu --data {digits} --out {out}"
    assert cli.main(words.split()) == 0
    torch.set_num_threads(threads)
    shown = capsys.readouterr().out
    assert "loader " in shown and f"written to {out}" in shown
    assert json.loads(out.read_text())["ranks"] == 1
    words = f"plan --cfg yolo11n --img 64 --batch 64 --images 100 --epochs 1 --from {out}"
    assert cli.main(words.split()) == 0
    shown = capsys.readouterr().out
    assert "(measured on cpu)" in shown and "efficiency          100.0% (measured)" in shown


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("bench", "usage: horovod-yolo bench {comm,step}"),
        ("bench stepp", "unknown bench 'stepp'. did you mean step?"),
        ("bench comm --device cpu", "bench comm measures sums over ranks, and there is one. start it with"),
        ("bench comm --max-mb nan", "--max-mb nan. give 0.01 or more"),
        ("bench step --cfg yolov5n --steps 0", "--steps 0. give 1 or more"),
        ("bench step --cfg yolov5n --out none/a.json", "none: there is no such folder. make it first"),
        ("bench step --cfg yolov5n --img 32 --device cpu", "--imgsz 32 is too small: the coarsest map"),
        ("bench step --cfg yolov5q --device cpu", "--cfg: unknown model 'yolov5q'"),
    ],
)
def test_mistakes_are_one_line(words: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(words.split()) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {message}")
