"""A call from Python that starts its ranks itself: it returns and raises what it would in one process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from horovod_yolo.assembly.ending import MISTAKE
from horovod_yolo.assembly.world import World
from horovod_yolo.core.errors import (
    FaultyRankError,
    MemoryShortError,
    NonFiniteError,
    RanksFailedError,
    StoppedError,
    UnwrittenError,
    UserError,
)
from horovod_yolo.launch.child import Ended, Job
from horovod_yolo.launch.plan import CALL

_RAISED: dict[str, type[Exception]] = {
    kind.__name__: kind
    for kind in (UserError, NonFiniteError, MemoryShortError, FaultyRankError, UnwrittenError)
}


def on_ranks_of(world: World, model: str, call: str, arguments: dict[str, Any]) -> tuple[Any, Path]:
    """What a method of `YOLO` returns, done on ranks that are started for it, and the model's weights then.

    Args:
        world: the ranks.
        model: its name, or file of weights.
        call: the name of the method.
        arguments: of it, as JSON can hold them.

    Raises:
        UserError, NonFiniteError, MemoryShortError, FaultyRankError, UnwrittenError, StoppedError: as in one
            process.
        RanksFailedError: a rank failed by itself, or was killed.
        KeyboardInterrupt: a second one, which ends the ranks at once.
    """
    asked = json.dumps({"model": model, "call": call, "arguments": arguments})
    ended = Job([*world.flags, "--", CALL, asked], str(world)).run()
    if ended.told is None:
        raise _unspoken(ended, world)
    if "raised" not in ended.told:
        return ended.told["returned"], Path(ended.told["weights"])
    kind, words = ended.told["raised"], ended.told["words"]
    raise (
        StoppedError(words, saved=ended.told["saved"])
        if kind == "StoppedError"
        else _RAISED.get(kind, UserError)(words)
    )


def _unspoken(ended: Ended, world: World) -> BaseException:
    """How a job ended whose rank 0 has not told."""
    if ended.interrupts > 1:
        return KeyboardInterrupt()
    if ended.code == MISTAKE and ended.mistake:
        return UserError(ended.mistake)
    return RanksFailedError(f"{world.size} ranks ended with exit code {ended.code}; what they said is above")
