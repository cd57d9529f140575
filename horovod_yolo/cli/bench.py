"""``horovod-yolo bench``."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_args

from horovod_yolo.assembly.ending import DONE, MISTAKE, complain
from horovod_yolo.assembly.job import on_ranks
from horovod_yolo.config.load import Parser, add_engine_flag, add_shared_flags, nearest
from horovod_yolo.config.schema import Compression, Precision
from horovod_yolo.core.errors import UserError
from horovod_yolo.distributed.backends import note_engine

USAGE = "usage: horovod-yolo bench {comm,step} ... (each has --help)"


def bench_main(argv: Sequence[str]) -> int:
    """Measure what `plan` reads, on as many ranks as were launched."""
    if argv:
        note_engine(argv)
    kinds = {"comm": _bench_comm, "step": _bench_step}
    if argv and argv[0] in kinds:
        return kinds[argv[0]](argv[1:])
    if argv and argv[0] in ("-h", "--help"):
        print(f"{__doc__} {bench_main.__doc__}\n\n{USAGE}")
        return DONE
    complain(f"unknown bench {argv[0]!r}. {nearest(argv[0], kinds)}" if argv else USAGE)
    return MISTAKE


def comm_parser() -> Parser:
    """The flags of ``bench comm``."""
    p = _parser("comm", "latency and bandwidth of sums over the ranks, by size")
    p.add_argument("--max-mb", dest="max_mb", type=float, metavar="MB", help="the largest message (64)")
    p.add_argument("--device", help="cpu, or GPU numbers such as 0 or 0,1 of this host")
    add_engine_flag(p)
    return p


def step_parser() -> Parser:
    """The flags of ``bench step``."""
    p = _parser("step", "forward, backward and optimizer time, gradients, memory, and the loader's rate")
    p.add_argument("--cfg", "--model", dest="cfg", required=True, help="model: yolov5n, yolo11n, ...")
    p.add_argument("--data", help="data.yaml, to measure how fast a core makes training images")
    add_shared_flags(p)
    p.add_argument("--precision", choices=get_args(Precision))
    p.add_argument("--compression", choices=get_args(Compression), help="of gradients on the wire")
    p.add_argument("--fusion-mb", dest="fusion_mb", type=float, help="most MB of a group of gradients")
    p.add_argument("--sync-bn", dest="sync_bn", action="store_true", help="with batch norm over all ranks")
    p.add_argument("--cache-dir", dest="cache_dir", help="folder of the data index")
    p.add_argument("--steps", type=int, metavar="N", help="steps that are measured (10)")
    return p


def _parser(kind: str, about: str) -> Parser:
    p = Parser(
        prog=f"horovod-yolo bench {kind}",
        description=about,
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )
    p.add_argument("--out", metavar="FILE", help="write JSON that `horovod-yolo plan --from FILE` reads")
    p.add_argument("--seconds", type=float, metavar="S", help="for the sums over ranks, about (20)")
    return p


def _parsed(p: Parser, argv: Sequence[str]) -> tuple[dict[str, Any], str]:
    """What was given, and where it is to be written.

    Raises:
        UserError: a mistake in the flags.
    """
    given = vars(p.parse_strictly(argv))
    out = str(given.pop("out", ""))
    if out and not Path(out).absolute().parent.is_dir():
        raise UserError("there is no such folder", where=Path(out).parent, fix="make it first")
    for name, least in (("seconds", 0.1), ("max_mb", 0.01), ("steps", 1)):
        if not least <= given.get(name, least) <= 1e6:  # NaN is neither
            flag = "--" + name.replace("_", "-")
            raise UserError(f"{flag} {given[name]}", fix=f"give {least} or more")
    return given, out


def _bench_comm(argv: Sequence[str]) -> int:
    def parse() -> tuple[Any, str]:
        from horovod_yolo.assembly.bench import CommOptions

        given, out = _parsed(comm_parser(), argv)
        return CommOptions(**given), out

    def measure(comm: Any, options: Any) -> tuple[Any, list[str]]:
        from horovod_yolo.assembly.bench import bench_comm
        from horovod_yolo.planner.show import comm_lines

        found = bench_comm(options, comm)
        return found, comm_lines(found)

    return _run(parse, measure)


def _bench_step(argv: Sequence[str]) -> int:
    def parse() -> tuple[Any, str]:
        from horovod_yolo.assembly.bench import StepOptions

        given, out = _parsed(step_parser(), argv)
        own = {name: given.pop(name) for name in ("steps", "seconds") if name in given}
        return StepOptions(settings=given, **own), out

    def measure(comm: Any, options: Any) -> tuple[Any, list[str]]:
        from horovod_yolo.assembly.bench import bench_step
        from horovod_yolo.planner.show import step_lines

        found = bench_step(options, comm)
        return found, step_lines(found)

    return _run(parse, measure)


def _run(parse: Callable[[], tuple[Any, str]], measure: Callable[[Any, Any], tuple[Any, list[str]]]) -> int:
    """Measure on all ranks; rank 0 writes and shows."""

    def job(comm: Any, parsed: tuple[Any, str]) -> None:
        from horovod_yolo.distributed.agreement import on_rank_0
        from horovod_yolo.planner.measured import write

        options, out = parsed
        found, lines = measure(comm, options)
        if out:
            on_rank_0(comm, lambda: write(found, Path(out)))
        if comm.rank == 0:
            print("\n".join([*lines, *([f"written to {out}"] if out else [])]), flush=True)

    return on_ranks(parse, job)
