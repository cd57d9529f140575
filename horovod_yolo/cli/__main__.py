"""``python -m horovod_yolo.cli`` is ``horovod-yolo``."""

from __future__ import annotations

from horovod_yolo.cli.commands import console

if __name__ == "__main__":
    console()
