"""In how many passes a rank's slice goes through the network: how large one may be, and what then follows."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from horovod_yolo.config.schema import AUTO, TrainConfig
from horovod_yolo.core.errors import UserError
from horovod_yolo.core.memory import shortage
from horovod_yolo.core.types import Batch, Targets
from horovod_yolo.data.annotations import Annotations
from horovod_yolo.distributed.agreement import raise_together
from horovod_yolo.distributed.communicator import Communicator
from horovod_yolo.training.loop import Trainer
from horovod_yolo.training.passes import Passes, give_back, what_batch_norm_sees
from horovod_yolo.training.step import Stepper

log = logging.getLogger(__name__)
LARGEST_SCALE = 1.5  # of --multi-scale
NUMBERS_A_WEIGHT = 2  # that an optimizer keeps, at most


def passes_of(config: TrainConfig, ranks: int, first_size: int, resumed: dict[str, Any] | None) -> Passes:
    """How slices are split as far as it is known before a search: none larger than what is known to fit.

    With synchronised batch norm each rank has one slice, and a resumed run keeps its number of passes where
    that is enough, as what batch norm sees depends on it.

    Args:
        config: of the run.
        ranks: of now.
        first_size: ranks when the run began. A rank's memory is known to hold a slice of then.
        resumed: the state that the run goes on from.
    """
    share = math.ceil(config.batch_size / (config.slices or ranks))
    first = math.ceil(config.batch_size / (config.slices or first_size))
    passes = Passes.that_fit(share, _known(config) or first)
    before: int = (resumed or {}).get("passes", 1)
    if config.sync_bn and _known(config):
        return Passes(share, max(passes.count, before))
    if config.slices > ranks and not _known(config):  # what a rank had at first is in its memory at once
        return replace(passes, together=math.ceil(config.batch_size / min(config.slices, first_size)))
    return passes


def passes_of_evaluation(config: TrainConfig, ranks: int, first_size: int) -> int:
    """In how many a slice is scored: of twice as many images, for nothing is kept to go back."""
    batch = config.evaluation_batch_size
    share = math.ceil(batch / (config.slices or ranks))
    first = math.ceil(batch / (config.slices or first_size))
    return Passes.that_fit(share, 2 * _known(config) or first).count


def _known(config: TrainConfig) -> int:
    return config.micro_batch if isinstance(config.micro_batch, int) else 0


def fitted(
    config: TrainConfig, stepper: Stepper, comm: Communicator, annotations: Annotations
) -> TrainConfig:
    """The config with the size of a pass that was looked for, where it asks for that. *Collective.*

    Raises:
        UserError: a single image is too large for a rank's memory; on all ranks alike.
    """
    if config.micro_batch == AUTO:
        share, device = stepper.passes.share, stepper.precision.device
        scale = LARGEST_SCALE if config.multi_scale else 1.0
        boxes = most_boxes(config, annotations)
        state = _room(stepper, comm)
        images = largest_pass(
            lambda count: stepper.lack_of_memory(
                sample(count, config.imgsz, boxes, slices=len(stepper.slices)), scale
            ),
            share,
        )
        del state
        give_back(device)
        stepper.passes = Passes.that_fit(share, images)
        config = replace(config, micro_batch=images)
        log.info("--micro-batch auto: %d images in a pass fit on each rank, of its %d", images, share)
    if stepper.passes.count > 1:
        log.info(
            "%d passes a batch: %s",
            stepper.passes.count,
            what_batch_norm_sees(stepper.passes, config.sync_bn),
        )
    return config


def note_search(trainer: Trainer, asked: TrainConfig) -> None:
    """Keep that free memory decided what batch norm sees in a new run; one that goes on has its passes.

    Args:
        trainer: before the first step.
        asked: the settings before `fitted`.
    """
    if asked.micro_batch == AUTO and trainer.stepper.passes.count > 1:
        images = trainer.config.micro_batch
        trainer.note_unlike(
            f"--micro-batch auto found memory for {images} images in a pass, and may find other memory "
            f"elsewhere; --micro-batch {images} gives these bits anywhere"
        )


def largest_pass(lack: Callable[[int], str | None], share: int) -> int:
    """The largest number of images, up to ``share``, for which nothing is lacking.

    Args:
        lack: what is lacking for so many, the same on all ranks.
        share: is tried first: mostly it fits.

    Raises:
        UserError: not even one image fits.
    """
    fits, too_many, tried, lacking = 0, share + 1, share, ""
    while fits + 1 < too_many:
        words = lack(tried)
        if words is None:
            fits = tried
        else:
            too_many, lacking = tried, words
        tried = (fits + too_many) // 2
    if not fits:
        raise UserError(
            f"--micro-batch auto: {lacking} for one image", fix="lower --imgsz, or take a smaller model"
        )
    return fits


def most_boxes(config: TrainConfig, annotations: Annotations) -> int:
    """Boxes of a full sample: of the fullest image, and in a mosaic of three more."""
    counts = annotations.counts
    if not len(counts):
        return 0
    mosaic = config.hyp.mosaic > 0 and not config.rect
    return int(counts.max()) + (3 * math.ceil(float(counts.mean())) if mosaic else 0)


def _room(stepper: Stepper, comm: Communicator) -> Tensor | None:
    """What the optimizer will keep from its first step on. *Collective.*"""
    numbers = sum(p.numel() for group in stepper.optimizer.param_groups for p in group["params"])
    room, problem = None, None
    try:
        room = torch.empty(NUMBERS_A_WEIGHT * numbers, device=stepper.precision.device)
    except (RuntimeError, MemoryError) as error:
        problem = shortage(error)
        if problem is None:
            raise
    raise_together(comm, problem and f"--micro-batch auto: {problem} for what the optimizer keeps")
    return room


def sample(images: int, side: int, boxes: int, *, slices: int = 1) -> Batch:
    """A slice of black images, which take no memory as long as they are not on the way through the network.

    The rank's other slices are empty: they are not in memory at the same time.
    """
    pixel = torch.zeros((1, 1, 1, 1), dtype=torch.uint8)
    places = torch.linspace(0.1, 0.9, boxes).repeat(images)
    return Batch(
        pixel.expand(images, 3, side, side),
        Targets(
            torch.arange(images).repeat_interleave(boxes),
            torch.zeros(images * boxes, dtype=torch.int64),
            torch.stack((places, places, torch.full_like(places, 0.1), torch.full_like(places, 0.1)), dim=1),
        ),
        torch.arange(images),
        (),
        slices=(images, *[0] * (slices - 1)) if slices > 1 else (),
    )
