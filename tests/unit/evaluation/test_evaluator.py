"""A slice of validation that goes through the network in parts is scored as in one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from horovod_yolo.assembly.build import build_evaluation_loader
from horovod_yolo.core.errors import UserError
from horovod_yolo.core.types import Detections
from horovod_yolo.distributed.local import LocalCommunicator
from horovod_yolo.evaluation.evaluator import Evaluation
from horovod_yolo.training.loop import Trainer

from ..assembly.test_run import make_trainer, settings


@pytest.fixture
def trainer(digits: Path) -> Iterator[Trainer]:
    """In fp64: the kernel that suits a part may sum in another order than the one that suits the whole."""
    made, _ = make_trainer(settings(digits, precision="fp64"))
    yield made
    made.close()


def sizes_of_forwards(trainer: Trainer) -> list[int]:
    """Grows by the images of each pass through the network."""
    sizes: list[int] = []
    trainer.ema.model.register_forward_pre_hook(lambda _, given: sizes.append(len(given[0])))
    return sizes


def test_parts_do_not_change_what_is_found(trainer: Trainer) -> None:
    sizes = sizes_of_forwards(trainer)

    def scored(parts: int) -> tuple[Evaluation, dict[int, Detections]]:
        sizes.clear()
        found: dict[int, Detections] = {}
        evaluator = replace(trainer.evaluator, parts=parts, conf_threshold=1e-6, max_detections=50)
        return evaluator.run(trainer.ema.model, found), found

    whole, found_at_once = scored(1)
    assert sizes == [7]
    in_parts, found = scored(3)
    assert sizes == [2, 2, 3]
    assert len(found) == 7
    for k, one in found_at_once.items():
        assert len(one) == 50, "the network finds something"
        assert torch.equal(one.classes, found[k].classes)
        torch.testing.assert_close(found[k].boxes_xyxy, one.boxes_xyxy, rtol=0, atol=1e-5)
        torch.testing.assert_close(found[k].scores, one.scores, rtol=0, atol=1e-6)
    losses, losses_at_once = ([e.box_loss, e.obj_loss, e.cls_loss] for e in (in_parts, whole))
    np.testing.assert_allclose(losses, losses_at_once, rtol=1e-6)
    assert in_parts.summary.map50 == pytest.approx(whole.summary.map50, abs=1e-6)


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
    evaluator = replace(trainer.evaluator, loader=loader, parts=3)
    with pytest.raises(UserError, match="7 of 7 images cannot be read"):  # no other rank has them here
        evaluator.run(trainer.ema.model)
    assert sizes == [0]
