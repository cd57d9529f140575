"""What ends a job: the user's mistake, training that diverged, a request to stop."""

from __future__ import annotations

from typing import Any, Literal

Request = Literal["certain", "here", "elsewhere"]


class UserError(ValueError):
    """A mistake in what the user gave us: command line, files, data.

    Its text is one line that says what is wrong, where, and what to do. The command line prints
    it without a traceback and exits with code 2.
    """

    def __init__(self, what: str, *, where: object = None, fix: str = "") -> None:
        parts = [what if where is None else f"{where}: {what}"]
        if fix:
            parts.append(fix)
        super().__init__(". ".join(part.strip().rstrip(".") for part in parts).replace("\n", " "))


class UnmetError(UserError):
    """The other ranks were not found: a mistake in the launch, or one of them has just died."""


class NonFiniteError(RuntimeError):
    """Training diverged: too many steps in a row had infinite or NaN gradients."""


class MemoryShortError(RuntimeError):
    """A rank has too little memory for a step, also with half as many images at a time."""


class FaultyRankError(RuntimeError):
    """Two ranks have different bits for the same slice: one of them computes wrongly.

    Attributes:
        event: step, slice, tensors and ranks, in builtins.
    """

    def __init__(self, words: str, event: dict[str, Any] | None = None) -> None:
        super().__init__(words)
        self.event = event or {}


class UnwrittenError(RuntimeError):
    """A run came to its end, but something that must outlast it is not on the disk."""


class RanksFailedError(RuntimeError):
    """Ranks that a call from Python had started ended otherwise than together. What they said was printed."""


class StoppedError(RuntimeError):
    """The job was asked to stop, and all ranks agreed on it. Not a fault.

    Attributes:
        saved: whether a checkpoint of this moment is on the disk.
        request: where it may be the launcher's, which stops ranks to start others, whether that came to this
            host or elsewhere.
    """

    def __init__(self, words: str, *, saved: bool = False, request: Request = "certain") -> None:
        super().__init__(words)
        self.saved = saved
        self.request = request


class PrunedError(RuntimeError):
    """A run of a search was given up after an epoch, on all ranks alike; its checkpoint is written."""


class DataWorkerError(RuntimeError):
    """The processes that make batches die again and again. Only the rank they belong to knows."""


class TakenError(RuntimeError):
    """Another job has taken this one's run over, which must have been silent for long. Only rank 0 knows."""
