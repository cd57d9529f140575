"""What a student learns from answers, against a slow loop and by what must not change."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from horovod_yolo.core.boxes import complete_iou, pairwise_iou, xyxy_to_xywh
from horovod_yolo.core.types import Decoded, TaughtTargets
from horovod_yolo.losses.distillation import MOST, taught_sums

CLASSES, PLACES = 3, 40


def student(images: int, seed: int = 0) -> Decoded:
    """Boxes all over 64 x 64 pixels."""
    rng = torch.Generator().manual_seed(seed)
    corner = torch.rand((images, PLACES, 2), generator=rng, dtype=torch.float64) * 40
    size = torch.rand((images, PLACES, 2), generator=rng, dtype=torch.float64) * 30 + 4
    scores = torch.rand((images, PLACES, CLASSES), generator=rng, dtype=torch.float64)
    return Decoded(torch.cat((corner, corner + size), 2).requires_grad_(), scores.requires_grad_())


def answers(images: list[int], seed: int = 1) -> TaughtTargets:
    rng = torch.Generator().manual_seed(seed)
    corner = torch.rand((len(images), 2), generator=rng, dtype=torch.float64) * 30
    boxes = torch.cat((corner, corner + 25), dim=1)
    scores = torch.rand((len(images), CLASSES), generator=rng, dtype=torch.float64)
    nothing = torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4)
    return TaughtTargets(*nothing, torch.tensor(images, dtype=torch.int64), boxes, scores)


def by_hand(decoded: Decoded, targets: TaughtTargets, most: int) -> list[float]:
    """One prediction and one answer after the other."""
    box = divergence = 0.0
    for image in range(len(decoded.scores)):
        boxes, scores = decoded.boxes_xyxy[image].detach(), decoded.scores[image].detach()
        mine = [k for k, of in enumerate(targets.taught_image.tolist()) if of == image]
        alignments, picks = {}, {}
        for k in mine:
            wanted, taught = targets.taught_xyxy[k], targets.taught_scores[k]
            overlaps = pairwise_iou(wanted[None], boxes)[0]
            found = {}
            for j, (x, y) in enumerate(((boxes[:, :2] + boxes[:, 2:]) / 2).tolist()):
                if wanted[0] <= x <= wanted[2] and wanted[1] <= y <= wanted[3]:
                    found[j] = float(scores[j, taught.argmax()] ** 0.5 * overlaps[j] ** 6)
            best = sorted((j for j in found if found[j] > 0), key=lambda j: -found[j])[:most]
            alignments[k] = found
            picks |= {(k, j): float(overlaps[j]) for j in best}
        for j in {j for _, j in picks}:
            k = max((k for k, place in picks if place == j), key=lambda k: picks[k, j])
            share = alignments[k][j] / max(alignments[k].values())
            wanted, taught = targets.taught_xyxy[k], targets.taught_scores[k]
            overlap = complete_iou(xyxy_to_xywh(boxes[j][None]), xyxy_to_xywh(wanted[None]))
            box += float(taught.max() * share * (1 - overlap))
            for p, t in zip(scores[j].tolist(), (taught * share).tolist(), strict=True):
                divergence += t * math.log(t / p) + (1 - t) * math.log((1 - t) / (1 - p))
    return [box, divergence]


@pytest.mark.parametrize("once", [False, True])
@pytest.mark.parametrize("images", [[0, 0, 0, 2, 2], [1], []])
def test_as_by_hand(images: list[int], once: bool) -> None:
    decoded, targets = student(3), answers(images)
    found = taught_sums(decoded, targets, once)
    assert found.tolist() == pytest.approx(by_hand(decoded, targets, 1 if once else MOST), rel=1e-4)
    assert bool(found.any()) == bool(images)


def test_images_add_up() -> None:
    """So they do wherever they are: on one rank or on several."""
    decoded, targets = student(3), answers([0, 0, 1, 2, 2, 2])
    apart = []
    for image in range(3):
        mine = targets.taught_image == image
        of = torch.zeros(int(mine.sum()), dtype=torch.int64)
        taught = {"taught_xyxy": targets.taught_xyxy[mine], "taught_scores": targets.taught_scores[mine]}
        alone = replace(targets, taught_image=of, **taught)
        one = Decoded(decoded.boxes_xyxy[image : image + 1], decoded.scores[image : image + 1])
        apart.append(taught_sums(one, alone, False))
    torch.testing.assert_close(torch.stack(apart).sum(0), taught_sums(decoded, targets, False))


def test_who_knows_it_learns_nothing_more() -> None:
    targets = answers([0, 0])
    known = Decoded(targets.taught_xyxy[None].clone(), targets.taught_scores[None].clone())
    leaves = [part.requires_grad_() for part in known]
    sums = taught_sums(known, targets, True)
    assert sums.abs().max() < 1e-6
    assert all(float(grad.abs().max()) < 1e-3 for grad in torch.autograd.grad(sums[1], leaves[1:]))


def test_small_steps_lead_to_the_teacher() -> None:
    decoded, targets = student(1), answers([0, 0])
    boxes, scores = decoded.boxes_xyxy.detach().clone(), decoded.scores.detach().clone()
    found: list[Tensor] = []
    for _ in range(60):
        one = Decoded(boxes.requires_grad_(), scores.requires_grad_())
        sums = taught_sums(one, targets, True)
        found.append(sums.detach())
        of_boxes, of_scores = torch.autograd.grad(sums.sum(), (boxes, scores))
        boxes, scores = (boxes - 4 * of_boxes).detach(), (scores - 0.01 * of_scores).detach()
    assert (found[-1] < found[0]).all()
    assert found[-1].sum() < 0.25 * found[0].sum()
