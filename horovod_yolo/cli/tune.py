"""``horovod-yolo tune``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from horovod_yolo.assembly.job import log_to_files, on_ranks_until_stopped
from horovod_yolo.cli.own_ranks import on_own_ranks, without_wish
from horovod_yolo.cli.train import without_local_rank
from horovod_yolo.config.foreign import OF_TUNING
from horovod_yolo.config.help import group_first
from horovod_yolo.config.load import Parser, train_parser
from horovod_yolo.config.words import spelled, with_words
from horovod_yolo.core.errors import UserError
from horovod_yolo.distributed.backends import note_engine
from horovod_yolo.distributed.launchers.found import launcher
from horovod_yolo.process.portable_bits import begin_again

OWN = ("trials", "space", "prune", "resume", "ranks_per_trial")


def tune_main(argv: Sequence[str]) -> int:
    """Search hyperparameters, on as many ranks as were launched."""
    argv = spelled(argv, tune_parser)
    note_engine(argv)
    begin_again(argv)
    if (code := on_own_ranks("tune", argv, tune_parser)) is not None:
        return code

    if any(word.partition("=")[0] == "--ranks-per-trial" for word in argv):
        return _on_groups(argv)

    def parse() -> Any:
        return _options(argv)

    def job(comm: Any, options: Any, stop: Any) -> None:
        from horovod_yolo.assembly.search import open_search

        log_to_files(comm, options.flags.get("log_dir", ""))
        _take_part(open_search(options, comm), comm, stop)

    return on_ranks_until_stopped(parse, job)


def _on_groups(argv: Sequence[str]) -> int:
    """Several trials at a time, each on a group of the ranks that mpirun has started."""
    from horovod_yolo.assembly.trial_groups import on_groups

    def job(group: Any, search: Any, stop: Any) -> None:
        _take_part(search, group.comm, stop, first=group.number == 0, shown=False)

    return on_groups(lambda: _options(argv), job)


def _take_part(search: Any, comm: Any, stop: Any, *, first: bool = True, shown: bool = True) -> None:
    from horovod_yolo.assembly.tune import tune

    if first and comm.rank == 0:
        again = f"horovod-yolo tune --resume {search.folder}"
        print(f"search {search.folder}  go on after a loss, or join: {again}", flush=True)
    outcome, tells = tune(search, comm, stop, shown=shown)
    if comm.rank == 0 and tells:
        print("\n".join(outcome.lines()), flush=True)


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
    p.foreign = OF_TUNING
    p.usage = "%(prog)s --data FILE --cfg MODEL [--trials N] [flags of train]"
    p.epilog = "Each trial trains with these flags, and with hyperparameters of its own: docs/tune.md."
    for action in p._actions:
        if action.dest == "resume":
            action.help = "go on with a search, or join it: its folder; alone: the newest"
        if action.dest == "project":
            action.help = "folder of the searches (runs/tune)"
    group = group_first(p, "search")
    group.add_argument("--trials", type=int, metavar="N", help="how many settings are tried (30)")
    ranges = "YAML with the ranges: 'lr0: {low: 0.001, high: 0.1, log: true}'; default: the usual ones"
    several = "under mpirun: that many do a trial, and several trials are done at a time"
    group.add_argument("--ranks-per-trial", dest="ranks_per_trial", type=int, metavar="N", help=several)
    group.add_argument("--space", metavar="FILE", help=ranges)
    group.add_argument(
        "--prune",
        action=argparse.BooleanOptionalAction,
        help="end trials that are below the median in the second half of their epochs, the default",
    )
    return with_words(p, "tune")
