"""``--optimizer auto``: which optimizer and rates follow from the size of the job."""

from __future__ import annotations

import logging
import math
from dataclasses import replace
from typing import Any

from horovod_yolo.config.schema import TrainConfig

log = logging.getLogger(__name__)
KEPT = "auto_optimizer"  # in a training state: what was chosen when the run began
MOST_STEPS_OF_ADAMW = 10_000
MUSGD_LR, MUSGD_MOMENTUM = 0.01, 0.9
ADAMW_BETA1 = 0.9


def with_optimizer(
    config: TrainConfig, images: int, classes: int, resumed: dict[str, Any] | None
) -> TrainConfig:
    """The settings with an optimizer and its rates in the place of ``auto``; others as they are.

    Up to 10,000 steps of a nominal batch it is AdamW, whose rate falls with the classes; for longer runs it
    is MuSGD. The hyperparameters lr0 and warmup_bias_lr do not count then, and the momentum counts only as
    where MuSGD's warm-up ends.

    Args:
        config: of the run.
        images: to train on.
        classes: of the model.
        resumed: the state that a run goes on from, which keeps what it began with.
    """
    if config.optimizer != "auto":
        return config
    if resumed is not None:
        return _with(config, **resumed[KEPT])
    steps = math.ceil(images / max(config.batch_size, config.hyp.nbs)) * config.epochs
    if steps > MOST_STEPS_OF_ADAMW:
        momentum = config.hyp.momentum if config.hyp.warmup_epochs > 0 else MUSGD_MOMENTUM
        chosen = _with(config, "MuSGD", MUSGD_LR, momentum)
        unused = "lr0, warmup_bias_lr" if config.hyp.warmup_epochs > 0 else "lr0, momentum, warmup_bias_lr"
    else:
        chosen = _with(config, "AdamW", round(0.002 * 5 / (4 + classes), 6), ADAMW_BETA1)
        unused = "lr0, momentum, warmup_bias_lr"
    log.info(
        "--optimizer auto: %s with lr0 %g and momentum %g for %d steps and %d classes; not used are the "
        "hyperparameters %s",
        *(chosen.optimizer, chosen.hyp.lr0, chosen.hyp.momentum, steps, classes, unused),
    )
    return chosen


def kept_choice(config: TrainConfig, chosen: TrainConfig) -> dict[str, Any]:
    """What a training state must say of `with_optimizer`'s result."""
    if config.optimizer != "auto":
        return {}
    hyp = chosen.hyp
    return {KEPT: {"optimizer": chosen.optimizer, "lr0": hyp.lr0, "momentum": hyp.momentum}}


def _with(config: TrainConfig, optimizer: Any, lr0: float, momentum: float) -> TrainConfig:
    hyp = replace(config.hyp, lr0=lr0, momentum=momentum, warmup_bias_lr=0.0)
    return replace(config, optimizer=optimizer, hyp=hyp)
