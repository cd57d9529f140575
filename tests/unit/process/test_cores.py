"""Threads of a rank: its share of the cores and of the quota, whoever else has them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from horovod_yolo.process import cores
from horovod_yolo.process.cores import Cores, own_cores, share, threads


def some(first: int, count: int, quota: float = float("inf"), group: str = "") -> Cores:
    return Cores(frozenset(range(first, first + count)), quota, group)


@pytest.mark.parametrize(
    ("mine", "neighbours", "expected"),
    [
        (some(0, 64), [some(0, 64)], 64),
        (some(0, 64), [some(0, 64)] * 4, 16),
        (some(0, 8), [some(0, 8)] * 4, 2),  # a cpuset that all share
        (some(8, 8), [some(8 * i, 8) for i in range(4)], 8),  # bound by the launcher to cores of their own
        (some(0, 16), [some(0, 16)] * 2 + [some(16, 16)] * 2, 8),  # two ranks a socket
        (some(0, 4), [some(0, 4)] * 8, 1),
        (some(0, 64, 4.0, "pod"), [some(0, 64, 4.0, "pod")] * 4, 1),
        (some(0, 64, 4.0, "pod"), [some(0, 64, 4.0, "pod")], 4),
        (some(0, 64, 6.0, "a"), [some(0, 64, 6.0, "a"), some(0, 64, 6.0, "b")], 6),  # a container each
        (some(0, 64, 0.5, "pod"), [some(0, 64, 0.5, "pod")], 1),
        (some(0, 10), [some(0, 10)] * 3, 3),
    ],
)
def test_cores_and_quotas_are_divided_among_those_that_have_them(
    mine: Cores, neighbours: list[Cores], expected: int
) -> None:
    assert threads(mine, neighbours) == expected


def test_a_share_may_be_less_than_a_core() -> None:
    mine = some(0, 2, 0.5, "slow")
    assert share(mine, [mine, some(0, 2)]) == 0.5
    assert share(some(0, 1), [some(0, 1)] * 4) == 0.25


def test_a_quota_is_the_smallest_on_the_way_to_the_root(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cores, "_V2", tmp_path / "v2")
    monkeypatch.setattr(cores, "_V1", tmp_path / "v1")
    (tmp_path / "v2/job/step").mkdir(parents=True)
    (tmp_path / "v2/job/step/cpu.max").write_text("max 100000\n")
    (tmp_path / "v2/job/cpu.max").write_text("250000 100000\n")
    (tmp_path / "v1/slice").mkdir(parents=True)
    (tmp_path / "v1/slice/cpu.cfs_quota_us").write_text("150000\n")
    (tmp_path / "v1/slice/cpu.cfs_period_us").write_text("100000\n")
    (tmp_path / "v1/free").mkdir()
    (tmp_path / "v1/free/cpu.cfs_quota_us").write_text("-1\n")
    (tmp_path / "v1/free/cpu.cfs_period_us").write_text("100000\n")
    lines = {
        "0::/job/step": 2.5,
        "4:cpu,cpuacct:/slice": 1.5,
        "4:cpuacct,cpu:/free": float("inf"),
        "0::/": float("inf"),
    }
    read = Path.read_text
    for line, quota in lines.items():
        monkeypatch.setattr(
            Path, "read_text", lambda p, line=line: line + "\n" if str(p) == "/proc/self/cgroup" else read(p)
        )
        assert own_cores().quota == quota


def test_what_this_process_has() -> None:
    assert own_cores().cores == os.sched_getaffinity(0)
