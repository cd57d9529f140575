"""A run that goes on in another world than it began in."""

from __future__ import annotations

import gc
import shutil
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from horovod_yolo.assembly import data
from horovod_yolo.assembly import train as training
from horovod_yolo.assembly.build import build_trainer
from horovod_yolo.assembly.data import KnownData, build_data
from horovod_yolo.assembly.fitting import passes_of
from horovod_yolo.assembly.run import Elastic, Run
from horovod_yolo.assembly.train import train
from horovod_yolo.data.spec import load_data_yaml
from horovod_yolo.distributed import elastic as worlds
from horovod_yolo.training.loop import Trainer
from tests.helpers.runs import checkpoint, steps

from .test_run import COMM, settings


@pytest.mark.parametrize(
    ("batch", "first", "now", "expected"),
    [
        (16, 4, 4, 1),
        (16, 4, 8, 1),
        (16, 4, 2, 2),
        (16, 4, 1, 4),
        (16, 4, 3, 2),
        (10, 4, 3, 2),
        (9, 4, 3, 1),
        (3, 4, 1, 3),
    ],
)
def test_no_pass_is_larger_than_the_first_slices(
    digits: Path, batch: int, first: int, now: int, expected: int
) -> None:
    assert passes_of(settings(digits, batch_size=batch), now, first, None).count == expected


class LeftError(Exception):
    """The world changes."""


def test_the_world_before_a_change_is_freed_at_once(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainers: list[weakref.ref[Trainer]] = []

    def watched(*parts: Any) -> Trainer:
        trainer = build_trainer(*parts)
        trainers.append(weakref.ref(trainer))
        return trainer

    def leave(_state: dict[str, Any]) -> None:
        raise LeftError

    there_was: list[bool] = []
    monkeypatch.setattr(training, "build_trainer", watched)
    monkeypatch.setattr(worlds.hvd, "shutdown", lambda: there_was.append(trainers[0]() is not None))
    monkeypatch.setattr(worlds, "join", lambda anew: there_was.append(trainers[0]() is not None))
    config = settings(digits, batch_size=28, epochs=1, noplots=True)
    elastic = Elastic(1, leave, KnownData(None, None, lambda _: None))
    run = Run(config, tmp_path, None, elastic)
    gc.disable()
    try:
        with pytest.raises(LeftError):
            train(run, COMM)
        worlds.Kept(600.0, *([lambda *_: None] * 3)).reset()  # type: ignore[arg-type]
    finally:
        gc.enable()
        run.lock.release()  # a job that goes on keeps it
    assert there_was[-1:] == [False], there_was


def test_annotations_that_were_handed_on_have_their_images_where_this_rank_has_them(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of them is gone here: it is replaced, and the epoch has as many as before."""
    config = settings(digits, batch_size=28, epochs=1, noplots=True)
    there = build_data(load_data_yaml(digits), config, COMM)
    shutil.copytree(digits.parent, tmp_path / "here")
    spec = load_data_yaml(tmp_path / "here" / "data.yaml")
    there.train.at(spec.root).image_path(3).unlink()
    here = replace(config, data=str(spec.file))
    kept: list[data.Data] = []
    elastic = Elastic(1, lambda _: None, KnownData(there.digests, there, kept.append))
    monkeypatch.setattr(data, "build_data", lambda *_: pytest.fail("the data was scanned again"))
    train(Run(here, tmp_path / "run", None, elastic), COMM)
    assert [row["images"] for row in steps(tmp_path / "run")] == [28]
    said = checkpoint(tmp_path / "run")["data"]["train"]
    assert said.keys() == {"digest", "marks"}, "the annotations themselves are in no checkpoint"
    assert [each.train.root for each in kept] == [spec.root]
