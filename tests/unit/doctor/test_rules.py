"""Each rule: one change to a healthy cluster gives one finding on that host, and none gives none."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from horovod_yolo.doctor.collect import Report
from horovod_yolo.doctor.findings import Finding, merged, size
from horovod_yolo.doctor.rules import findings
from horovod_yolo.doctor.software_rules import notes
from horovod_yolo.launch.transport import WITHOUT_GLOO
from tests.unit.doctor.hosts import GPU, change, cluster, report, with_gpus


def kinds(reports: list[Report]) -> list[tuple[tuple[str, ...], str]]:
    return [(finding.hosts, finding.kind) for finding in findings(reports)]


@pytest.mark.parametrize("count", [1, 2, 4, 64])
def test_nothing_is_said_of_healthy_hosts(count: int) -> None:
    assert findings(cluster(count)) == []
    assert findings(with_gpus(cluster(count))) == []


def test_no_data_was_asked_for() -> None:
    reports = cluster()
    for one in reports:
        del one.facts["data"]  # type: ignore[attr-defined]
    assert findings(reports) == []


SPACE = {"path": "runs/train", "device": 1, "total": 10**12, "files": 10**6, "writable": True}
CHANGES: list[tuple[str, Any, str, str]] = [
    ("python.folder", False, "folder", "the folder /job is not there"),
    ("python.version", "3.12.1", "python", "Python 3.12 where 3 hosts have 3.11"),
    ("packages.torch", None, "torch-missing", "torch is not installed"),
    ("packages.torch.version", "2.12.0", "torch", "torch 2.12.0 where 3 hosts have 2.13.0"),
    (
        "packages.torchvision",
        {"version": "0.29.1", "built_for": "2.14.1"},
        "torchvision",
        "torchvision 0.29.1 is for torch 2.14.1, and 2.13.0 is installed",
    ),
    ("packages.horovod", None, "horovod-missing", "horovod is not installed"),
    ("packages.horovod.built_for", "2.12.0", "horovod-torch", "built for torch 2.12.0, and 2.13.0 is"),
    ("packages.horovod.built_for", None, "horovod-missing", "not built for torch"),
    ("packages.horovod.extension", False, "horovod-missing", "not built for torch and this Python"),
    ("packages.horovod.version", "0.28.0", "horovod", "Horovod 0.28.0 where 3 hosts have 0.28.1"),
    ("packages.horovod.backends", ["Gloo"], "horovod", "Horovod has Gloo where 3 hosts have MPI + Gloo"),
    ("packages.horovod_yolo", None, "horovod_yolo-missing", "horovod_yolo is not installed"),
    ("packages.horovod_yolo.version", "0.0.9", "code", "0.0.9 (abcdef012345) where 3 hosts have 0.1.0"),
    ("packages.horovod_yolo.digest", "fedcba543210", "code", "0.1.0 (fedcba543210) where"),
    ("packages.others.numpy", "1.26.4", "packages", "numpy is 1.26.4 where 3 hosts have 2.2.6"),
    ("packages.others.pillow", None, "packages", "pillow is None where"),
    ("gpus.error", "Driver/library version mismatch", "gpu", "nvidia-smi fails (Driver/library"),
    ("gpus.infiniband", ["mlx5_0 ACTIVE"], "memlock", "locked memory is limited to 8.4 MB"),
    ("limits.nofile", [256, 256], "nofile", "256 open files are allowed, a rank may need 272"),
    ("limits.shm", {"total": 64 << 20}, "shm", "/dev/shm has 67 MB"),
    ("limits.shm", None, "shm", "/dev/shm is not there"),
    ("disks.run", {**SPACE, "free": 12e6}, "disk", "12 MB free for runs/train"),
    ("disks.run", {**SPACE, "free": 0}, "disk", "0 B free for runs/train"),
    ("disks.run", {**SPACE, "free": 1e12, "files": 0}, "disk", "1.0 TB free and for 0 files"),
    ("disks.run", {**SPACE, "free": 1e12, "writable": False}, "disk", "runs/train cannot be written to"),
    ("disks.tmp", None, "disk", "tmp cannot be written to"),
    ("network.own_address", None, "own-name", "its own name host3 has no address there"),
    ("network.own_address", "127.0.1.1", "own-name", "its own name host3 is 127.0.1.1 there"),
    ("data", {"error": "d.yaml: cannot be read"}, "data-missing", "d.yaml: cannot be read"),
    ("data", {"fault": "ImportError: cv2"}, "data-missing", "could not be looked at (ImportError: cv2)"),
    ("data.splits.val.images", 6, "data-differs", "val: 6 images where 3 hosts have 7"),
    ("data.splits.train.key", "cc", "data-differs", "train: 28 images, of other names or sizes where"),
]


def test_a_torchvision_that_fits_and_is_not_imported() -> None:
    """As one for CUDA beside a torch for CPUs."""
    reports, why = cluster(), "RuntimeError: operator torchvision::nms does not exist"
    for one in reports:
        change(one, "packages.torchvision", {"version": "0.28.0", "built_for": "2.13.0"})
        change(one, "imports.torchvision", "")
    assert findings(reports) == []
    change(reports[2], "imports.torchvision", why)
    (finding,) = findings(reports)
    assert (finding.hosts, finding.kind, finding.blocks) == (("host3",), "torchvision", False)
    assert finding.what == f"torchvision 0.28.0 cannot be imported ({why})"
    assert "uninstall it" in finding.fix and "\n" not in str(finding)


@pytest.mark.parametrize(("path", "value", "kind", "what"), CHANGES)
def test_one_change(path: str, value: Any, kind: str, what: str) -> None:
    reports = cluster()
    change(reports[2], path, value)
    (finding,) = findings(reports)
    assert (finding.hosts, finding.kind) == (("host3",), kind)
    assert what in finding.what
    assert len(finding.fix) > 10 and "\n" not in str(finding)


def test_jobs_over_torch_need_no_horovod_but_one_folder_for_runs() -> None:
    reports = cluster()
    change(reports[0], "packages.horovod", None)
    change(reports[1], "network.own_address", "127.0.1.1")
    assert findings(reports, over_torch=True) == []
    change(reports[2], "disks.run.identity", "8 1000")
    (finding,) = findings(reports, over_torch=True)
    assert (finding.kind, finding.blocks) == ("run-folder", False) and len(finding.hosts) == 4
    assert "run-folder" not in [one.kind for one in findings(reports)]


@pytest.mark.parametrize(
    ("path", "value", "kind", "what"),
    [
        ("gpus.gpus", [], "gpu", "no GPU, and other hosts have some"),
        ("gpus.gpus", [{**GPU, "driver": "570.2"}] * 4, "driver", "NVIDIA driver 570.2 where"),
        ("gpus.gpus", [GPU] * 2, "slots", "4 slots for 2 GPUs"),
        ("packages.torch.cuda", None, "cuda", "torch is built without CUDA"),
    ],
)
def test_one_change_to_hosts_with_gpus(path: str, value: Any, kind: str, what: str) -> None:
    reports = with_gpus(cluster())
    reports[2] = dataclasses.replace(change(reports[2], path, value), slots=4)
    (finding,) = findings(reports)
    assert (finding.hosts, finding.kind) == (("host3",), kind) and what in finding.what


def test_gpus_without_nccl() -> None:
    reports = with_gpus(cluster())
    for one in reports:
        change(one, "packages.horovod.backends", ["Gloo"])
    assert kinds(reports) == [(("host1", "host2", "host3", "host4"), "nccl")]


def test_what_horovod_cannot_do_is_a_note() -> None:
    reports = cluster()
    assert not list(notes(reports))
    for one in reports:
        change(one, "packages.horovod.backends", ["MPI"])  # as conda-forge builds it
    assert not kinds(reports)
    assert list(notes(reports)) == [WITHOUT_GLOO]
    change(reports[0], "packages.horovod.backends", ["MPI", "Gloo"])
    assert kinds(reports) and not list(notes(reports))


def test_unlike_processors_are_a_note() -> None:
    reports = cluster()
    change(reports[3], "processor.instructions", "avx2")
    assert not kinds(reports)
    (said,) = notes(reports)
    assert "Some CPU (avx512_vnni) on host1, host2, host3; Some CPU (avx2) on host4" in said
    assert "--portable-bits" in said


def test_hosts_that_cannot_compile_are_a_note() -> None:
    """A CPU needs a C++ compiler, a GPU triton and a C compiler."""
    reports = cluster()
    change(reports[1], "compilers.cxx", False)
    change(reports[2], "compilers.cc", False)
    with_gpus(reports[3:])
    change(reports[3], "compilers.cxx", False)
    assert [note.partition(";")[0] for note in notes(reports)] == [
        "train.py --compile needs g++ on host2",
        "train.py --compile needs the package triton on host4",
    ]
    change(reports[3], "compilers.triton", "3.4.0")
    change(reports[1], "compilers.headers", False)
    assert [note.partition(";")[0] for note in notes(reports)] == [
        "train.py --compile needs g++ and Python.h on host2",
    ]


FAILED: list[tuple[dict[str, Any], str, str]] = [
    ({"code": 255, "errors": "root@host3: Permission denied (publickey)."}, "ssh-key", "refuses the key"),
    ({"code": 255, "errors": "Host key verification failed."}, "host-key", "unknown here"),
    ({"code": 255, "errors": "@ IDENTIFICATION HAS CHANGED!\nfoo"}, "host-key", "another than before"),
    (
        {"code": 255, "errors": "ssh: Could not resolve hostname host3: x"},
        "host-name",
        "has no address here",
    ),
    ({"code": 255, "errors": "connect to host host3 port 22: No route to host"}, "host-down", "No route"),
    ({"code": 255, "errors": ""}, "host-down", "does not get there"),
    ({"code": 127, "errors": "bash: /v/bin/python: No such file"}, "python-missing", "/v/bin/python"),
    ({"code": 126, "errors": "bash: /v/bin/python: Permission denied"}, "python-missing", "is not there"),
    (
        {"code": 1, "errors": "Traceback\nSyntaxError: x"},
        "no-answer",
        "after: nothing (SyntaxError",
    ),
    ({"code": -9, "timed_out": True}, "no-answer", "it got as far as: nothing"),
]


@pytest.mark.parametrize(("fields", "kind", "what"), FAILED)
def test_hosts_that_do_not_answer(fields: dict[str, Any], kind: str, what: str) -> None:
    reports = cluster()
    reports[2] = report("host3", facts={}, clock=None, **fields)
    (finding,) = findings(reports)
    assert (finding.hosts, finding.kind) == (("host3",), kind)
    assert what in finding.what and finding.blocks


def test_a_host_that_hangs_says_where() -> None:
    facts = {name: report().facts[name] for name in ("hello", "python", "network")}
    (finding,) = findings([report("host1", facts=facts, timed_out=True, code=-9)])
    assert "as far as: hello, python, network" in finding.what


def test_torch_alone_is_blamed_where_horovod_fits_the_others() -> None:
    reports = cluster()
    change(reports[1], "packages.torch.version", "2.12.0")
    assert kinds(reports) == [(("host2",), "torch")]
    change(reports[1], "packages.horovod.built_for", "2.12.0")  # fits its own torch: still only torch is odd
    assert kinds(reports) == [(("host2",), "torch")]
    change(reports[1], "packages.horovod.built_for", "2.11.0")
    assert kinds(reports) == [(("host2",), "torch"), (("host2",), "horovod-torch")]


def test_a_single_host_may_call_itself_a_loopback_address() -> None:
    assert findings([change(report(), "network.own_address", "127.0.1.1")]) == []


def test_of_two_hosts_the_first_is_the_measure() -> None:
    reports = cluster(2)
    change(reports[1], "packages.torch.version", "2.12.0")
    change(reports[1], "packages.horovod.built_for", "2.12.0")
    (finding,) = findings(reports)
    assert finding.hosts == ("host2",) and "where host1 has 2.13.0" in finding.what


def test_one_full_disk_is_one_finding() -> None:
    one = report()
    for what in ("run", "cache", "tmp"):
        change(one, f"disks.{what}.free", 5e6)
    (finding,) = findings([one])
    assert finding.what == "5.0 MB free for runs/train and /cache and /tmp"
    change(one, "disks.tmp.device", 2)
    assert len(findings([one])) == 2


def test_more_ranks_need_more_files() -> None:
    reports = [dataclasses.replace(one, slots=64) for one in cluster()]
    assert kinds(reports) == [(("host1", "host2", "host3", "host4"), "nofile")]


@pytest.mark.parametrize("off", [-3600.0, -60.0, 60.0, 3600.0])
def test_clocks(off: float) -> None:
    reports = cluster()
    reports[2] = dataclasses.replace(reports[2], clock=(off - 0.5, off + 1.0))
    (finding,) = findings(reports)
    assert (finding.hosts, finding.kind) == (("host3",), "clock")
    assert ("ahead" if off > 0 else "behind") in finding.what
    # This host may be the wrong one.
    reports = [dataclasses.replace(one, clock=(off - 0.5, off + 1.0)) for one in cluster()]
    reports[0] = report("host1")
    assert kinds(reports) == [(("host1",), "clock")]


@given(st.lists(st.tuples(st.floats(0, 30), st.floats(0, 30)), min_size=1, max_size=8))
def test_slow_answers_are_no_wrong_clocks(delays: list[tuple[float, float]]) -> None:
    """Whatever time the question and the answer took, clocks that agree are not blamed."""
    reports = [
        dataclasses.replace(report(f"host{i}"), clock=(-back, there))
        for i, (there, back) in enumerate(delays, 1)
    ]
    assert findings(reports) == []


def test_the_same_on_several_hosts_is_one_finding() -> None:
    found = [Finding((host,), "shm", "small", "larger") for host in ("a", "b")]
    assert merged([*found, Finding(("a",), "disk", "full", "empty it")]) == [
        Finding(("a", "b"), "shm", "small", "larger"),
        Finding(("a",), "disk", "full", "empty it"),
    ]


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (67108864, "67 MB"), (2.5e12, "2.5 TB")]
)
def test_sizes(count: float, text: str) -> None:
    assert size(count) == text


def test_a_loopback_name_does_no_harm_to_our_build() -> None:
    reports = [
        change(change(one, "network.own_address", "127.0.1.1"), "packages.horovod.version", "0.28.1+k0123")
        for one in cluster()
    ]
    assert findings(reports) == []
