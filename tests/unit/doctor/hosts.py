"""Reports of hosts that were never asked: a healthy one, and how to change it."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

from horovod_yolo.doctor.collect import Report

SPACE = {"device": 1, "total": 10**12, "free": 10**11, "files": 10**6, "writable": True}
FACTS: dict[str, Any] = {
    "hello": {"time": 0.0, "hostname": "host1"},
    "python": {"version": "3.11.7", "user": "u", "cwd": "/job", "folder": True},
    "network": {
        "own_address": "10.0.0.1",
        "interfaces": [{"name": "eth0", "address": "10.0.0.1", "network": "10.0.0.0/24", "carrier": True}],
    },
    "limits": {
        "cores": 8,
        "nofile": [1024, None],
        "memlock": [8 << 20, 8 << 20],
        "shm": {**SPACE, "path": "/dev/shm"},
    },
    "processor": {"name": "Some CPU", "instructions": "avx512_vnni"},
    "packages": {
        "torch": {"version": "2.13.0", "cuda": None},
        "torchvision": None,
        "horovod": {
            "version": "0.28.1",
            "built_for": "2.13.0",
            "extension": True,
            "backends": ["MPI", "Gloo"],
        },
        "horovod_yolo": {"version": "0.1.0", "digest": "abcdef012345", "folder": "/job/horovod_yolo"},
        "others": {"numpy": "2.2.6", "pillow": "12.2.0"},
    },
    "compilers": {"cxx": True, "cc": True, "headers": True, "triton": None},
    "gpus": {"gpus": [], "error": "", "infiniband": []},
    "disks": {
        "run": {**SPACE, "path": "runs/train", "identity": "7 1000"},
        "cache": {**SPACE, "path": "/cache"},
        "tmp": {**SPACE, "path": "/tmp"},
    },
    "imports": {"torchvision": None},
    "data": {"splits": {"train": {"key": "aa", "images": 28}, "val": {"key": "bb", "images": 7}}},
}
GPU = {"name": "H200", "driver": "580.1", "memory_mib": "143000"}


def report(host: str = "host1", **fields: Any) -> Report:
    """A healthy host's report, its facts its own to change."""
    number = host.removeprefix("host")
    facts = copy.deepcopy(FACTS)
    facts["hello"]["hostname"] = host
    facts["network"]["own_address"] = facts["network"]["interfaces"][0]["address"] = f"10.0.0.{number}"
    return Report(
        **{"host": host, "facts": facts, "address": f"10.0.0.{number}", "clock": (-0.1, 0.2), **fields}
    )


def cluster(count: int = 4) -> list[Report]:
    return [report(f"host{i}") for i in range(1, count + 1)]


def change(one: Report, path: str, value: Any) -> Report:
    """Set the fact at a path such as ``packages.torch.version``."""
    *way, last = path.split(".")
    place: Any = one.facts
    for name in way:
        place = place[name]
    place[last] = value
    return one


def with_gpus(reports: Iterable[Report], count: int = 4) -> list[Report]:
    """Hosts with GPUs and software that uses them."""
    found = []
    for one in reports:
        change(one, "gpus.gpus", [dict(GPU) for _ in range(count)])
        change(one, "packages.torch.cuda", "13.0")
        found.append(change(one, "packages.horovod.backends", ["MPI", "Gloo", "NCCL"]))
    return found
