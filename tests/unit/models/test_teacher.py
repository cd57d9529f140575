"""A teacher's answers: its detections, with the scores for all classes."""

from __future__ import annotations

import torch

from horovod_yolo.core.types import Decoded
from horovod_yolo.models.suppression import Thresholds, non_max_suppression
from horovod_yolo.models.teacher import CONFIDENCE, IOU, answers_of


def decoded(images: int = 3) -> Decoded:
    rng = torch.Generator().manual_seed(0)
    corner = torch.rand((images, 50, 2), generator=rng) * 40
    boxes = torch.cat((corner, corner + torch.rand((images, 50, 2), generator=rng) * 40), dim=2)
    scores = torch.rand((images, 50, 4), generator=rng) ** 3
    return Decoded(boxes, scores)


def test_they_are_the_detections() -> None:
    of = decoded()
    of.boxes_xyxy[0, 3] = torch.nan
    of.scores[1] = 0.0
    image, boxes, scores = answers_of(of, finds_once=False)
    found = non_max_suppression(of, Thresholds(confidence=CONFIDENCE, iou=IOU, multi_label=False))
    assert image.tolist() == [number for number, one in enumerate(found) for _ in range(len(one))]
    torch.testing.assert_close(boxes, torch.cat([one.boxes_xyxy for one in found]))
    assert torch.equal(scores.amax(1), torch.cat([one.scores for one in found]))
    assert torch.equal(scores.argmax(1), torch.cat([one.classes for one in found]))


def test_of_a_head_that_finds_once_none_is_dropped() -> None:
    of = decoded()
    image, _, scores = answers_of(of, finds_once=True)
    assert len(image) == int((of.scores.amax(2) > CONFIDENCE).sum()) and image.tolist() == sorted(
        image.tolist()
    )
    assert len(scores) > len(answers_of(of, finds_once=False)[0])


def test_of_nothing_there_is_none() -> None:
    for once in (False, True):
        image, boxes, scores = answers_of(
            Decoded(torch.zeros(2, 5, 4), torch.zeros(2, 5, 4)), finds_once=once
        )
        assert (image.shape, boxes.shape, scores.shape) == ((0,), (0, 4), (0, 4))
