"""A process that keeps what it frees: in processes of their own, for it cannot be taken back."""

from __future__ import annotations

import os
import subprocess
import sys

from horovod_yolo.process.allocator import SETTINGS_OF_USERS

STEPS = """
import resource, sys
import torch
from horovod_yolo.process.allocator import give_back_freed_memory, keep_freed_memory
from pathlib import Path

def resident_mb():
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() >> 20

kept = keep_freed_memory()
one = torch.ones(64 << 18)  # 64 MiB, as of one step
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    del one
    one = torch.ones(64 << 18)
faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
del one
held = resident_mb()
give_back_freed_memory()
print(kept, faults, held - resident_mb())
"""


def run(environment: dict[str, str]) -> tuple[bool, int, int]:
    done = subprocess.run(
        [sys.executable, "-c", STEPS], env=environment, stdout=subprocess.PIPE, text=True, check=True
    )
    kept, faults, given_back = done.stdout.split()
    return kept == "True", int(faults), int(given_back)


def test_memory_that_was_freed_is_there_for_the_next_step_and_can_be_given_back() -> None:
    kept, faults, given_back = run(plain_environment())
    assert kept
    assert faults < 200_000, "the kernel gave 20 times 64 MiB, each page by a fault: 327,680"
    assert given_back > 50


def test_what_the_user_has_set_stays() -> None:
    kept, faults, _ = run({**plain_environment(), "MALLOC_TRIM_THRESHOLD_": "131072"})
    assert not kept and faults > 300_000


def plain_environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name not in SETTINGS_OF_USERS}
