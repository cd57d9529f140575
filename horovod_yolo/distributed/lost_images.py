"""How many of a data set's images may vanish while a job runs on it, on all ranks together."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice

from horovod_yolo.core.errors import UserError
from horovod_yolo.core.types import LostImage
from horovod_yolo.distributed.communicator import Communicator

LARGEST_LOST_SHARE = 10  # a tenth of the images may vanish while the job runs
MOST_NAMED = 3


def most_lost(images: int) -> int:
    """How many of a set's images may vanish while a job runs on it."""
    return max(1, images // LARGEST_LOST_SHARE)


def require_images(comm: Communicator, lost: int, of: int, seen: Iterable[LostImage], where: object) -> None:
    """Raise `UserError` on all ranks where more than a tenth of a pass's images is lost.

    *Collective* where it raises: ``lost`` and ``of`` must be the same on all ranks. ``seen`` are this rank's.
    """
    if lost <= most_lost(of):
        return
    everyone = comm.allgather_object(list(islice(seen, MOST_NAMED)))
    named = dict.fromkeys(f"{image.path} ({image.reason})" for images in everyone for image in images)
    raise UserError(
        f"{lost} of {of} images cannot be read any more, such as {', '.join([*named][:MOST_NAMED])}",
        where=where,
        fix="is the data set still mounted and whole? Mend it, then go on with --resume",
    )
