"""The command line: a module a command. They parse, and hand over to `assembly`."""

from __future__ import annotations

from horovod_yolo.cli.commands import console, main
from horovod_yolo.cli.train import train_main
from horovod_yolo.cli.val import val_main

__all__ = ["console", "main", "train_main", "val_main"]
