"""``horovod-yolo replay``."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from typing import Any

from horovod_yolo.assembly.ending import DONE, FAULT
from horovod_yolo.assembly.job import on_ranks_until_stopped
from horovod_yolo.cli.own_ranks import on_own_ranks, without_wish
from horovod_yolo.config import foreign
from horovod_yolo.config.load import DEVICE_HELP, Parser, add_engine_flag, add_ranks_flags
from horovod_yolo.distributed.backends import note_engine


def replay_main(argv: Sequence[str]) -> int:
    """Make steps of a run once more; exit code 0 where they are the same, 1 where not, 2 for mistakes."""
    note_engine(argv)
    if (code := on_own_ranks("replay", argv, replay_parser)) is not None:
        return code
    same: list[bool] = []

    def parse() -> Any:
        from horovod_yolo.assembly.replay import ReplayOptions

        given = without_wish(vars(replay_parser().parse_strictly(argv)))
        first, last = given.pop("steps")
        return ReplayOptions(first=first, last=last, **given)

    def job(comm: Any, options: Any, stop: Any) -> None:
        from horovod_yolo.assembly.replay import replay

        replayed = replay(options, comm, stop)
        same.append(comm.broadcast_object(replayed.same))
        if comm.rank == 0:
            print("\n".join(replayed.lines()))
            print(f"table {replayed.folder}/steps.csv  answer {replayed.folder}/replay.json", flush=True)

    code = on_ranks_until_stopped(parse, job)
    return FAULT if code == DONE and not all(same) else code


def replay_parser() -> Parser:
    """All flags. Defaults stay absent: they are those of `ReplayOptions`."""
    p = Parser(prog="horovod-yolo replay", allow_abbrev=False, argument_default=argparse.SUPPRESS)
    p.add_argument("run", metavar="RUN", help="the folder of a run; nothing in it is changed")
    steps = "as in steps.csv: 100:120 with both, 100 alone, or 100: to the end"
    p.add_argument("--steps", type=steps_of, required=True, metavar="A:B", help=steps)
    add_ranks_flags(p, "--ranks")
    p.add_argument("--device", type=foreign.device, help=DEVICE_HELP)
    add_engine_flag(p)
    p.add_argument("--data", help="where the data.yaml of the run is now")
    p.add_argument("--workers", type=int, help="data-loading processes of each rank")
    p.add_argument("--cache-dir", dest="cache_dir", help="folder of the data index and the image cache")
    p.add_argument("--project", help="folder of the replays' folders")
    p.add_argument("--name", help="name of the replay's folder; default: the run's")
    return p


def steps_of(text: str) -> tuple[int, int | None]:
    """Type of ``--steps``: the first and the last step; None for the last there is."""
    match = re.fullmatch(r"(\d{1,9})(:(\d{1,9})?)?", text.strip(), re.ASCII)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not A:B, two numbers of steps such as 100:120")
    first = int(match[1])
    if match[2] is None:
        return first, first
    return first, int(match[3]) if match[3] else None
