"""Ranks whose processors round otherwise are noticed after each epoch, and go on with rank 0's weights."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from threading import current_thread
from typing import Any

import pytest
from torch import Tensor

from horovod_yolo.assembly.build import build_trainer
from horovod_yolo.assembly.data import build_data
from horovod_yolo.data.spec import load_data_yaml
from horovod_yolo.distributed.agreement import checksum
from horovod_yolo.distributed.communicator import Communicator
from horovod_yolo.training import musgd, step
from tests.helpers.runs import same_bits
from tests.helpers.world import run_world

from ..assembly.test_run_over_ranks import config_of

pytestmark = pytest.mark.usefixtures("tiny")

WORDS = "weights on ranks 1 differ from rank 0's"


def trained(digits: Path, folder: Path, **changes: Any) -> list[dict[str, Any]]:
    """What three ranks have in the end."""
    config = config_of(digits, folder, precision="fp32", **changes)

    def job(comm: Communicator) -> dict[str, Any]:
        data = build_data(load_data_yaml(digits), config, comm)
        trainer = build_trainer(config, data, comm, [], None)
        trainer.fit()
        trainer.close()
        return trainer.state()

    return run_world(3, job)


def on_rank_1(whole: Callable[..., Any], change: Callable[[Any], Any]) -> Callable[..., Any]:
    def unlike(*given: Any, **named: Any) -> Any:
        found = whole(*given, **named)
        return change(found) if current_thread().name == "rank 1" else found

    return unlike


def a_bit_longer(matrices: Sequence[Tensor]) -> list[Tensor]:
    return [matrix * (1 + 1e-6) for matrix in matrices]


@pytest.mark.parametrize("optimizer", ["MuSGD", "AdamW"])
@pytest.mark.parametrize("sync_bn", [False, True])
def test_all_go_on_with_the_weights_of_rank_0(
    digits: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    optimizer: str,
    sync_bn: bool,
) -> None:
    caplog.set_level(logging.DEBUG)
    if optimizer == "MuSGD":
        monkeypatch.setattr(musgd, "orthogonal", on_rank_1(musgd.orthogonal, a_bit_longer))
    else:
        norm = step.nn.utils.clip_grad_norm_

        def rounded(parameters: Sequence[Tensor], most: float) -> Tensor:
            return norm(parameters, most * (1 + 1e-3 * (current_thread().name == "rank 1")))

        monkeypatch.setattr(step.nn.utils, "clip_grad_norm_", rounded)
        monkeypatch.setattr(step, "LARGEST_GRADIENT_NORM", 0.01)
    states = trained(digits, tmp_path, optimizer=optimizer, sync_bn=sync_bn, epochs=2)
    for part in ("model", "ema", "optimizer"):
        assert all(same_bits(state[part], states[0][part]) for state in states), part
    said = [record for record in caplog.records if WORDS in record.getMessage()]
    assert {state["arithmetic"]["unlike"] for state in states} == {
        f"after step {states[0]['step'] // 2} ranks had other weights than rank 0"
    }
    levels = [logging.INFO, logging.DEBUG]
    assert [record.levelno for record in said if record.threadName == "rank 0"] == levels


def test_like_ranks_hear_nothing(digits: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    states = trained(digits, tmp_path, optimizer="MuSGD", epochs=1)
    assert len({checksum(state["model"]) for state in states}) == 1
    assert "differ from rank 0's" not in caplog.text
    assert not states[0]["arithmetic"]["unlike"]
