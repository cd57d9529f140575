"""The size of the network's input, and which are too small to train."""

from __future__ import annotations

import logging
import math

from horovod_yolo.config.schema import TrainConfig
from horovod_yolo.core.errors import UserError

log = logging.getLogger(__name__)


def round_to_stride(imgsz: int, stride: int) -> int:
    """The input size, raised to a multiple of the coarsest stride."""
    rounded = math.ceil(imgsz / stride) * stride
    if rounded != imgsz:
        log.warning("--imgsz %d is no multiple of the stride %d; %d is used", imgsz, stride, rounded)
    return rounded


def require_cells(config: TrainConfig, stride: int, *, resumed: bool) -> None:
    """Raise `UserError` where the coarsest map may be one cell: batch norm has no statistics of one value.

    The smallest size decides, whatever the batch and the number of ranks: a last batch may be one image.
    """
    least = stride * (3 if config.multi_scale else 2)  # half of 3 strides is rounded to 2
    if config.imgsz >= least:
        return
    smallest = "with --multi-scale down to half of it, " if config.multi_scale else ""
    what = f"--imgsz {config.imgsz} is too small: {smallest}the coarsest map (stride {stride}) has one cell"
    if resumed:
        log.warning("%s; the run goes on as it began", what)
    else:
        raise UserError(what, fix=f"use --imgsz {least} or more")
