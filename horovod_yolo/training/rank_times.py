"""What each rank's time goes into while training goes on, told by all with the losses of a step."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass, field

from horovod_yolo.training.events import RankTime

_NUMBERS = len(astuple(RankTime()))


@dataclass
class RankTimes:
    """This rank's part in the message of a step, and what all ranks have told.

    A wait for the gradients of a step counts to the next one: it comes after the message.

    Args:
        rank: this one.
        size: number of ranks.
        waited: seconds that this rank has waited so far: for data, in the epoch, and for other ranks.
    """

    rank: int
    size: int
    waited: Callable[[], tuple[float, float]]
    _told: tuple[float, float, float] = field(init=False)  # clock and waits when the last step was told of
    _now: tuple[float, float, float] = field(init=False)

    def __post_init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        """Before an epoch: what was between two of them is not the time of a step."""
        _, ranks = self.waited()
        self._told = self._now = (time.perf_counter(), 0.0, ranks)  # waits for data are an epoch's

    def message(self, images: int) -> list[float]:
        """Numbers whose sums over the ranks are `heard`, for a step that took so many images of this one."""
        self._now = (time.perf_counter(), *self.waited())
        seconds, data, ranks = (now - told for now, told in zip(self._now, self._told, strict=True))
        data = data if data >= 0 else self._now[1]  # batches were asked for anew
        numbers = [0.0] * (_NUMBERS * self.size)
        at = _NUMBERS * self.rank
        numbers[at : at + _NUMBERS] = images, seconds, data, ranks
        return numbers

    def heard(self, numbers: Sequence[float]) -> tuple[RankTime, ...]:
        """What each rank has told of a step, by rank. A try that was no step counts to the next one."""
        self._told = self._now
        return tuple(
            RankTime(int(numbers[at]), *numbers[at + 1 : at + _NUMBERS])
            for at in range(0, len(numbers), _NUMBERS)
        )
