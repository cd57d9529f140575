"""Processes that start in milliseconds: forked from a server that has imported everything, as one needs
to kill hundreds of them.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from multiprocessing.context import BaseContext
from pathlib import Path

from horovod_yolo.data.workers import forkserver_context

_IMPORTED_ONCE = ["horovod_yolo.cli", "horovod_yolo.assembly.train", "pytest", "tests.helpers.forked"]


def server() -> BaseContext:
    """Starts processes. It ends with this one.

    A process has one such server: data workers of later tests come from it, too, and count on its deafness.
    """
    return forkserver_context(_IMPORTED_ONCE)


def train(argv: Sequence[str], output: Path) -> None:
    """What ``train.py`` does; to be the target of a process."""
    from horovod_yolo.assembly.ending import leave
    from horovod_yolo.cli import train_main

    with output.open("ab", buffering=0) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    leave(train_main(argv))


def write_checkpoints(folder: Path, acknowledged: Path, kibibytes: int) -> None:
    """Write ``last.pt`` over and over, and after each write its number to ``acknowledged``."""
    import torch

    from horovod_yolo.checkpoint import resume, store
    from horovod_yolo.checkpoint.migration import FORMAT_VERSION

    content = torch.zeros(kibibytes, 256)
    last = folder / "last.pt"
    number = store.read(last)["step"] if last.exists() else 0
    with acknowledged.open("ab", buffering=0) as file:
        while True:
            number += 1
            state = {"format_version": FORMAT_VERSION, "optimizer": content + number, "step": number}
            store.write_rotating(last, store.serialise(state), resume.KEEP)
            file.write(b"%d\n" % number)
