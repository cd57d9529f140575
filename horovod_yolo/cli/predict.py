"""``horovod-yolo predict``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from horovod_yolo.assembly.job import on_ranks_until_stopped
from horovod_yolo.cli.own_ranks import on_own_ranks, without_wish
from horovod_yolo.config.predict_flags import predict_flags, predict_parser
from horovod_yolo.config.words import spelled
from horovod_yolo.distributed.backends import note_engine


def predict_main(argv: Sequence[str]) -> int:
    """Find objects in pictures, videos and streams, on as many ranks as were launched."""
    argv = spelled(argv, predict_parser)
    note_engine(argv)
    if (code := on_own_ranks("predict", argv, predict_parser)) is not None:
        return code

    def parse() -> Any:
        given = without_wish(predict_flags(argv))
        from horovod_yolo.assembly.predict import PredictOptions

        return PredictOptions(**given)

    def job(comm: Any, options: Any, stop: Any) -> None:
        from horovod_yolo.assembly.predict import predict

        predict(options, comm, stop)

    return on_ranks_until_stopped(parse, job)
