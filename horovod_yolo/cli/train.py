"""``train.py`` and ``horovod-yolo train``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from horovod_yolo.assembly.elastic_job import on_elastic_ranks
from horovod_yolo.assembly.job import log_to_files, on_ranks_until_stopped, require_fitting_launch
from horovod_yolo.cli.own_ranks import on_own_ranks, without_wish
from horovod_yolo.config.load import Parser, config_from_flags, train_parser
from horovod_yolo.config.schema import TrainConfig
from horovod_yolo.config.words import spelled, with_words
from horovod_yolo.core.errors import UserError
from horovod_yolo.distributed.backends import note_engine
from horovod_yolo.distributed.launchers.found import launcher
from horovod_yolo.process.portable_bits import begin_again


def train_main(argv: Sequence[str] | None = None, prog: str = "train.py") -> int:
    """Train, on as many ranks as were launched; returns the exit code."""
    argv = spelled(sys.argv[1:] if argv is None else argv, lambda: _parser(prog))
    note_engine(argv)
    begin_again(argv)
    code = on_own_ranks("train", argv, lambda: _parser(prog))
    return _train(argv, prog) if code is None else code


def _parser(prog: str) -> Parser:
    return with_words(train_parser(prog), "train")


def _train(argv: Sequence[str], prog: str) -> int:
    """As one rank of those that were launched."""

    def parse() -> dict[str, Any]:
        given = without_wish(vars(_parser(prog).parse_strictly(without_local_rank(argv))))
        if given.get("resume", "auto") == "auto":
            config_from_flags({name: value for name, value in given.items() if name != "resume"})
        require_fitting_launch(given.get("elastic", False))
        return {"elastic_wait": TrainConfig.elastic_wait, **given} if launcher().restarts_ranks else given

    def start(comm: Any, given: dict[str, Any]) -> Any:
        from horovod_yolo.assembly.run import start_run

        flags = {name: value for name, value in given.items() if name != "resume"}
        return start_run(given.get("resume", ""), flags, comm)

    def job(comm: Any, given: dict[str, Any], stop: Any) -> None:
        log_to_files(comm, given.get("log_dir", ""))
        finish(start(comm, given), comm, stop)

    def elastic_job(comm: Any, given: dict[str, Any], stop: Any, kept: Any) -> None:
        from horovod_yolo.assembly.elastic import elastic_run

        log_to_files(comm, given.get("log_dir", ""))
        finish(elastic_run(lambda: start(comm, given), kept, comm), comm, stop)

    def finish(run: Any, comm: Any, stop: Any) -> None:
        from horovod_yolo.assembly.train import train

        results = train(run, comm, stop)
        if comm.rank == 0:
            metrics = results["metrics"]
            print(f"mAP50 {metrics['mAP50']:.4f}  mAP50-95 {metrics['mAP50-95']:.4f}")
            print(f"weights {run.folder}/weights/best.pt  table {run.folder}/results.csv")
            if not run.config.noplots:
                print(f"curves  {run.folder}/results.png  report {run.folder}/report.html", flush=True)

    if launcher().restarts_ranks:
        return on_elastic_ranks(parse, elastic_job)
    return on_ranks_until_stopped(parse, job)


def without_local_rank(argv: Sequence[str]) -> list[str]:
    """The arguments without that of ``torch.distributed.launch``. Elsewhere it is as unknown as any.

    Raises:
        UserError: it is not what the environment says.
    """
    told = launcher()
    if not told.for_torch:
        return list(argv)
    p = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    p.add_argument("--local-rank", "--local_rank", dest="local_rank")
    known, others = p.parse_known_args(argv)
    if known.local_rank not in (None, str(told.local_rank)):
        raise UserError(
            f"--local-rank {known.local_rank}, but the environment says LOCAL_RANK={told.local_rank}",
            fix="leave --local-rank to the launcher",
        )
    return others
