"""Survivors bring the last commit to the disk once, and know whether it is there."""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from horovod_yolo.assembly import data
from horovod_yolo.assembly.data import build_data
from horovod_yolo.assembly.elastic import Elastic, save_at_last, save_once
from horovod_yolo.assembly.run import Run, train
from horovod_yolo.checkpoint import store
from horovod_yolo.checkpoint.migration import FORMAT_VERSION
from horovod_yolo.config.schema import TrainConfig
from horovod_yolo.data.spec import load_data_yaml
from tests.helpers.runs import checkpoint, steps

from .test_run import COMM, settings

State = dict[str, object]


def state(step: int, epoch: int = 1) -> State:
    return {"format_version": FORMAT_VERSION, "step": step, "epoch": epoch}


def test_many_survivors_write_one_file(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: save_once(tmp_path, state(7)), range(8)))
    assert store.read(tmp_path / "weights" / "last.pt")["step"] == 7
    assert [path.name for path in (tmp_path / "weights").glob("*.pt")] == ["last.pt"]


def test_what_is_older_makes_way_and_what_is_newer_stays(tmp_path: Path) -> None:
    save_once(tmp_path, state(7))
    save_once(tmp_path, state(9))
    assert store.read(tmp_path / "weights" / "last.pt")["step"] == 9
    assert store.read(tmp_path / "weights" / "last.1.pt")["step"] == 7
    assert save_at_last(tmp_path, state(8)) == tmp_path / "weights" / "last.pt"
    assert store.read(tmp_path / "weights" / "last.pt")["step"] == 9


def test_the_end_of_an_epoch_is_newer_than_its_last_step(tmp_path: Path) -> None:
    save_once(tmp_path, state(9, epoch=1))
    save_once(tmp_path, state(9, epoch=2))
    assert store.read(tmp_path / "weights" / "last.pt")["epoch"] == 2


def test_at_last_it_is_written_where_the_writer_died(tmp_path: Path) -> None:
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / ".saving-1-7").touch()  # its maker is no more
    save_once(tmp_path, state(7))
    assert not (tmp_path / "weights" / "last.pt").exists()
    assert save_at_last(tmp_path, state(7)) == tmp_path / "weights" / "last.pt"


def test_a_folder_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "weights").write_text("a file")
    save_once(tmp_path, state(7))
    assert save_at_last(tmp_path, state(7)) is None


@dataclass(frozen=True)
class Scored:
    micro_batches: int = 1


@pytest.mark.parametrize(
    ("batch", "first", "now", "micro_batches", "in_validation"),
    [
        (16, 4, 4, 1, 1),
        (16, 4, 8, 1, 1),
        (16, 4, 2, 2, 2),
        (16, 4, 1, 4, 4),
        (16, 4, 3, 2, 2),
        (10, 4, 3, 2, 2),
        (9, 4, 3, 1, 2),
        (3, 4, 1, 3, 3),
    ],
)
def test_no_micro_batch_is_larger_than_the_first_slices(
    batch: int, first: int, now: int, micro_batches: int, in_validation: int
) -> None:
    trainer = SimpleNamespace(
        config=TrainConfig(data="", batch_size=batch),
        comm=SimpleNamespace(size=now),
        stepper=SimpleNamespace(model=nn.Sequential(nn.BatchNorm2d(3, momentum=0.1))),
        evaluator=Scored(),
    )
    Elastic(first, lambda _: None, None, None, lambda _: None).attach(trainer)  # type: ignore[arg-type]
    assert (trainer.stepper.micro_batches, trainer.evaluator.micro_batches) == (
        micro_batches,
        in_validation,
    )
    whole, images = nn.BatchNorm2d(3, momentum=0.1), torch.randn(2, 3, 4, 4)
    whole(images)
    for _ in range(micro_batches):
        trainer.stepper.model(images)
    torch.testing.assert_close(trainer.stepper.model[0].running_mean, whole.running_mean)
    torch.testing.assert_close(trainer.stepper.model[0].running_var, whole.running_var)


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
    elastic = Elastic(1, lambda _: None, there.digests, there, kept.append)
    monkeypatch.setattr(data, "build_data", lambda *_: pytest.fail("the data was scanned again"))
    train(Run(here, tmp_path / "run", None, elastic), COMM)
    assert [row["images"] for row in steps(tmp_path / "run")] == [28]
    said = checkpoint(tmp_path / "run")["data"]["train"]
    assert said.keys() == {"digest", "marks"}, "the annotations themselves are in no checkpoint"
    assert [each.train.root for each in kept] == [spec.root]
