"""The confusion matrix and the images with most mistakes: by hand, by a plain loop, and for any split."""

from __future__ import annotations

import numpy as np
import pytest

from horovod_yolo.metrics.matching import FloatArray, ImageDetections, ImageTruths, IntArray
from horovod_yolo.metrics.mistakes import CONFIDENCE, OVERLAP, MistakeCounter, Mistakes
from tests.unit.metrics.references import Sample, random_image

CLASSES = 3


def boxes(*ltwh: tuple[float, float, float, float]) -> FloatArray:
    return np.array(ltwh, np.float64).reshape(-1, 4)


def truths(classes: list[int], *ltwh: tuple[float, float, float, float], crowd: bool = False) -> ImageTruths:
    found = boxes(*ltwh)
    return ImageTruths(found, np.array(classes), np.full(len(classes), crowd), found[:, 2:].prod(axis=1))


def detections(
    classes: list[int], scores: list[float], *ltwh: tuple[float, float, float, float]
) -> ImageDetections:
    return ImageDetections(boxes(*ltwh), np.array(scores), np.array(classes, np.int64))


def mistakes(*samples: Sample) -> Mistakes:
    counter = MistakeCounter(CLASSES)
    for index, sample in enumerate(samples):
        counter.add(index, *sample)
    return Mistakes.merged([counter.state()])


A, B = (0.0, 0.0, 10.0, 10.0), (50.0, 50.0, 10.0, 10.0)


def test_hits_confusions_false_alarms_and_misses() -> None:
    image = (
        truths([0, 1, 2], A, B, (90, 90, 5, 5)),
        detections([0, 2, 1, 0], [0.9, 0.8, 0.7, 0.1], A, B, (200, 0, 9, 9), (90, 90, 5, 5)),
    )
    found = mistakes(image)
    expected = np.zeros((4, 4), int)
    expected[0, 0] = 1  # found
    expected[2, 1] = 1  # taken for another class
    expected[1, 3] = 1  # nothing is there
    expected[3, 2] = 1  # found with too little confidence
    assert (found.matrix == expected).all()
    assert found.images.tolist() == [[0, 2, 2]]


def test_an_image_without_mistakes_is_not_listed() -> None:
    assert len(mistakes((truths([0], A), detections([0], [0.5], A))).images) == 0


def test_the_largest_overlap_is_taken_first() -> None:
    near, exact = (1.0, 0.0, 10.0, 10.0), A
    found = mistakes((truths([0], A), detections([1, 0], [0.99, 0.3], near, exact)))
    assert found.matrix[0, 0] == 1 and found.matrix[1, -1] == 1


def test_a_crowd_is_neither_missed_nor_a_false_alarm() -> None:
    around = (0.0, 0.0, 100.0, 100.0)
    found = mistakes((truths([0], around, crowd=True), detections([0, 1], [0.9, 0.9], A, (300, 300, 9, 9))))
    assert found.matrix.sum() == 1 and found.matrix[1, -1] == 1


def plain(samples: list[Sample]) -> IntArray:
    """One pair after the other."""
    matrix = np.zeros((CLASSES + 1, CLASSES + 1), np.int64)
    for there, found in samples:
        kept = [i for i in range(len(found)) if found.scores[i] >= CONFIDENCE]
        pairs = []
        for i in kept:
            for j in range(len(there)):
                (x, y, w, h), (u, v, a, b) = found.boxes_ltwh[i], there.boxes_ltwh[j]
                shared = max(0, min(x + w, u + a) - max(x, u)) * max(0, min(y + h, v + b) - max(y, v))
                whole = w * h if there.crowd[j] else w * h + a * b - shared
                if whole and shared / whole > OVERLAP:
                    pairs.append((-shared / whole, i, j))
        over_crowds = {i for _, i, j in pairs if there.crowd[j]}
        free, open_ = set(kept), {j for j in range(len(there)) if not there.crowd[j]}
        for _, i, j in sorted(pairs):
            if i in free and j in open_:
                matrix[found.classes[i], there.classes[j]] += 1
                free.remove(i)
                open_.remove(j)
        for i in free - over_crowds:
            matrix[found.classes[i], -1] += 1
        for j in open_:
            matrix[-1, there.classes[j]] += 1
    return matrix


@pytest.mark.parametrize("seed", range(3))
def test_a_plain_loop_counts_the_same_and_any_split_too(seed: int) -> None:
    rng = np.random.default_rng(seed)
    samples = [random_image(rng, CLASSES, 8, 12) for _ in range(40)]
    whole = mistakes(*samples)
    assert (whole.matrix == plain(samples)).all() and whole.matrix.min(axis=None) >= 0
    counters = [MistakeCounter(CLASSES) for _ in range(3)]
    for index in rng.permutation(len(samples)):
        counters[index % 3].add(int(index), *samples[index])
    split = Mistakes.merged([counter.state() for counter in reversed(counters)])
    assert (split.matrix == whole.matrix).all() and (split.images == whole.images).all()
    assert (np.diff(whole.images[:, 1:].sum(axis=1)) <= 0).all()
