"""What checkpoints and results.json keep of a validation."""

from __future__ import annotations

import numpy as np
import pytest

from horovod_yolo.metrics.scores import Evaluation, metrics_of
from tests.unit.metrics.references import accumulate, random_image


def test_the_fitness_of_yolov5() -> None:
    rng = np.random.default_rng(0)
    summary = accumulate([random_image(rng, 2, 12, 15) for _ in range(20)], 2).summary()
    assert 0 < summary.map50_95 < summary.map50 < 1
    kept = metrics_of(Evaluation(summary, {"box": 0.5}), ["a", "b"])
    assert kept["fitness"] == pytest.approx(0.1 * kept["mAP50"] + 0.9 * kept["mAP50-95"])
    assert kept["mAP50"] == pytest.approx(summary.map50) and kept["val_loss"] == {"box": 0.5}


def test_a_family_may_weigh_the_fitness_otherwise() -> None:
    rng = np.random.default_rng(0)
    summary = accumulate([random_image(rng, 2, 12, 15) for _ in range(20)], 2).summary()
    kept = metrics_of(Evaluation(summary, {}, fitness_weights=(0.0, 1.0)), ["a", "b"])
    assert kept["fitness"] == kept["mAP50-95"] > 0
