"""The loss against loops over every cell, and its promise: the shares of the ranks add up to the whole."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from horovod_yolo.core.slices import of_parts
from horovod_yolo.core.types import Targets
from horovod_yolo.losses.anchor_based import (
    AnchorCriterion,
    LossWeights,
    focal_factor,
    scale_weights,
)
from horovod_yolo.losses.criterion import Loss, by_name, count

STRIDES = (8, 16, 32)
SIZE = (64, 96)  # H, W
ANCHORS_PX = torch.tensor(
    [
        [[10, 13], [16, 30], [33, 23]],
        [[30, 61], [62, 45], [59, 119]],
        [[116, 90], [156, 198], [373, 326]],
    ],
    dtype=torch.float64,
)
EVERY_OPTION = LossWeights(
    box=0.1, obj=0.7, cls=0.3, cls_pw=1.4, obj_pw=0.6, fl_gamma=1.5, label_smoothing=0.1, anchor_t=3.0
)


@dataclass
class Head:
    """What the loss asks of a head."""

    num_classes: int
    strides: tuple[int, ...]
    anchors: Tensor


def make_loss(
    weights: LossWeights,
    classes: int,
    dtype: torch.dtype = torch.float64,
    anchors_px: Tensor = ANCHORS_PX,
    strides: tuple[int, ...] = STRIDES,
) -> AnchorCriterion:
    anchors = anchors_px / torch.tensor(strides, dtype=torch.float64).view(-1, 1, 1)
    return AnchorCriterion(weights, Head(classes, strides, anchors.to(dtype)))


def totals_of(loss: AnchorCriterion, *counts: Tensor) -> dict[str, Tensor]:
    """The counts of all ranks added up."""
    return by_name(loss, torch.stack(counts).sum(0))


def make_predictions(
    batch: int, classes: int, seed: int, dtype: torch.dtype = torch.float64, levels: int = 3
) -> list[Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return [
        torch.randn(batch, 3, SIZE[0] // s, SIZE[1] // s, 5 + classes, generator=rng, dtype=torch.float64)
        .to(dtype)
        .requires_grad_()
        for s in STRIDES[:levels]
    ]


def make_targets(images: Sequence[int], classes: int, seed: int) -> Targets:
    rng = torch.Generator().manual_seed(seed)
    boxes = torch.rand(len(images), 4, generator=rng)
    boxes[:, 2:] = boxes[:, 2:] * 0.5 + 0.05
    return Targets(
        torch.tensor(images, dtype=torch.int64), torch.randint(classes, (len(images),), generator=rng), boxes
    )


def share_of(targets: Targets, start: int, stop: int) -> Targets:
    own = (targets.image >= start) & (targets.image < stop)
    return Targets(targets.image[own] - start, targets.classes[own], targets.boxes_xywhn[own])


def run(loss: AnchorCriterion, predictions: Sequence[Tensor], targets: Targets) -> Loss:
    matches = loss.match(targets, SIZE)
    return loss(predictions, matches, totals_of(loss, count(loss, [matches], predictions[0].shape[0])))


def logistic(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def slow_entropy(logit: float, goal: float, positive_weight: float, gamma: float) -> float:
    p = logistic(logit)
    entropy = -(positive_weight * goal * math.log(p) + (1 - goal) * math.log(1 - p))
    if gamma > 0:
        p_t = goal * p + (1 - goal) * (1 - p)
        entropy *= (goal * 0.25 + (1 - goal) * 0.75) * (1 - p_t) ** gamma
    return entropy


def slow_ciou(a: Sequence[float], b: Sequence[float], eps: float = 1e-7) -> float:
    left, top = max(a[0] - a[2] / 2, b[0] - b[2] / 2), max(a[1] - a[3] / 2, b[1] - b[3] / 2)
    right, bottom = min(a[0] + a[2] / 2, b[0] + b[2] / 2), min(a[1] + a[3] / 2, b[1] + b[3] / 2)
    inter = max(right - left, 0) * max(bottom - top, 0)
    iou = inter / (a[2] * a[3] + b[2] * b[3] - inter + eps)
    hull_w = max(a[0] + a[2] / 2, b[0] + b[2] / 2) - min(a[0] - a[2] / 2, b[0] - b[2] / 2)
    hull_h = max(a[1] + a[3] / 2, b[1] + b[3] / 2) - min(a[1] - a[3] / 2, b[1] - b[3] / 2)
    distance2 = (a[0] - b[0]) ** 2 + (a[1] - b[1]) ** 2
    v = 4 / math.pi**2 * (math.atan(b[2] / (b[3] + eps)) - math.atan(a[2] / (a[3] + eps))) ** 2
    return iou - distance2 / (hull_w**2 + hull_h**2 + eps) - v * v / (v - iou + 1 + eps)


def slow_loss(loss: AnchorCriterion, predictions: list[Tensor], targets: Targets) -> list[float]:
    """box, obj and cls with gains, by loops over matches, classes and cells."""
    w, classes = loss.weights, loss.num_classes
    sums = [0.0, 0.0, 0.0]
    for level, match in enumerate(loss.match(targets, SIZE)):
        raw = predictions[level].tolist()
        goals: dict[tuple[int, int, int, int], float] = {}
        for k in range(len(match)):
            cell = tuple(int(t[k]) for t in (match.image, match.anchor, match.grid_y, match.grid_x))
            b, a, y, x = cell
            tx, ty, tw, th, _, *logits = raw[b][a][y][x]
            aw, ah = (ANCHORS_PX[level, a] / STRIDES[level]).tolist()
            box = (
                2 * logistic(tx) - 0.5,
                2 * logistic(ty) - 0.5,
                (2 * logistic(tw)) ** 2 * aw,
                (2 * logistic(th)) ** 2 * ah,
            )
            ciou = slow_ciou(box, match.boxes_xywh[k].tolist())
            goals[b, a, y, x] = max(goals.get((b, a, y, x), 0.0), ciou)
            sums[0] += w.box * (1 - ciou) / len(match)
            for c, logit in enumerate(logits if classes > 1 else []):
                goal = 1 - w.label_smoothing / 2 if c == match.classes[k] else w.label_smoothing / 2
                sums[2] += w.cls * slow_entropy(logit, goal, w.cls_pw, w.fl_gamma) / (len(match) * classes)
        balance = (4.0, 1.0, 0.4)[level]
        cells = predictions[level].shape[:4].numel()
        for b, image in enumerate(raw):
            for a, plane in enumerate(image):
                for y, row in enumerate(plane):
                    for x, outputs in enumerate(row):
                        entropy = slow_entropy(outputs[4], goals.get((b, a, y, x), 0.0), w.obj_pw, w.fl_gamma)
                        sums[1] += w.obj * balance * entropy / cells
    return sums


@pytest.mark.parametrize("weights", [LossWeights(), EVERY_OPTION], ids=["defaults", "every option"])
@pytest.mark.parametrize("classes", [1, 4])
def test_equals_the_loops(weights: LossWeights, classes: int) -> None:
    loss = make_loss(weights, classes)
    predictions = make_predictions(3, classes, seed=1)
    # 40 boxes in two of three images: cells that several boxes share are among them.
    targets = make_targets([0] * 20 + [2] * 20, classes, seed=2)
    found = run(loss, predictions, targets)
    expected = slow_loss(loss, predictions, targets)
    assert found.terms.tolist() == pytest.approx(expected, rel=1e-9)
    assert found.total.item() == pytest.approx(3 * sum(expected), rel=1e-9)
    assert not found.terms.requires_grad
    assert (found.terms[2] == 0) == (classes == 1)


CUTS = {
    2: [(0, 3), (3, 7)],
    3: [(0, 1), (1, 6), (6, 7)],
    4: [(0, 2), (2, 2), (2, 5), (5, 7)],  # the second rank has no image, the third no object
}


@pytest.mark.parametrize("ranks", CUTS)
@pytest.mark.parametrize(("dtype", "rel"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
@pytest.mark.parametrize("weights", [LossWeights(), EVERY_OPTION], ids=["defaults", "every option"])
def test_shares_of_ranks_add_up(ranks: int, dtype: torch.dtype, rel: float, weights: LossWeights) -> None:
    classes = 3
    loss = make_loss(weights, classes, dtype)
    whole = make_predictions(7, classes, seed=3, dtype=dtype)
    targets = make_targets([0, 0, 1, 1, 1, 5, 6, 6, 6, 6, 0, 1], classes, seed=4)
    expected = run(loss, whole, targets)
    expected.total.backward()

    slices = [[p.detach()[a:b].clone().requires_grad_() for p in whole] for a, b in CUTS[ranks]]
    matches = [loss.match(share_of(targets, a, b), SIZE) for a, b in CUTS[ranks]]
    counts = [count(loss, [m], b - a) for (a, b), m in zip(CUTS[ranks], matches, strict=True)]
    totals = totals_of(loss, *counts)
    shares = [loss(own, m, totals) for own, m in zip(slices, matches, strict=True)]
    for share in shares:
        share.total.backward()

    torch.testing.assert_close(sum(s.total for s in shares), expected.total, rtol=rel, atol=0)
    torch.testing.assert_close(sum(s.terms for s in shares), expected.terms, rtol=rel, atol=0)
    for level, prediction in enumerate(whole):
        joined = torch.cat([own[level].grad for own in slices])  # type: ignore[misc]
        assert prediction.grad is not None
        torch.testing.assert_close(joined, prediction.grad, rtol=rel, atol=rel * 1e-2)


def test_counts_are_the_matches_and_the_images() -> None:
    loss = make_loss(LossWeights(), 2)
    first, second = (loss.match(make_targets(images, 2, seed=5), SIZE) for images in ([0, 4, 4], [1]))
    counts = count(loss, [first, second], 5)
    assert counts.dtype == torch.float64
    expected = [*(len(a) + len(b) for a, b in zip(first, second, strict=True)), 5]
    assert of_parts(counts).tolist() == expected
    names = [f"matches at stride {stride}" for stride in STRIDES]
    assert list(by_name(loss, counts)) == [*names, "images"]


@pytest.mark.parametrize("batch", [0, 2])
@pytest.mark.parametrize("images_elsewhere", [0, 6])
def test_a_rank_without_objects_is_connected_to_every_prediction(batch: int, images_elsewhere: int) -> None:
    loss = make_loss(LossWeights(), 2)
    predictions = make_predictions(batch, 2, seed=0)
    matches = loss.match(make_targets([], 2, seed=0), SIZE)
    totals = totals_of(loss, count(loss, [matches], batch + images_elsewhere))
    share = loss(predictions, matches, totals)
    share.total.backward()
    assert share.terms[0] == 0 and share.terms[2] == 0
    assert (share.terms[1] > 0) == (batch > 0)
    for prediction in predictions:
        assert prediction.grad is not None
        assert bool(prediction.grad.isfinite().all())
        assert bool((prediction.grad[..., 4] != 0).all())
        assert not prediction.grad[..., :4].any() and not prediction.grad[..., 5:].any()


def test_perfect_predictions_cost_almost_nothing() -> None:
    loss = make_loss(LossWeights(), 3)
    predictions = [p.detach() for p in make_predictions(1, 3, seed=0)]
    targets = Targets(torch.tensor([0]), torch.tensor([2]), torch.tensor([[0.51, 0.52, 0.35, 0.5]]))
    matches = loss.match(targets, SIZE)
    assert sum(len(m) for m in matches) > 3
    for p, m in zip(predictions, matches, strict=True):
        p[..., 4:] = -40.0
        cell = (m.image, m.anchor, m.grid_y, m.grid_x)
        boxes = torch.cat(
            ((m.boxes_xywh[:, :2] + 0.5) / 2, (m.boxes_xywh[:, 2:] / m.anchors_wh).sqrt() / 2), 1
        )
        p[(*cell, slice(0, 4))] = torch.logit(boxes)
        p[(*cell, torch.tensor(4))] = 40.0
        p[(*cell, torch.tensor(7))] = 40.0
    share = loss(predictions, matches, totals_of(loss, count(loss, [matches], 1)))
    assert share.terms.max().item() < 1e-5


@settings(max_examples=25)
@given(st.integers(0, 10_000), st.floats(0.1, 30))
def test_bounds(seed: int, spread: float) -> None:
    """1 - CIoU lies in [0, 3), a mean cross-entropy is at least 0; nothing overflows."""
    loss = make_loss(LossWeights(), 3)
    predictions = [
        (p.detach() * spread).requires_grad_() for p in make_predictions(2, 3, seed, torch.float32)
    ]
    share = run(loss, predictions, make_targets([0, 0, 1], 3, seed))
    share.total.backward()
    box, obj, cls = share.terms.tolist()
    assert 0 <= box < 0.05 * 3 * 3
    assert obj >= 0 and cls >= 0
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in predictions)


def test_half_precision_is_computed_in_float32() -> None:
    loss = make_loss(LossWeights(), 3)
    half = [p.detach() for p in make_predictions(2, 3, seed=6, dtype=torch.bfloat16)]
    targets = make_targets([0, 1, 1], 3, seed=7)
    found = run(loss, half, targets)
    assert found.total.dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = run(loss, half, targets)
    assert torch.equal(inside.total, found.total)
    assert torch.equal(found.total, run(loss, [p.float() for p in half], targets).total)


def test_order_of_targets_does_not_change_objectness() -> None:
    loss = make_loss(LossWeights(), 2)
    predictions = make_predictions(1, 2, seed=8)
    box = torch.tensor([[0.5, 0.5, 0.3, 0.4], [0.501, 0.5, 0.2, 0.3]])
    both = [
        Targets(torch.zeros(2, dtype=torch.int64), torch.zeros(2, dtype=torch.int64), b)
        for b in (box, box.flip(0))
    ]
    first, second = (run(loss, predictions, t).terms for t in both)
    assert first[1] == second[1]


def test_focal_factor() -> None:
    logits = torch.tensor([-3.0, 0.0, 2.0, 200.0], dtype=torch.float64, requires_grad=True)
    hits = focal_factor(logits, torch.ones(4, dtype=torch.float64), 2.0)
    misses = focal_factor(logits, torch.zeros(4, dtype=torch.float64), 2.0)
    p = logits.detach().sigmoid()
    torch.testing.assert_close(hits.detach(), 0.25 * (1 - p) ** 2, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(misses.detach(), 0.75 * p**2)
    # Certain and right: a gamma below 1 has an infinite slope at 0, which must not become NaN.
    focal_factor(logits * 10, torch.ones(4, dtype=torch.float64), 0.5).sum().backward()
    assert logits.grad is not None and bool(logits.grad.isfinite().all())


def test_focal_loss_tends_to_balanced_cross_entropy_and_gamma_zero_is_off() -> None:
    predictions, targets = make_predictions(2, 3, seed=9), make_targets([0, 1], 3, seed=10)
    plain = run(make_loss(LossWeights(), 3), predictions, make_targets([], 3, 0))
    almost = LossWeights(fl_gamma=1e-9)
    nearly = run(make_loss(almost, 3), predictions, make_targets([], 3, 0))
    # Without objects every goal is 0, so alpha is 0.75 everywhere.
    assert nearly.terms[1].item() == pytest.approx(0.75 * plain.terms[1].item(), rel=1e-6)
    off = run(make_loss(LossWeights(fl_gamma=0.0), 3), predictions, targets)
    on = run(make_loss(LossWeights(fl_gamma=2.0), 3), predictions, targets)
    assert on.terms[0] == off.terms[0]
    assert on.terms[1] < off.terms[1] and on.terms[2] < off.terms[2]


def test_label_smoothing_moves_goals_towards_one_half() -> None:
    """Smoothing by 1 makes every goal 1/2, so the class does not matter any more."""
    predictions, targets = make_predictions(1, 3, seed=11), make_targets([0, 0, 0], 3, seed=12)
    loss = make_loss(LossWeights(label_smoothing=1.0, cls=1.0), 3)
    other = replace(targets, classes=(targets.classes + 1) % 3)
    found = run(loss, predictions, targets).terms[2]
    assert found == run(loss, predictions, other).terms[2]
    expected = 0.0
    for p, m in zip(predictions, loss.match(targets, SIZE), strict=True):
        logits = p[m.image, m.anchor, m.grid_y, m.grid_x, 5:]
        if len(m):
            expected += F.binary_cross_entropy(logits.sigmoid(), torch.full_like(logits, 0.5)).item()
    assert found.item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(
    ("levels", "balance"),
    [(2, (4.0, 1.0)), (3, (4.0, 1.0, 0.4)), (4, (4.0, 1.0, 0.25, 0.06))],
)
def test_balance_of_the_levels(levels: int, balance: tuple[float, ...]) -> None:
    strides = (8, 16, 32, 64)[:levels]
    anchors = torch.ones(levels, 3, 2, dtype=torch.float64)
    loss = make_loss(LossWeights(), 1, anchors_px=anchors, strides=strides)
    logits = math.log(math.e - 1)  # cross-entropy with goal 0 is log(1 + e^x) = 1
    predictions = [torch.full((1, 3, 64 // s, 64 // s, 6), logits, dtype=torch.float64) for s in strides]
    assert run(loss, predictions, make_targets([], 1, 0)).terms[1].item() == pytest.approx(sum(balance))


def test_scale_weights() -> None:
    weights = LossWeights(box=0.05, obj=1.0, cls=0.5)
    assert scale_weights(weights, num_classes=80, levels=3, imgsz=640) == weights
    scaled = scale_weights(weights, num_classes=20, levels=4, imgsz=1280)
    assert scaled.box == pytest.approx(0.05 * 0.75)
    assert scaled.obj == pytest.approx(4 * 0.75)
    assert scaled.cls == pytest.approx(0.5 * 0.25 * 0.75)
    assert scaled.anchor_t == weights.anchor_t
