"""``horovod-yolo tune``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from horovod_yolo.assembly.job import log_to_files, on_ranks_until_stopped
from horovod_yolo.cli.own_ranks import on_own_ranks, without_wish
from horovod_yolo.cli.train import without_local_rank
from horovod_yolo.config.load import Parser, train_parser
from horovod_yolo.config.words import spelled, with_words
from horovod_yolo.core.errors import UserError
from horovod_yolo.distributed.backends import note_engine
from horovod_yolo.distributed.launchers.found import launcher
from horovod_yolo.process.portable_bits import begin_again

OWN = ("trials", "space", "prune", "resume")


def tune_main(argv: Sequence[str]) -> int:
    """Search hyperparameters, on as many ranks as were launched."""
    argv = spelled(argv, tune_parser)
    note_engine(argv)
    begin_again(argv)
    if (code := on_own_ranks("tune", argv, tune_parser)) is not None:
        return code

    def parse() -> Any:
        return _options(argv)

    def job(comm: Any, options: Any, stop: Any) -> None:
        from horovod_yolo.assembly.search import open_search
        from horovod_yolo.assembly.tune import tune

        log_to_files(comm, options.flags.get("log_dir", ""))
        search = open_search(options, comm)
        if comm.rank == 0:
            print(
                f"search {search.folder}  go on after a loss, or join: horovod-yolo tune --resume "
                f"{search.folder}",
                flush=True,
            )
        outcome, tells = tune(search, comm, stop)
        if comm.rank == 0 and tells:
            print("\n".join(outcome.lines()), flush=True)

    return on_ranks_until_stopped(parse, job)


def _options(argv: Sequence[str]) -> Any:
    from horovod_yolo.assembly.search import TuneOptions

    if launcher().restarts_ranks:
        fix = "launch it with -H host1:4; lost trials are repeated by horovod-yolo tune --resume"
        raise UserError("horovodrun's elastic launch of a search", fix=fix)
    given = without_wish(vars(tune_parser().parse_strictly(without_local_rank(argv))))
    own = {name: given.pop(name) for name in OWN if name in given}
    return TuneOptions(flags=given, **own)


def tune_parser() -> Parser:
    """The flags of training, and those of the search. Defaults stay absent: they are `TuneOptions`'."""
    p = train_parser("horovod-yolo tune")
    p.usage = "%(prog)s --data FILE --cfg MODEL [--trials N] [flags of train]"
    p.epilog = "Each trial trains with these flags, and with hyperparameters of its own: docs/tune.md."
    for action in p._actions:
        if action.dest == "resume":
            action.help = "go on with a search, or join it: its folder; alone: the newest"
    group = p.add_argument_group("search")
    group.add_argument("--trials", type=int, metavar="N", help="how many settings are tried (30)")
    ranges = "YAML with the ranges: 'lr0: {low: 0.001, high: 0.1, log: true}'; default: the usual ones"
    group.add_argument("--space", metavar="FILE", help=ranges)
    group.add_argument(
        "--prune",
        action=argparse.BooleanOptionalAction,
        help="end trials early that are below the median of the others, the default",
    )
    return with_words(p, "tune")
