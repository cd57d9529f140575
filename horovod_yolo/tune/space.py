"""Which hyperparameters a search changes, and how far."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from horovod_yolo.config.hyperparameters import Hyp
from horovod_yolo.config.load import nearest
from horovod_yolo.core.errors import UserError
from horovod_yolo.io.plain_yaml import read_mapping

SPACE_FILE_BYTES = 1 << 16
GAINS = ("box", "cls", "obj", "dfl")  # of a family's loss, those that it has
CHOSEN_BY_AUTO = ("lr0", "momentum", "warmup_bias_lr")  # with --optimizer auto they do not count
_WORDS = ("low", "high", "log", "choices")


@dataclass(frozen=True)
class Range:
    """Values of one hyperparameter: from ``low`` to ``high``, or one of ``choices``.

    Attributes:
        low: the least value.
        high: the largest.
        log: whether each factor is as likely as the same factor elsewhere, as suits rates.
        choices: the only values; empty where there is a range.
    """

    low: float = 0.0
    high: float = 0.0
    log: bool = False
    choices: tuple[float, ...] = ()

    def __contains__(self, value: float) -> bool:
        return value in self.choices if self.choices else self.low <= value <= self.high


Space = Mapping[str, Range]
_SHARED: Space = {
    "lr0": Range(1e-4, 0.1, log=True),
    "lrf": Range(0.01, 1.0, log=True),
    "momentum": Range(0.6, 0.98),
    "weight_decay": Range(0.0, 0.001),
    "warmup_epochs": Range(0.0, 5.0),
    "warmup_momentum": Range(0.0, 0.95),
    "hsv_h": Range(0.0, 0.1),
    "hsv_s": Range(0.0, 0.9),
    "hsv_v": Range(0.0, 0.9),
    "translate": Range(0.0, 0.5),
    "scale": Range(0.0, 0.9),
    "flipud": Range(0.0, 1.0),
    "fliplr": Range(0.0, 1.0),
    "mosaic": Range(0.0, 1.0),
    "mixup": Range(0.0, 1.0),
}


def default_space(hyp: Hyp, *, auto_optimizer: bool) -> dict[str, Range]:
    """What is searched where the user does not say: rates, the loss's gains, augmentation.

    Args:
        hyp: the hyperparameters that the search begins with; a gain is searched from a quarter of its value
            to four times as much.
        auto_optimizer: whether ``--optimizer auto`` chooses some of them, which are left out then.
    """
    values = asdict(hyp)
    gains = {name: Range(values[name] / 4, values[name] * 4, log=True) for name in GAINS if values.get(name)}
    left_out = CHOSEN_BY_AUTO if auto_optimizer else ()
    return {name: found for name, found in {**_SHARED, **gains}.items() if name not in left_out}


def load_space(path: Path, hyp: Hyp, *, auto_optimizer: bool) -> dict[str, Range]:
    """Read the file of ``--space``, with lines such as ``lr0: {low: 0.001, high: 0.1, log: true}``.

    Raises:
        UserError: names the file, the hyperparameter, and what is wrong with it.
    """
    said = read_mapping(path, most_bytes=SPACE_FILE_BYTES, what="a file of ranges")
    return space_of(said, path, hyp, auto_optimizer=auto_optimizer)


def space_of(values: Mapping[str, Any], where: object, hyp: Hyp, *, auto_optimizer: bool) -> dict[str, Range]:
    """Ranges as a file has them; ``where`` is what they are from, for people. Errors as `load_space`."""
    space = {}
    known = {f.name for f in fields(hyp)}
    for name, said in values.items():
        if name not in known:
            fix = nearest(str(name), known)
            raise UserError(f"unknown hyperparameter {name!r:.60}", where=where, fix=fix)
        if auto_optimizer and name in CHOSEN_BY_AUTO:
            fix = "name one, such as --optimizer SGD"
            raise UserError(f"{name} is chosen by --optimizer auto, not searched", where=where, fix=fix)
        try:
            space[name] = _range(name, said)
            _require_possible(name, space[name], hyp)
        except UserError as error:
            raise UserError(str(error), where=where) from None
    if not space:
        raise UserError("no hyperparameter is in it", where=where, fix="leave --space out for the usual ones")
    return space


def _range(name: str, said: Any) -> Range:
    example = f"write {name}: {{low: 0.1, high: 0.5}} or {name}: {{choices: [0.1, 0.5]}}"
    if not isinstance(said, dict):
        raise UserError(f"{name} is {said!r:.60}", fix=example)
    if unlike := [key for key in said if key not in _WORDS]:
        raise UserError(f"{name} has {unlike[0]!r:.60}", fix=nearest(str(unlike[0]), _WORDS))
    if "choices" in said:
        if len(said) > 1:
            raise UserError(f"{name} has choices and a range", fix="take one of them")
        return Range(choices=_choices(name, said["choices"]))
    if not {"low", "high"} <= said.keys():
        raise UserError(f"{name} has no {'low' if 'low' not in said else 'high'}", fix=example)
    low, high = (_number(name, key, said[key]) for key in ("low", "high"))
    log = said.get("log", False)
    if not isinstance(log, bool):
        raise UserError(f"log of {name} is {log!r:.60}", fix="it must be true or false")
    if low >= high:
        raise UserError(f"low of {name} is {low:g} and high is {high:g}", fix="low must be below high")
    if log and low <= 0:
        raise UserError(f"low of {name} is {low:g} with log: true", fix="it must be above 0 then")
    return Range(low, high, log)


def _choices(name: str, said: Any) -> tuple[float, ...]:
    if not isinstance(said, list) or len(said) < 2:
        raise UserError(f"choices of {name} are {said!r:.60}", fix="write two or more numbers: [0.1, 0.5]")
    found = tuple(_number(name, "choices", value) for value in said)
    if len(set(found)) < len(found):
        raise UserError(f"choices of {name} are {said!r:.60}", fix="write each of them once")
    return found


def _number(name: str, key: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < 1e9:
        fix = "it must be a number, in YAML 1.0e-2, not 1e-2"
        raise UserError(f"{key} of {name} is {value!r:.60}", fix=fix)
    return float(value)


def _require_possible(name: str, found: Range, hyp: Hyp) -> None:
    """Each end must be a value that the hyperparameter may have."""
    for value in found.choices or (found.low, found.high):
        type(hyp)(**{**asdict(hyp), name: value})
