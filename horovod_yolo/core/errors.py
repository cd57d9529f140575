"""What ends a job: the user's mistake, training that diverged, a request to stop."""

from __future__ import annotations


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


class NonFiniteError(RuntimeError):
    """Training diverged: too many steps in a row had infinite or NaN gradients."""


class UnwrittenError(RuntimeError):
    """A run came to its end, but something that must outlast it is not on the disk."""


class StoppedError(RuntimeError):
    """The job was asked to stop, and all ranks agreed on it. Not a fault.

    Attributes:
        saved: whether a checkpoint of this moment is on the disk.
    """

    def __init__(self, words: str, *, saved: bool = False) -> None:
        super().__init__(words)
        self.saved = saved


class DataWorkerError(RuntimeError):
    """The processes that make batches die again and again. Only the rank they belong to knows."""


class TakenError(RuntimeError):
    """Another job has taken this one's run over, which must have been silent for long. Only rank 0 knows."""
