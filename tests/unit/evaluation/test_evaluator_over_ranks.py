"""Validation is sharded without padding, and its numbers do not depend on the number of ranks."""

from __future__ import annotations

import copy
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from horovod_yolo.assembly.build import build_evaluation_loader
from horovod_yolo.core.errors import StoppedError, UserError
from horovod_yolo.core.precision import Precision
from horovod_yolo.core.types import Detections
from horovod_yolo.data.annotations import Annotations
from horovod_yolo.data.digits import make_digits
from horovod_yolo.data.spec import load_data_yaml
from horovod_yolo.distributed.communicator import Communicator
from horovod_yolo.distributed.local import LocalCommunicator
from horovod_yolo.evaluation.evaluator import Evaluator
from horovod_yolo.metrics.scores import Evaluation
from horovod_yolo.models.detector import Detector
from horovod_yolo.process.stop import StopRequest
from tests.helpers.scanned import annotations_of
from tests.helpers.tiny import CLASSES, STRIDES, tiny_criterion, tiny_detector
from tests.helpers.world import WorldCommunicator, run_world, world_outcomes

from ..training.test_step import make_stepper

SIZE, BATCH = 128, 8
FP64 = Precision(device=torch.device("cpu"), dtype=torch.float64)


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Annotations:
    """27 images, the digits as three classes, which even a tiny network learns to hit."""
    folder = tmp_path_factory.mktemp("three_classes") / "data"
    make_digits(folder, images=34, size=SIZE, seed=1)
    for label in (folder / "labels").rglob("*.txt"):
        rows = [line.split() for line in label.read_text().splitlines()]
        label.write_text("".join(f"{int(row[0]) % CLASSES} {' '.join(row[1:])}\n" for row in rows))
    names = list("abc"[:CLASSES])
    (folder / "data.yaml").write_text(f"path: .\ntrain: images/train\nval: images/val\nnames: {names}\n")
    spec = load_data_yaml(folder / "data.yaml")
    return annotations_of(spec)


def evaluator_of(digits: Annotations, comm: Communicator) -> Evaluator:
    loader = build_evaluation_loader(
        digits, comm, imgsz=SIZE, stride=max(STRIDES), batch=BATCH, workers=0, pin_memory=False
    )
    return Evaluator(annotations=digits, loader=loader, criterion=tiny_criterion(), comm=comm, precision=FP64)


@pytest.fixture(scope="module")
def model(digits: Annotations) -> Detector:
    """A network that has learned just enough to hit something."""
    detector = tiny_detector()
    stepper = make_stepper(detector, name="AdamW", lr=0.01)
    loader = evaluator_of(digits, LocalCommunicator()).loader
    for _ in range(15):
        for batch in loader.epoch(0):
            stepper.step(iter([batch]), [1.0]).result()
    return detector


def scored(
    digits: Annotations, model: Detector, comm: Communicator
) -> tuple[Evaluation, dict[int, Detections]]:
    found: dict[int, Detections] = {}
    return evaluator_of(digits, comm).run(copy.deepcopy(model), found), found


@pytest.mark.parametrize("size", [1, 2, 3, 4, 8])
def test_any_number_of_ranks_gives_the_same_numbers(digits: Annotations, model: Detector, size: int) -> None:
    """Also where some of them have no share of the last batch."""
    expected, found_alone = scored(digits, model, LocalCommunicator())
    assert expected.summary.map50 > 0.01, "the network finds nothing, so the comparison says nothing"
    ranks = run_world(size, lambda comm: scored(digits, model, comm))
    for evaluation, _ in ranks:
        np.testing.assert_equal(asdict(evaluation.summary), asdict(expected.summary))
        assert evaluation.losses == ranks[0][0].losses, "alike to the bit"
        assert evaluation.losses == pytest.approx(expected.losses, rel=1e-9)
    found = {image: detections for _, of_rank in ranks for image, detections in of_rank.items()}
    assert sum(len(of_rank) for _, of_rank in ranks) == len(found) == len(digits), "each image once"
    for image, detections in found_alone.items():
        assert torch.equal(detections.scores, found[image].scores)
        assert torch.equal(detections.boxes_xyxy, found[image].boxes_xyxy)


def test_a_stop_that_one_rank_was_asked_for_ends_all_in_the_same_batch(
    digits: Annotations, model: Detector
) -> None:
    def job(comm: WorldCommunicator) -> tuple[list[str], int]:
        stop = StopRequest()
        stop.agree_from_here()
        evaluator = replace(evaluator_of(digits, comm), stop=stop)
        own, batches = copy.deepcopy(model), list[None]()

        def count(*_: object) -> None:
            batches.append(None)
            if (comm.rank, len(batches)) == (1, 2):
                stop.ask()

        own.register_forward_pre_hook(count)
        with pytest.raises(StoppedError):
            evaluator.run(own)
        return [call.name for call in comm.calls], len(batches)

    assert run_world(3, job) == [(["validation.normalisers"] * 3, 2)] * 3


def test_images_that_are_gone_end_all_ranks_with_the_same_words(
    digits: Annotations, model: Detector, tmp_path: Path
) -> None:
    elsewhere = digits.at(tmp_path)
    outcomes = world_outcomes(3, lambda comm: scored(elsewhere, model, comm))
    assert [type(outcome) for outcome in outcomes] == [UserError] * 3
    assert len({str(outcome) for outcome in outcomes}) == 1
    assert "27 of 27 images cannot be read" in str(outcomes[0])
