"""The folder of one run: ``runs/train/exp3`` with weights, tables, plots and the report."""

from __future__ import annotations

import json
import platform
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml

import horovod_yolo
from horovod_yolo.checkpoint.store import write
from horovod_yolo.config.schema import TrainConfig, to_dict
from horovod_yolo.core.errors import UserError
from horovod_yolo.core.plain_json import plain
from horovod_yolo.io.private import mode_below, own_folder

MOST_RUNS = 10_000
WEIGHTS = "weights"


def new_run_folder(project: Path, name: str, exist_ok: bool, inside: str = WEIGHTS) -> Path:
    """Make ``project/name``, or ``name2``, ``name3``, ... where it exists (as YOLOv5 does).

    Args:
        project: made where it is not there.
        name: of the folder; ``a/b`` lies in a folder ``a`` of the project.
        exist_ok: take the folder that is there.
        inside: a folder to make in it; empty for none.

    Raises:
        UserError: it cannot be made.
    """
    wanted = project / name
    if Path(name).name in ("", "..") or "\0" in name:
        raise UserError(f"--name {name!r:.60} is no name of a folder", fix="give one, such as --name exp")
    try:
        if exist_ok:
            own_folder(wanted / inside)
            return wanted
        own_folder(wanted.parent)
        for number in range(1, MOST_RUNS):
            folder = wanted if number == 1 else wanted.with_name(f"{wanted.name}{number}")
            try:
                folder.mkdir(mode=mode_below(wanted.parent))
            except FileExistsError:
                continue
            if inside:
                (folder / inside).mkdir()
            return folder
    except OSError as error:
        raise UserError(
            f"cannot make the run folder ({error.strerror})",
            where=wanted,
            fix="name another --project or --name",
        ) from None
    raise UserError(f"{MOST_RUNS} runs are there already", where=project, fix="name another --project")


def discard_if_empty(folder: Path) -> None:
    """Remove the folder of a run that came to nothing; not where another job's lock or anything is in it."""
    with suppress(OSError):
        if {path.name for path in folder.iterdir()} == {WEIGHTS}:
            (folder / WEIGHTS).rmdir()
        folder.rmdir()


def write_config(folder: Path, config: TrainConfig) -> None:
    """Write ``config.yaml``."""
    write(folder / "config.yaml", yaml.safe_dump(to_dict(config), sort_keys=False).encode())


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Write JSON that any reader takes: NaN and infinity become null."""
    write(path, (json.dumps(plain(values), indent=2, allow_nan=False) + "\n").encode())


def versions() -> dict[str, str]:
    """Versions of what computed a result."""
    found = {"horovod_yolo": horovod_yolo.__version__, "python": platform.python_version()}
    libraries = ("numpy", "opencv-python-headless", "albumentations", "pillow", "scipy")
    for package in ("torch", "horovod", *libraries, "mpi4py"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found
