"""The head without anchors: decoding by hand, the beginning, its two heads, classes of other weights."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from horovod_yolo.core.cells import CellMaps, boxes_around, distances_of, distances_to
from horovod_yolo.core.types import Decoded
from horovod_yolo.families.anchor_free.family import CLASS_WIDTH, V8, V11, V26, AnchorFree, distance_head
from horovod_yolo.families.anchor_free.head import DistanceHead, HeadKind
from horovod_yolo.families.zoo import build_model, spec_of
from horovod_yolo.models.blocks import Conv
from horovod_yolo.models.suppression import Thresholds, best_of_each_place

from ..models.helpers import on_meta
from .test_zoo import Affine

KINDS = {"8": V8, "11": V11, "26": V26}
STRIDES = (8, 16)


def head_of(kind: HeadKind, classes: int = 3, width: int | None = None) -> DistanceHead:
    torch.manual_seed(0)
    return DistanceHead((8, 12), classes, STRIDES, 5, kind, width)


def random_maps() -> list[Tensor]:
    return [torch.rand(2, 8, 4, 6), torch.rand(2, 12, 2, 3)]


def test_decode_by_hand() -> None:
    """Level 1, row 1, column 2, that is point (40, 24): distances of a distribution, a score of a logit."""
    sides = [torch.zeros(1, 4 * 16, 4, 6), torch.zeros(1, 4 * 16, 2, 3)]
    logits = [torch.zeros(1, 2, 4, 6), torch.zeros(1, 2, 2, 3)]
    raw = sides[1].view(4, 16, 2, 3)
    for side, bin_ in enumerate((1, 0, 2, 3)):
        raw[side, bin_, 1, 2] = 100.0
    raw[3, 4, 1, 2] = 100.0  # half 3, half 4
    logits[1][0, :, 1, 2] = torch.tensor([1.0, -2.0])
    boxes, scores = head_of(V8, 2).decode({"one2many": CellMaps(sides, logits)})
    assert boxes.shape == (1, 30, 4) and scores.shape == (1, 30, 2)
    assert boxes[0, 24 + 5].tolist() == pytest.approx([40 - 16, 24, 40 + 32, 24 + 3.5 * 16])
    assert scores[0, 24 + 5].tolist() == pytest.approx([1 / (1 + math.exp(-1)), 1 / (1 + math.exp(2))])
    # Level 0, row 2, column 3: with all bins alike the mean is 7.5 cells.
    assert boxes[0, 15].tolist() == pytest.approx([28 - 60, 20 - 60, 28 + 60, 20 + 60])


def test_a_number_may_be_negative() -> None:
    sides = [torch.zeros(1, 4, 1, 1), torch.zeros(1, 4, 1, 1)]
    sides[1][0, :, 0, 0] = torch.tensor([-0.5, 1.0, 2.0, 0.25])
    logits = [torch.zeros(1, 3, 1, 1)] * 2
    boxes, _ = head_of(V26).decode({"one2one": CellMaps(sides, logits)})
    assert boxes[0].tolist() == [[4, 4, 4, 4], [16, -8, 40, 12]]


def test_half_precision_is_decoded_in_float32() -> None:
    maps = CellMaps([torch.randn(1, 64, 4, 4).half()], [torch.randn(1, 3, 4, 4).half()])
    head = DistanceHead((8,), 3, (8,), 5, V8)
    found = head.decode({"one2many": maps})
    exact = head.decode({"one2many": CellMaps(*([m.float() for m in part] for part in maps))})
    assert found.boxes_xyxy.dtype == found.scores.dtype == torch.float32
    assert torch.equal(found.boxes_xyxy, exact.boxes_xyxy) and torch.equal(found.scores, exact.scores)


def test_distances_and_boxes_are_inverse() -> None:
    points, distances = torch.rand(7, 2), distances_of(torch.randn(7, 4))
    torch.testing.assert_close(distances_to(points, boxes_around(points, distances)), distances)


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_it_begins_with_rare_objects_and_two_equal_heads(kind: HeadKind) -> None:
    head = head_of(kind)
    for level, stride in enumerate(STRIDES):
        assert head.cv2[level].get_parameter("2.bias").unique().tolist() == [2.0]
        expected = math.log(5 / 3 / (640 / stride) ** 2)
        assert head.cv3[level].get_parameter("2.bias").tolist() == pytest.approx([expected] * 3)
    if kind.one_to_one:
        for mine, other in ((head.cv2, head.one2one_cv2), (head.cv3, head.one2one_cv3)):
            pairs = zip(mine.state_dict().values(), other.state_dict().values(), strict=True)
            assert all(torch.equal(a, b) and a.data_ptr() != b.data_ptr() for a, b in pairs)
    else:
        assert head.dfl.conv.weight.flatten().tolist() == list(range(16))
        assert not head.dfl.conv.weight.requires_grad


def test_both_heads_see_the_same_maps_and_one_sends_no_gradient_back() -> None:
    head, maps = head_of(V26).eval(), [m.requires_grad_() for m in random_maps()]
    predictions = head(maps)
    for many, one in zip(predictions["one2many"], predictions["one2one"], strict=True):
        assert all(torch.equal(a, b) for a, b in zip(many, one, strict=True)), "equal at the beginning"
    sum(m.sum() for part in predictions["one2one"] for m in part).backward()  # type: ignore[union-attr]
    assert all(m.grad is None for m in maps)
    assert all(p.grad is not None for p in head.one2one_cv3.parameters())


@pytest.mark.parametrize(("classes", "width"), [(3, 64), (80, 80), (200, 100)])
def test_width_of_the_class_branch(classes: int, width: int) -> None:
    shape = on_meta("yolov8n", classes).state_dict()["head.cv3.0.0.conv.weight"].shape
    assert tuple(shape) == (width, 64, 3, 3)


@pytest.mark.parametrize("name", ["yolov8n", "yolo11n", "yolo26n"])
def test_a_files_own_width_can_be_built(name: str) -> None:
    """A model of 3 classes that came from one of 80."""
    with torch.device("meta"):
        model = AnchorFree().build(name, 3, {CLASS_WIDTH: 80})
    state = model.state_dict()
    assert state["head.cv3.2.2.weight"].shape == (3, 80, 1, 1)
    assert sum(80 in value.shape for key, value in state.items() if key.startswith("head.cv3")) > 6
    assert distance_head(model).class_width == 80


@pytest.mark.parametrize("name", ["yolov8n", "yolo26n", "yolov5nu", "yolov3-tinyu"])
def test_empty_batch(name: str) -> None:
    """Shapes in evaluation, and a zero gradient for all that is trained."""
    model = build_model(name, 2).eval()
    for maps in model(torch.zeros(0, 3, 64, 128)).values():
        expected = [(0, 2, 64 // s, 128 // s) for s in spec_of(name).strides]
        assert [tuple(level.shape) for level in maps.logits] == expected
    assert [len(d) for d in model.detect(model(torch.zeros(1, 3, 64, 64)), Thresholds(confidence=1.0))] == [0]
    model.train()
    for module in model.modules():
        if isinstance(module, Conv):
            module.bn = Affine(module.bn.num_features)  # type: ignore[assignment]
    outputs = model(torch.zeros(0, 3, 64, 64)).values()
    sum(level.sum() for maps in outputs for part in maps for level in part).backward()  # type: ignore[union-attr]
    trained = [p for p in model.parameters() if p.requires_grad]
    assert trained and all(p.grad is not None and not p.grad.any() for p in trained)


# Classes of other weights.


def class_rows(weights: dict[str, Tensor], branch: str = "cv3") -> Tensor:
    return weights[f"head.{branch}.1.2.weight"].flatten(1)


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_rows_of_shared_classes_are_taken_and_all_that_knows_no_class(kind: HeadKind) -> None:
    given = {f"head.{key}": torch.randn(value.shape) for key, value in head_of(kind, 2).state_dict().items()}
    head = head_of(kind, 3)
    merged = head.with_classes_of(given, "head.", 2, [2, None])  # their first is our third
    assert set(merged) == {f"head.{name}" for name, _ in head.named_parameters()}
    own = {f"head.{key}": value for key, value in head.state_dict().items()}
    for branch in ("cv3", "one2one_cv3") if kind.one_to_one else ("cv3",):
        rows, fresh, theirs = (class_rows(w, branch) for w in (merged, own, given))
        assert torch.equal(rows[2], theirs[0]) and torch.equal(rows[:2], fresh[:2])
        bias = merged[f"head.{branch}.0.2.bias"]
        assert bias[2] == given[f"head.{branch}.0.2.bias"][0] and bias[0] == own[f"head.{branch}.0.2.bias"][0]
    for key in ("head.cv2.0.2.weight", "head.cv2.1.0.conv.weight"):
        assert torch.equal(merged[key], given[key])
    inner = "head.cv3.0.1.1.conv.weight" if kind.depthwise else "head.cv3.0.1.conv.weight"
    assert torch.equal(merged[inner], given[inner])


def test_rows_that_see_other_channels_stay_new() -> None:
    """And what has the same shape by chance is taken."""
    torch.manual_seed(5)
    given = {
        f"head.{key}": value
        for key, value in DistanceHead((8, 12), 2, STRIDES, 5, V11, 20).state_dict().items()
    }
    head = head_of(V11, 3)
    merged = head.with_classes_of(given, "head.", 2, [0, 1])
    own = {f"head.{name}": value for name, value in head.named_parameters()}
    for level in (0, 1):
        for part in ("weight", "bias"):
            assert f"head.cv3.{level}.2.{part}" not in merged
        depthwise = f"head.cv3.{level}.0.0.conv.weight"
        assert torch.equal(merged[depthwise], given[depthwise])
    assert all(value.shape == own[key].shape for key, value in merged.items())


# Detections of the one-to-one head.


def slow_best(boxes: Tensor, scores: Tensor, thresholds: Thresholds) -> list[tuple[list[float], float, int]]:
    most = min(thresholds.most, len(scores))
    places = sorted(range(len(scores)), key=lambda m: -max(scores[m].tolist()))[:most]
    found = [
        (boxes[m].tolist(), score, c)
        for m in places
        for c, score in enumerate(scores[m].tolist())
        if not thresholds.agnostic or c == scores[m].argmax()
    ]
    return [f for f in sorted(found, key=lambda f: -f[1])[:most] if f[1] > thresholds.confidence]


@pytest.mark.parametrize("agnostic", [False, True])
@pytest.mark.parametrize("most", [3, 17, 300])
def test_nothing_is_suppressed(most: int, agnostic: bool) -> None:
    rng = torch.Generator().manual_seed(most)
    decoded = Decoded(torch.rand(2, 40, 4, generator=rng), torch.rand(2, 40, 3, generator=rng))
    thresholds = Thresholds(confidence=0.3, most=most, agnostic=agnostic)
    for image, found in enumerate(best_of_each_place(decoded, thresholds)):
        expected = slow_best(decoded.boxes_xyxy[image], decoded.scores[image], thresholds)
        assert len(found) == len(expected) > 0
        rows = zip(found.boxes_xyxy.tolist(), found.scores.tolist(), found.classes.tolist(), strict=True)
        assert list(rows) == expected


def test_of_equal_scores_the_first_comes_first_and_what_is_not_finite_never() -> None:
    boxes, scores = torch.arange(24.0).view(1, 6, 4), torch.full((1, 6, 2), 0.5)
    boxes[0, 1, 2], scores[0, 3, 1] = math.inf, math.nan
    (found,) = best_of_each_place(Decoded(boxes, scores), Thresholds(confidence=0.1, most=4))
    assert found.boxes_xyxy[:, 0].tolist() == [0, 0, 8, 8] and found.classes.tolist() == [0, 1, 0, 1]


def test_the_head_that_is_used_decides() -> None:
    model = build_model("yolo26n", 2).eval()
    predictions = model(torch.rand(1, 3, 64, 64))
    everything = Thresholds(confidence=0.0, iou=0.0)
    (one,) = model.detect(predictions, everything)
    model.head.use("one2many")
    (many,) = model.detect(predictions, everything)
    model.head.use("")
    assert model.head.used == "one2one"
    assert len(one) == 84 > len(many) > 0, "boxes that overlap stay"


def test_batch_norm_settings() -> None:
    norms = [m for m in on_meta("yolo26n").modules() if isinstance(m, nn.BatchNorm2d)]
    assert norms and all(m.eps == 1e-3 and m.momentum == 0.03 for m in norms)
