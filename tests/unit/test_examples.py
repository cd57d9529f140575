"""The example of a model of one's own: the same losses on any number of ranks, and it learns."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from horovod_yolo.distributed.communicator import Communicator
from tests.helpers.world import run_world

EXAMPLE = Path(__file__).resolve().parents[2] / "examples/own_model.py"
STEPS = 25


def test_a_model_of_ones_own_trains_alike_on_any_number_of_ranks() -> None:
    spec = importlib.util.spec_from_file_location("own_model", EXAMPLE)
    assert spec is not None and spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)

    def job(comm: Communicator) -> list[float]:
        losses: list[float] = example.train(comm, STEPS)
        return losses

    (alone,) = run_world(1, job)
    assert len(alone) == STEPS and alone[-1] < 0.5 * alone[0]
    for ranks in (2, 3):
        first, *others = run_world(ranks, job)
        assert first == pytest.approx(alone, rel=1e-4) and all(other == first for other in others)
