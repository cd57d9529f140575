"""The assignment against loops that follow its rules one by one, and its rules by hand."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from horovod_yolo.core.boxes import complete_iou, xyxy_to_xywh
from horovod_yolo.core.cells import CellMaps, Cells, cells_of
from horovod_yolo.core.types import Targets
from horovod_yolo.losses.candidates import Level, candidates_of
from horovod_yolo.losses.task_aligned import Answers, AssignmentRules, assign_aligned

HEIGHT, WIDTH = 64, 96
STRIDES = (8, 16)
CLASSES = 3
Found = dict[tuple[int, int], tuple[int, float]]  # (image, cell) -> target and score


def cells() -> Cells:
    levels = [torch.zeros(1, 4, HEIGHT // s, WIDTH // s, dtype=torch.float64) for s in STRIDES]
    return cells_of(CellMaps(levels, levels), STRIDES)


def targets_of(rows: Sequence[tuple[int, int, float, float, float, float]]) -> Targets:
    """Image, class, and corners in pixels."""
    table = torch.tensor(rows, dtype=torch.float64).view(-1, 6)
    boxes = xyxy_to_xywh(table[:, 2:]) / torch.tensor([WIDTH, HEIGHT, WIDTH, HEIGHT], dtype=torch.float64)
    return Targets(table[:, 0].long(), table[:, 1].long(), boxes)


def random_targets(images: int, count: int, seed: int) -> Targets:
    rng = torch.Generator().manual_seed(seed)
    centre = torch.rand(count, 2, generator=rng, dtype=torch.float64)
    size = torch.rand(count, 2, generator=rng, dtype=torch.float64).square() * 0.6 + 0.01
    image = torch.randint(images, (count,), generator=rng).sort().values
    boxes = torch.cat((centre, size), dim=1)
    boxes[-1], image[-1] = boxes[0], image[0]  # a duplicate, perhaps of another class
    return Targets(image, torch.randint(CLASSES, (count,), generator=rng), boxes)


def random_predictions(images: int, seed: int) -> tuple[Tensor, Tensor]:
    """Boxes somewhere about their cells, and scores."""
    rng = torch.Generator().manual_seed(seed)
    points = cells().points_px
    shape = (images, len(points), 2)
    first = points - torch.rand(shape, generator=rng, dtype=torch.float64) * 24
    last = points + torch.rand(shape, generator=rng, dtype=torch.float64) * 24
    scores = torch.rand(images, len(points), CLASSES, generator=rng, dtype=torch.float64)
    return torch.cat((first, last), dim=2), scores


def by_loops(
    targets: Targets, boxes: Tensor, scores: Tensor, rules: AssignmentRules, least_side: float
) -> Found:
    """One image, one box and one cell at a time."""
    found: Found = {}
    for image in range(len(boxes)):
        own = [i for i in range(len(targets.image)) if targets.image[i] == image]
        overlaps = candidates_by_loops(targets, own, boxes[image], least_side)
        alignments = {
            (i, c): float(scores[image, c, targets.classes[i]]) ** 0.5 * u**6
            for (i, c), u in overlaps.items()
        }
        picks: dict[int, list[int]] = {}
        for i in own:
            mine = sorted((c for j, c in alignments if j == i), key=lambda c: -alignments[i, c])
            for cell in mine[: rules.most]:
                if alignments[i, cell] > 0:
                    picks.setdefault(cell, []).append(i)
        held: dict[int, list[int]] = {i: [] for i in own}
        for cell, pickers in picks.items():
            wanting = own if len(pickers) > 1 else pickers
            held[max(wanting, key=lambda i: (overlaps.get((i, cell), 0.0), -i))].append(cell)
        for i, mine in held.items():
            mine = sorted(mine, key=lambda c: (-alignments[i, c], c))[: rules.most_after]
            best_u = max((overlaps[i, c] for c in mine), default=0.0)
            best_t = max((alignments[i, c] for c in mine), default=0.0)
            found |= {(image, c): (i, alignments[i, c] * best_u / (best_t + 1e-9)) for c in mine}
    return found


def candidates_by_loops(
    targets: Targets, own: Sequence[int], boxes: Tensor, least_side: float
) -> dict[tuple[int, int], float]:
    """The overlap of each box of an image with each of its candidate cells."""
    size = torch.tensor([WIDTH, HEIGHT, WIDTH, HEIGHT], dtype=torch.float64)
    overlaps = {}
    for i in own:
        truth = targets.boxes_xywhn[i] * size
        x, y, w, h = truth.tolist()
        for cell, (px, py) in enumerate(cells().points_px.tolist()):
            wide, high = max(w, least_side) / 2, max(h, least_side) / 2
            if abs(px - x) < wide - 1e-9 and abs(py - y) < high - 1e-9:
                u = float(complete_iou(truth[None], xyxy_to_xywh(boxes[cell][None])))
                overlaps[i, cell] = max(u, 0.0)
    return overlaps


def as_found(answers: Answers) -> Found:
    places = zip(answers.image.tolist(), answers.cell.tolist(), strict=True)
    values = zip(answers.truth.tolist(), answers.scores.tolist(), strict=True)
    found = dict(zip(places, values, strict=True))
    assert len(found) == len(answers), "each cell once"
    return found


def assigned(
    targets: Targets, boxes: Tensor, scores: Tensor, rules: AssignmentRules, least_side: float = 16
) -> Found:
    levels = [Level(HEIGHT // s, WIDTH // s, s) for s in STRIDES]
    found = candidates_of(targets, (HEIGHT, WIDTH), levels, least_side, torch.float64, torch.device("cpu"))
    answers = assign_aligned(found, boxes, scores.logit(), rules)
    assert torch.equal(answers.classes, targets.classes[answers.truth])
    assert torch.equal(answers.image, targets.image[answers.truth])
    return as_found(answers)


RULES = [
    (AssignmentRules(), 16),
    (AssignmentRules(most=3), 16),
    (AssignmentRules(most=7, most_after=1), 16),
    (AssignmentRules(most=7, most_after=2), 1),
]


@pytest.mark.parametrize(("rules", "least_side"), RULES, ids=str)
@pytest.mark.parametrize("seed", range(3))
def test_as_loops_do_it(rules: AssignmentRules, least_side: float, seed: int) -> None:
    targets = random_targets(3, 14, seed)
    boxes, scores = random_predictions(3, seed)
    expected, found = (f(targets, boxes, scores, rules, least_side) for f in (by_loops, assigned))
    assert len(expected) > 5
    assert {k: v[0] for k, v in found.items()} == {k: v[0] for k, v in expected.items()}
    assert all(found[k][1] == pytest.approx(expected[k][1], rel=1e-9) for k in expected)


def perfect(*places: tuple[int, tuple[float, float, float, float]]) -> tuple[Tensor, Tensor]:
    """Predictions far away, but for some cells whose boxes are given; all scores 1/4."""
    count = len(cells().points)
    boxes = torch.tensor([-200.0, -200.0, -190.0, -190.0], dtype=torch.float64).repeat(1, count, 1)
    for cell, box in places:
        boxes[0, cell] = torch.tensor(box, dtype=torch.float64)
    return boxes, torch.full((1, count, CLASSES), 0.25, dtype=torch.float64)


def test_a_speck_between_the_cells_has_candidates_because_it_is_lengthened() -> None:
    """3 x 3 pixels in the corner of four cells; with sides of 16 the four points around it are inside."""
    speck = (14.5, 14.5, 17.5, 17.5)
    row = WIDTH // 8
    boxes, scores = perfect(*((cell, speck) for cell in (row + 1, row + 2, 2 * row + 1, 2 * row + 2)))
    targets = targets_of([(0, 1, *speck)])
    found = assigned(targets, boxes, scores, AssignmentRules())
    assert sorted(cell for _, cell in found) == [row + 1, row + 2, 2 * row + 1, 2 * row + 2]
    assert assigned(targets, boxes, scores, AssignmentRules(), least_side=8) == {}, "points on its edge"


def test_a_contested_cell_may_go_to_a_box_that_did_not_pick_it() -> None:
    """Two boxes pick the same cell, and a third overlaps more there, but has picked a better one."""
    middle = 3 * (WIDTH // 8) + 5  # point (44, 28)
    predicted = (36.0, 20.0, 52.0, 36.0)
    third = (35.0, 20.0, 52.0, 36.0)
    targets = targets_of([(0, 0, 38.0, 20.0, 50.0, 36.0), (0, 0, 38.0, 20.0, 54.0, 36.0), (0, 1, *third)])
    boxes, scores = perfect((middle, predicted), (middle - 1, third))
    boxes[0, middle - 1, 0] += 0.01
    found = assigned(targets, boxes, scores, AssignmentRules(most=1), least_side=1)
    assert {cell: truth for (_, cell), (truth, _) in found.items()} == {middle: 2, middle - 1: 2}


def test_of_equal_boxes_the_first_gets_the_cells() -> None:
    box = (30.0, 20.0, 58.0, 44.0)
    boxes, scores = perfect(*((cell, box) for cell in range(len(cells().points))))
    found = assigned(targets_of([(0, 2, *box), (0, 2, *box)]), boxes, scores, AssignmentRules())
    assert {truth for truth, _ in found.values()} == {0} and len(found) == 10


def test_the_best_cell_gets_the_best_overlap() -> None:
    """Not its own: what aligns best need not overlap most."""
    box = (32.0, 16.0, 56.0, 40.0)
    near, far = 3 * (WIDTH // 8) + 5, 2 * (WIDTH // 8) + 5
    boxes, scores = perfect((near, box), (far, (32.0, 16.0, 56.0, 38.0)))
    scores[0, near, 0], scores[0, far, 0] = 0.01, 1.0
    found = assigned(targets_of([(0, 0, *box)]), boxes, scores, AssignmentRules())
    assert found[0, far][1] == pytest.approx(1.0, rel=1e-6)
    assert 0 < found[0, near][1] < found[0, far][1]


@pytest.mark.parametrize("images", [0, 2])
def test_without_targets(images: int) -> None:
    boxes, scores = random_predictions(images, 0)
    assert assigned(targets_of([]), boxes, scores, *RULES[2]) == {}


def test_a_batch_is_assigned_as_its_images_are_alone() -> None:
    targets = random_targets(4, 20, 5)
    boxes, scores = random_predictions(4, 5)
    whole = assigned(targets, boxes, scores, AssignmentRules())
    parts: Found = {}
    for image in range(4):
        own = (targets.image == image).nonzero().flatten()
        alone = Targets(torch.zeros_like(own), targets.classes[own], targets.boxes_xywhn[own])
        for (_, cell), (truth, score) in assigned(
            alone, boxes[image, None], scores[image, None], AssignmentRules()
        ).items():
            parts[image, cell] = (int(own[truth]), score)
    assert parts == whole


def test_predictions_that_overlap_nothing_answer_for_nothing() -> None:
    boxes, scores = perfect()
    assert assigned(targets_of([(0, 0, 10.0, 10.0, 50.0, 50.0)]), boxes, scores, AssignmentRules()) == {}
