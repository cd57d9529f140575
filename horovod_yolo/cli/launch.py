"""``horovod-yolo launch``."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from horovod_yolo.assembly.ending import DONE
from horovod_yolo.cli.one_process import guarded

if TYPE_CHECKING:
    from horovod_yolo.launch.plan import LaunchPlan


def launch_main(argv: Sequence[str]) -> int:
    """Start a job on several ranks and hosts. With train, predict and replay it stays to pass signals on."""

    def run() -> int:
        from horovod_yolo.launch import command

        own, words = command.split(argv)
        args = command.parser().parse_strictly(own)
        plan, notes = command.make_plan(args, words)
        for note in notes:
            print(f"note: {note}", file=sys.stderr)
        if args.dry_run:
            print("\n".join(_shown(plan)))
            return DONE
        from horovod_yolo.launch import supervise
        from horovod_yolo.launch.plan import CALL, environment

        sys.stderr.flush()
        environ = {**environment(os.environ), **plan.told}
        if plan.launcher == "torch":
            os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # it warns of names without an address
            return supervise.run_over_torch(plan, environ)
        if plan.folder:
            os.chdir("/")
        stays = words[0] in ("train", "predict", "replay", CALL)
        return supervise.run(plan, environ) if stays else _become(plan, environ)

    return guarded(run)


def _shown(plan: LaunchPlan) -> list[str]:
    """The command as a shell takes it, or that of each host."""
    if plan.launcher == "torch":
        return [shlex.join(words) for words in plan.torchrun()]
    return [("cd / && " if plan.folder else "") + shlex.join(plan.argv())]


def _become(plan: LaunchPlan, environ: dict[str, str]) -> NoReturn:
    """Be the launcher, without this process's input: mpirun would swallow what the script around it reads."""
    with Path(os.devnull).open("rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    os.execve(plan.tool, plan.argv(), environ)
