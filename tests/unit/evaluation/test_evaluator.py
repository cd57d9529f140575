"""A slice of validation that goes through the network in micro-batches is scored as in one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from horovod_yolo.assembly.build import build_evaluation_loader
from horovod_yolo.core.errors import UserError
from horovod_yolo.core.types import Detections
from horovod_yolo.distributed.local import LocalCommunicator
from horovod_yolo.metrics.scores import Evaluation
from horovod_yolo.models.suppression import Thresholds
from horovod_yolo.training.loop import Trainer

from ..assembly.test_run import make_trainer, settings


@pytest.fixture
def trainer(digits: Path) -> Iterator[Trainer]:
    """In fp64: the kernel that suits a micro-batch may sum in another order than that of the whole."""
    made, _ = make_trainer(settings(digits, precision="fp64"))
    yield made
    made.close()


def sizes_of_forwards(trainer: Trainer) -> list[int]:
    """Grows by the images of each pass through the network."""
    sizes: list[int] = []
    trainer.ema.model.register_forward_pre_hook(lambda _, given: sizes.append(len(given[0])))
    return sizes


def test_micro_batches_do_not_change_what_is_found(trainer: Trainer) -> None:
    sizes = sizes_of_forwards(trainer)

    def scored(micro_batches: int) -> tuple[Evaluation, dict[int, Detections]]:
        sizes.clear()
        found: dict[int, Detections] = {}
        thresholds = Thresholds(confidence=1e-6, most=50)
        evaluator = replace(trainer.evaluator, micro_batches=micro_batches, thresholds=thresholds)
        return evaluator.run(trainer.ema.model, found), found

    whole, found_at_once = scored(1)
    assert sizes == [7]
    split, found = scored(3)
    assert sizes == [3, 2, 2]  # every third image, from the first, the second and the third
    assert len(found) == 7
    for k, one in found_at_once.items():
        assert len(one) == 50, "the network finds something"
        assert torch.equal(one.classes, found[k].classes)
        torch.testing.assert_close(found[k].boxes_xyxy, one.boxes_xyxy, rtol=0, atol=1e-5)
        torch.testing.assert_close(found[k].scores, one.scores, rtol=0, atol=1e-6)
    assert split.losses == pytest.approx(whole.losses, rel=1e-6)
    assert split.summary.map50 == pytest.approx(whole.summary.map50, abs=1e-6)


class WithoutAShare(LocalCommunicator):
    """The first of more ranks than there are images."""

    def __init__(self) -> None:
        super().__init__()
        self.size = 8


def test_a_rank_without_images_takes_part(trainer: Trainer) -> None:
    sizes, annotations = sizes_of_forwards(trainer), trainer.evaluator.annotations
    loader = build_evaluation_loader(
        annotations, WithoutAShare(), imgsz=64, stride=32, batch=28, workers=0, pin_memory=False
    )
    evaluator = replace(trainer.evaluator, loader=loader, micro_batches=3)
    with pytest.raises(UserError, match="7 of 7 images cannot be read"):  # no other rank has them here
        evaluator.run(trainer.ema.model)
    assert sizes == [0]
