"""Hyperparameters: what is learnt how fast, and how images are changed before.

`Hyp` has those that all families of models share. A family adds its own, such as the gains of its loss, in a
subclass that it brings itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import NamedTuple

from horovod_yolo.core.errors import UserError


class Rule(NamedTuple):
    """Which values are possible, and how to say so."""

    holds: Callable[[float], bool]
    words: str


SHARE = Rule(lambda value: 0 <= value <= 1, "between 0 and 1")
POSITIVE = Rule(lambda value: value > 0, "above 0")
NOT_NEGATIVE = Rule(lambda value: value >= 0, "0 or more")
BELOW_1 = Rule(lambda value: 0 <= value < 1, "from 0 to under 1")
AT_LEAST_1 = Rule(lambda value: value >= 1, "1 or more")
ABOVE_1 = Rule(lambda value: value > 1, "above 1")


@dataclass(frozen=True, kw_only=True)
class Hyp:
    """What all families share, under the names of YOLOv5 and Ultralytics, who have these defaults too."""

    lr0: float = 0.01
    lrf: float = 0.01
    momentum: float = 0.937
    weight_decay: float = 0.0005
    warmup_epochs: float = 3.0
    warmup_momentum: float = 0.8
    warmup_bias_lr: float = 0.1
    distill: float = 1.0  # gain of what --teacher teaches, beside that of the same terms of the family
    nbs: float = 64.0  # nominal batch: what lr0 and weight_decay are meant for
    hsv_h: float = 0.015
    hsv_s: float = 0.7
    hsv_v: float = 0.4
    degrees: float = 0.0
    translate: float = 0.1
    scale: float = 0.5
    shear: float = 0.0
    perspective: float = 0.0
    flipud: float = 0.0
    fliplr: float = 0.5
    mosaic: float = 1.0
    mixup: float = 0.0
    copy_paste: float = 0.0  # accepted for others' files; needs masks, which detection labels do not have

    def __post_init__(self) -> None:
        for f in fields(self):
            object.__setattr__(
                self, f.name, _finite_number(f"hyperparameter {f.name}", getattr(self, f.name))
            )
        self.require(SHARE, "mosaic", "mixup", "copy_paste", "flipud", "fliplr")
        self.require(POSITIVE, "lr0", "lrf")
        self.require(NOT_NEGATIVE, "weight_decay", "warmup_epochs", "warmup_bias_lr", "distill")
        self.require(BELOW_1, "momentum", "warmup_momentum", "hsv_h", "hsv_s", "hsv_v")
        self.require(BELOW_1, "translate", "scale", "perspective")
        self.require(AT_LEAST_1, "nbs")

    def require(self, rule: Rule, *names: str) -> None:
        """Raise `UserError` where one of these hyperparameters breaks a rule."""
        for name in names:
            value = getattr(self, name)
            if not rule.holds(value):
                raise UserError(f"hyperparameter {name} is {value!r}", fix=f"it must be {rule.words}")


def _finite_number(name: str, value: object) -> float:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    try:
        number = float(value) if is_number else math.nan  # type: ignore[arg-type]
    except OverflowError:  # an integer beyond all floats, and too long to print
        number = value = math.inf
    if not math.isfinite(number):
        fix = "it must be a finite number, in YAML 1.0e-2, not 1e-2"
        raise UserError(f"{name} is {value!r:.60}", fix=fix)
    return number
