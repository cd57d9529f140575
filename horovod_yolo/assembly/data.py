"""The images of a run, the same on all ranks."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from horovod_yolo.assembly.hand_on import hand_on
from horovod_yolo.assembly.shared_annotations import shared_annotations
from horovod_yolo.config.schema import TrainConfig
from horovod_yolo.data.annotations import Annotations
from horovod_yolo.data.spec import DataSpec
from horovod_yolo.data.subset import share_of
from horovod_yolo.distributed.agreement import together
from horovod_yolo.distributed.communicator import Communicator
from horovod_yolo.io.places import local_cache
from horovod_yolo.io.private import own_folder
from horovod_yolo.models.suppression import Thresholds

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Data:
    """The annotations of a run."""

    spec: DataSpec
    train: Annotations
    val: Annotations

    @property
    def digests(self) -> tuple[str, str]:
        """Name what is in both."""
        return self.train.digest, self.val.digest


@dataclass(frozen=True)
class KnownData:
    """What a rank of an elastic job knows of the data from the world before."""

    digests: tuple[str, str] | None  # of what the job was begun with; None: it is still to be scanned
    data: Data | None  # this; None on a rank that has not got it yet
    keep: Callable[[Data], None]  # gets it, on every rank, as soon as it has it


def annotation_folder(cache_dir: str) -> Path | None:
    """The folder of cached annotations; None where there is none of this user's on this host's disks."""
    if not cache_dir:
        return local_cache("annotations")
    folder = Path(cache_dir) / "annotations"
    try:
        own_folder(folder)
    except OSError as error:
        log.warning("annotations are not cached in %s: %s", folder, error.strerror or error)
        return None
    return folder


def say_what_counts(annotations: Annotations, most: int) -> None:
    """Say how many detections count, and where images have more objects: no model can find them all."""
    log.info("validation counts up to %d detections an image", most)
    image_of_object = np.repeat(np.arange(len(annotations)), annotations.counts)
    objects = np.bincount(image_of_object[~annotations.crowd])
    if full := int((objects > most).sum()):
        log.warning(
            "%d images have more than %d objects (up to %d): not all of them can be found",
            *(full, most, objects.max()),
        )


def build_data(spec: DataSpec, config: TrainConfig, comm: Communicator) -> Data:
    """The training and validation images. *Collective.*"""
    folder = annotation_folder(config.cache_dir)
    train, val = (shared_annotations(spec, split, comm, folder) for split in ("train", "val"))
    if config.fraction < 1:
        whole = train
        train = together(comm, lambda: share_of(whole, config.fraction, config.seed))
        log.info("--fraction %g: %d of %d training images", config.fraction, len(train), len(whole))
    if comm.rank == 0:
        say_what_counts(val, Thresholds.most)
    return Data(spec, train, val)


def run_data(spec: DataSpec, config: TrainConfig, known: KnownData | None, comm: Communicator) -> Data:
    """The images of a run. *Collective.*

    An elastic job scans them once. Later the ranks hand the annotations on: another scan would leave out the
    images that are gone by then, and the rest of the epoch would be that of another order.
    """
    if known is None:
        return build_data(spec, config, comm)
    data = _handed_on(known, spec, annotation_folder(config.cache_dir), comm)
    if data is None:
        data = build_data(spec, config, comm)
    known.keep(data)
    return data


def _handed_on(known: KnownData, spec: DataSpec, folder: Path | None, comm: Communicator) -> Data | None:
    """The data of the world before, from the ranks that have it; None where none has. *Collective.*"""
    if known.digests is None:
        return None
    mine = known.data
    train = hand_on(mine.train.file if mine else None, comm, folder)
    val = hand_on(mine.val.file if mine else None, comm, folder)
    if train is None or val is None:
        log.warning("no rank is left that knows the images of the start: they are scanned again")
        return None
    return Data(spec, Annotations(spec.root, train), Annotations(spec.root, val))
