"""An exported file as ``--weights``: rank 0 reads it for all, each rank runs it."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import torch

from horovod_yolo.core.errors import UserError
from horovod_yolo.data.spec import load_data_yaml
from horovod_yolo.distributed.agreement import on_rank_0
from horovod_yolo.distributed.communicator import Communicator
from horovod_yolo.export.about import About
from horovod_yolo.export.formats import opened_runner, read_exported
from horovod_yolo.export.of_others import readable, told_by
from horovod_yolo.export.running import ExportedFile, Runner
from horovod_yolo.families import zoo
from horovod_yolo.families.zoo import Recipe
from horovod_yolo.models.suppression import Thresholds
from horovod_yolo.prediction.exported import ExportedFinder

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Opened:
    """An exported file that is ready.

    Attributes:
        runner: it.
        about: what it says of itself, or else what the user says of it.
        shape: (height, width) that each input must have; None: any in whole strides.
        path: of the file, for messages.
        suppresses: it does, at thresholds that ``about`` does not know.
    """

    runner: Runner
    about: About
    shape: tuple[int, int] | None
    path: str
    suppresses: bool = False

    @property
    def recipe(self) -> Recipe:
        """How models of its family are scored."""
        return zoo.recipe_if_known(self.about.model)

    def say_suppression(self, thresholds: Thresholds, *, asked: bool) -> None:
        """Warn where the file's own suppression is not what the user asked for, of overlap if ``asked``."""
        own = self.about.suppression
        if self.suppresses:
            log.warning("%s suppresses by itself, and does not say at which thresholds", self.path)
        if own is not None and (
            own.confidence > thresholds.confidence or (asked and own.iou != thresholds.iou)
        ):
            log.warning(
                "%s suppresses by itself: scores above %g, IoU %g, at most %d objects an image",
                *(self.path, own.confidence, own.iou, own.most),
            )

    def finder(self, thresholds: Thresholds, classes: tuple[int, ...] = ()) -> ExportedFinder:
        """What maps inputs to detections."""
        return ExportedFinder(self.runner, self.about, thresholds, classes, self.path)


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What the user says beside the file; what he does not say is empty."""

    device: str = ""
    data: str = ""
    imgsz: int = 0
    head: str = ""
    precision: str = "auto"


def shared_exported(path: Path, comm: Communicator) -> ExportedFile | None:
    """The file as rank 0 reads it, for all; None where it is none of the exported ones. *Collective.*

    Raises:
        UserError: on all ranks alike: it cannot be read.
    """
    return on_rank_0(comm, lambda: read_exported(path))


def name_of_exported(path: Path) -> str:
    """The name of the model in an exported file, or of the file; empty for what is no exported file.

    Raises:
        UserError: it cannot be read or run.
    """
    file = read_exported(path)
    if file is None:
        return ""
    about = About.of_texts(opened_runner(file, torch.device("cpu"), must=False).texts, file.path)
    return about.model if about else path.stem


def open_exported(file: ExportedFile, device: torch.device, asked: Asked) -> Opened:
    """Make a file ready.

    Raises:
        UserError: it cannot be run, or not as it was asked for.
    """
    if asked.precision != "auto":
        fix = "leave it out: the file has its own number format"
        raise UserError(f"--precision {asked.precision} and an exported file", where=file.path, fix=fix)
    runner = opened_runner(file, device, must=bool(asked.device))
    about = About.of_texts(runner.texts, file.path)
    if about is None:
        return _of_others(runner, asked, file.path)
    sides = (about.batch, *about.imgsz) if about.batch else (0, 0, 0)
    if runner.sides not in ((0, 0, 0), sides):
        raise UserError(
            "it takes other inputs than its metadata says", where=file.path, fix="export it again"
        )
    _require_as_exported(about, asked, file.path)
    return Opened(runner, about, about.imgsz if about.batch else None, file.path)


def _of_others(runner: Runner, asked: Asked, path: str) -> Opened:
    """A file of another program, which says of itself what it likes: perhaps nothing."""
    told, side = told_by(runner.texts, path), asked.imgsz
    fixed = runner.sides[1:] if all(runner.sides[1:]) else None
    usual = (side, side) if side else told.imgsz
    known = {"--data data.yaml": told.names or asked.data, "--imgsz 640": fixed or usual}
    if missing := [flag for flag, given in known.items() if not given]:
        raise UserError(
            "it does not say which classes it knows, nor how it was exported",
            where=path,
            fix=f"say it: {' '.join(missing)}",
        )
    if side and fixed and side != max(fixed):
        raise _other_size(side, fixed, path)
    height, width = fixed or (-(-length // told.stride) * told.stride for length in usual or ())
    about = About(
        model=told.model or Path(path).stem,
        names=told.names or load_data_yaml(Path(asked.data)).names,
        stride=told.stride,
        imgsz=(height, width),
        batch=runner.sides[0],
        license=told.license,
    )
    _require_head(about, asked, path)
    readable_runner = readable(runner, about, told, path)
    shape = None if told.names and not any(runner.sides) else about.imgsz
    return Opened(readable_runner, about, shape, path, told.suppresses)


def _require_as_exported(about: About, asked: Asked, path: str) -> None:
    _require_head(about, asked, path)
    if about.batch and asked.imgsz and about.imgsz != (asked.imgsz, asked.imgsz):
        raise _other_size(asked.imgsz, about.imgsz, path)


def _require_head(about: About, asked: Asked, path: str) -> None:
    if asked.head and asked.head != about.head:
        has = f"head {about.head}" if about.head else "the one head that its model has"
        raise UserError(
            f"--head {asked.head}, but it was exported with {has}", where=path, fix="export again"
        )


def _other_size(asked: int, shape: tuple[int, int], path: str) -> UserError:
    return UserError(
        f"--imgsz {asked}, but its inputs are {shape[1]}x{shape[0]} (width x height)",
        where=path,
        fix="leave --imgsz out, or export with --dynamic or another --imgsz",
    )
