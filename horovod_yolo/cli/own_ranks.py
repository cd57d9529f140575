"""Commands that start their ranks themselves: ``train.py --np 2``, ``--device 0,1``, ``--hosts host1:4``."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from horovod_yolo.assembly.ending import DONE
from horovod_yolo.cli.launch import launch_main
from horovod_yolo.cli.one_process import guarded
from horovod_yolo.config.load import Parser, add_ranks_flags
from horovod_yolo.distributed.backends import engine
from horovod_yolo.distributed.launchers.alone import Alone
from horovod_yolo.distributed.launchers.found import launcher

if TYPE_CHECKING:
    from horovod_yolo.assembly.world import Wish, World


def on_own_ranks(command: str, argv: Sequence[str], parser: Callable[[], Parser]) -> int | None:
    """Exit code of the job that the flags ask for; None where this process is to do the work.

    Args:
        command: ``train``, ``val``, ``predict`` or ``replay``.
        argv: its flags.
        parser: makes theirs: a mistake in any starts nothing.
    """
    if not isinstance(launcher(), Alone):
        return None
    worlds: list[World | None] = []
    if (code := guarded(lambda: worlds.append(_world_to_start(argv, parser)))) != DONE:
        return code
    (world,) = worlds
    if world is None:
        return None
    from horovod_yolo.launch.child import with_this_package

    print(world, flush=True)
    os.environ.update(with_this_package(dict(os.environ)))
    return launch_main([*world.flags, "--", command, *_without_ranks(argv)])


def _world_to_start(argv: Sequence[str], parser: Callable[[], Parser]) -> World | None:
    given = vars(parser().parse_strictly(argv))
    if not given.keys() & {"np", "hosts", "device"}:
        return None
    from horovod_yolo.assembly.world import world_to_start

    return world_to_start(_wish(given), engine(), launcher())


def without_wish(given: dict[str, Any]) -> dict[str, Any]:
    """Flags but for those of the ranks, which must be as they were launched.

    Raises:
        UserError: they are not.
    """
    from horovod_yolo.assembly.world import require_as_launched

    require_as_launched(_wish(given), launcher())
    return {name: value for name, value in given.items() if name not in ("np", "hosts")}


def _wish(given: dict[str, Any]) -> Wish:
    from horovod_yolo.assembly.world import Wish

    return Wish(given.get("np"), given.get("hosts", ""), given.get("device", ""))


def _without_ranks(argv: Sequence[str]) -> list[str]:
    """The arguments without ``--np`` and ``--hosts``: ranks are not to start others."""
    p = argparse.ArgumentParser(add_help=False, allow_abbrev=False, argument_default=argparse.SUPPRESS)
    add_ranks_flags(p, "--ranks")  # as replay has it too
    return p.parse_known_args(argv)[1]
