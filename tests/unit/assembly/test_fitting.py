"""How a slice is split: by what is known to fit, and by what a resumed run has had."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from horovod_yolo.assembly.fitting import most_boxes, passes_of, passes_of_evaluation
from horovod_yolo.assembly.settings import settings_of_state
from horovod_yolo.config.schema import TrainConfig
from horovod_yolo.data.spec import load_data_yaml
from horovod_yolo.models.detector import Detector
from horovod_yolo.training.passes import Passes
from tests.helpers.runs import same_bits
from tests.helpers.scanned import annotations_of

from .test_run import make_trainer, settings

HAD_TWO = {"passes": 2}


def config_of(**changes: Any) -> TrainConfig:
    return TrainConfig(data="d.yaml", cfg="yolov5n", **{"batch_size": 64, **changes})


@pytest.mark.parametrize(
    ("changes", "ranks", "resumed", "expected"),
    [
        ({}, 4, None, Passes(16)),
        ({"micro_batch": "auto"}, 4, None, Passes(16)),  # as long as it is not looked for
        ({"micro_batch": 16}, 4, None, Passes(16)),
        ({"micro_batch": 100}, 4, None, Passes(16)),
        ({"micro_batch": 15}, 4, None, Passes(16, 2)),
        ({"micro_batch": 1}, 4, None, Passes(16, 16)),
        ({"micro_batch": 8}, 8, HAD_TWO, Passes(8, 1)),
        ({"micro_batch": 8}, 2, HAD_TWO, Passes(32, 4)),
        ({"micro_batch": 8, "sync_bn": True}, 8, HAD_TWO, Passes(8, 2)),
        ({"micro_batch": 8, "sync_bn": True}, 2, HAD_TWO, Passes(32, 4)),
        ({"sync_bn": True}, 4, HAD_TWO, Passes(16)),  # of an elastic run that had fewer ranks
    ],
)
def test_passes_follow_from_memory_and_what_batch_norm_sees_from_passes(
    changes: dict[str, Any], ranks: int, resumed: dict[str, Any] | None, expected: Passes
) -> None:
    assert passes_of(config_of(**changes), ranks, ranks, resumed) == expected


@pytest.mark.parametrize(("micro_batch", "passes"), [(0, 1), (16, 1), (8, 2), (5, 4), (1, 16)])
def test_validation_takes_twice_as_many_images_at_a_time(micro_batch: int, passes: int) -> None:
    assert passes_of_evaluation(config_of(micro_batch=micro_batch), 4, 4) == passes


@pytest.mark.parametrize(
    ("passes", "halved"),
    [
        (Passes(8), Passes(8, 2)),
        (Passes(9), Passes(9, 3)),  # of no more than 4
        (Passes(9, 3), Passes(9, 9)),
        (Passes(2), Passes(2, 2)),
        (Passes(9, 9), None),
    ],
)
def test_half_a_pass(passes: Passes, halved: Passes | None) -> None:
    assert passes.halved() == halved


def test_a_full_sample_is_a_mosaic_of_the_fullest_image(digits: Path) -> None:
    annotations = annotations_of(load_data_yaml(digits))
    counts = annotations.counts
    config = settings(digits)
    config = replace(config, hyp=replace(config.hyp, mosaic=0.0))
    assert most_boxes(config, annotations) == max(counts)
    config = replace(config, hyp=replace(config.hyp, mosaic=0.5))
    assert max(counts) + 3 <= most_boxes(config, annotations) <= 4 * max(counts)
    assert most_boxes(replace(config, rect=True), annotations) == max(counts)


def test_a_run_that_did_a_step_again_resumes_to_the_bit(
    digits: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory runs out in the second step, and what is left is enough for half of it."""
    whole, calls = Detector.forward, iter(range(1, 1000))

    def once(self: Detector, images: Tensor) -> Any:
        if next(calls) == 2:
            raise MemoryError
        return whole(self, images)

    config = settings(digits, commit_every=1, noval=True)
    trainer, record = make_trainer(config)
    with monkeypatch.context() as patch:
        patch.setattr(Detector, "forward", once)
        trainer.train_epoch()
    trainer.train_epoch()
    before, after, *_, last = record.states
    assert [state["passes"] for state in (before, after, last)] == [1, 2, 2]
    assert [state["config"]["micro_batch"] for state in (before, after, last)] == [0, 7, 7]
    resumed, again = make_trainer(settings_of_state(after), state=after)
    assert resumed.stepper.passes == Passes(14, 2)
    resumed.train_epoch()
    resumed.train_epoch()
    for part in ("model", "ema", "optimizer", "progress", "config", "passes"):
        mine, theirs = again.states[-1][part], last[part]
        if part == "progress":
            mine, theirs = ({**each, "wall_s": 0} for each in (mine, theirs))
        assert same_bits(mine, theirs), part


@pytest.mark.parametrize(("micro_batch", "said"), [(7, ""), (3, "another --micro-batch from step 2 on")])
def test_a_run_that_goes_on_in_other_passes_says_so(digits: Path, micro_batch: int, said: str) -> None:
    """Batch norm sees other parts of its slices then."""
    trainer, record = make_trainer(settings(digits, commit_every=1, micro_batch=7, noval=True))
    trainer.train_epoch()
    state = record.states[0]
    resumed, again = make_trainer(replace(settings_of_state(state), micro_batch=micro_batch), state=state)
    resumed.train_epoch()
    assert again.states[-1]["arithmetic"]["unlike"] == said
