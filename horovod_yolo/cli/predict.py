"""``horovod-yolo predict``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from horovod_yolo.assembly.job import on_ranks_until_stopped
from horovod_yolo.config.predict_flags import predict_flags
from horovod_yolo.distributed.backends import note_engine


def predict_main(argv: Sequence[str]) -> int:
    """Find objects in pictures, videos and streams, on as many ranks as were launched."""
    note_engine(argv)

    def parse() -> Any:
        given = predict_flags(argv)
        from horovod_yolo.assembly.predict import PredictOptions

        return PredictOptions(**given)

    def job(comm: Any, options: Any, stop: Any) -> None:
        from horovod_yolo.assembly.predict import predict

        predict(options, comm, stop)

    return on_ranks_until_stopped(parse, job)
