"""Runs with ``--teacher``: on any number of ranks, of any two families, resumed, and refused.

The teachers are random, and sure of what they say.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from horovod_yolo.assembly.run import resumed_run
from horovod_yolo.assembly.settings import settings_of
from horovod_yolo.assembly.train import train
from horovod_yolo.checkpoint import store
from horovod_yolo.checkpoint.migration import FORMAT_VERSION
from horovod_yolo.config.schema import TrainConfig, to_dict
from horovod_yolo.core.errors import UserError
from horovod_yolo.data.spec import load_data_yaml
from horovod_yolo.families import zoo
from tests.helpers.runs import (
    checkpoint,
    largest_loss_difference,
    same_bits,
    steps,
    weight_difference,
)
from tests.helpers.tiny_zoo import NAME
from tests.helpers.world import run_world

from .disturbed import job, require_resumed_as_whole
from .test_run import COMM, make_trainer, settings

pytestmark = pytest.mark.usefixtures("tiny")

TERMS = ("teacher_box", "teacher_cls")


def write_teacher(
    file: Path, names: Sequence[str], cfg: str = NAME, seed: int = 3, order: Sequence[int] = ()
) -> Path:
    """A model that is sure; with ``order`` its classes are ``names`` in that order, with their weights."""
    torch.manual_seed(seed)
    model = zoo.build_model(cfg, len(names))
    with torch.no_grad():
        for key, value in model.head.named_parameters():
            if cfg == NAME and key.endswith("bias"):
                value.view(-1, 5 + len(names))[:, 4:] = torch.randn(1 + len(names)) + 1
            elif "cv3" in key and key.endswith("2.bias"):
                value.copy_(torch.randn(len(names)) - 1)
            if order and cfg == NAME:
                rows = value.view(-1, 5 + len(names), value[0].numel())
                rows[:, 5:] = rows[:, 5:][:, list(order)].clone()
    config = settings_of({"data": "d.yaml", "cfg": cfg})
    state = {"format_version": FORMAT_VERSION, "model_name": cfg, "variant": model.variant, "metrics": {}}
    state |= {"ema": {"weights": model.state_dict(), "updates": 1}, "config": to_dict(config)}
    names = [names[k] for k in order] if order else [*names]
    store.write(file, store.serialise({**state, "names": names, "epoch": 1, "step": 1}))
    return file


@pytest.fixture
def names(digits: Path) -> tuple[str, ...]:
    return load_data_yaml(digits).names


@pytest.fixture
def teacher(tmp_path: Path, names: tuple[str, ...]) -> Path:
    return write_teacher(tmp_path / "teacher.pt", names)


def config_of(data: Path, teacher: Path, **changes: Any) -> TrainConfig:
    given = {"cfg": NAME, "batch_size": 13, "noplots": True, "teacher": str(teacher), **changes}
    return settings(data, cache_dir=str(teacher.parent / "cache"), **given)


def test_no_bit_depends_on_the_number_of_ranks(digits: Path, teacher: Path, tmp_path: Path) -> None:
    for size in (1, 2, 4):
        config = config_of(digits, teacher, slices=4, micro_batch=2)
        run_world(size, job(config, tmp_path / str(size)))
    assert steps(tmp_path / "4") == steps(tmp_path / "2") == steps(tmp_path / "1")
    one, two, four = (checkpoint(tmp_path / str(size)) for size in (1, 2, 4))
    assert same_bits(one["model"], two["model"]) and same_bits(one["model"], four["model"])
    assert all(row[f"{term}_loss"] > 0 for row in steps(tmp_path / "1") for term in TERMS)
    header = (tmp_path / "1" / "results.csv").read_text().splitlines()[0]
    assert all(f"train/{term}_loss" in header and f"val/{term}_loss" not in header for term in TERMS)


def test_with_synchronised_batch_norm_neither_but_for_rounding(
    digits: Path, teacher: Path, tmp_path: Path
) -> None:
    for size in (1, 3):
        config = config_of(digits, teacher, sync_bn=True, precision="fp64", multi_scale=True, imgsz=96)
        run_world(size, job(config, tmp_path / str(size)))
    assert largest_loss_difference(tmp_path / "3", tmp_path / "1") < 1e-9
    assert weight_difference(tmp_path / "3", tmp_path / "1") < 1e-9


def test_its_gain_says_how_much_it_counts(digits: Path, teacher: Path, tmp_path: Path) -> None:
    """With none the run is the one without a teacher, but for the two terms."""
    for name, gain in (("nothing", 0.0), ("much", 5.0)):
        config = config_of(digits, teacher, hyp={"distill": gain}, slices=1)
        run_world(1, job(config, tmp_path / name))
    run_world(1, job(replace(config_of(digits, teacher, slices=1), teacher=""), tmp_path / "without"))
    nothing, much, without = (checkpoint(tmp_path / name) for name in ("nothing", "much", "without"))
    assert same_bits(nothing["model"], without["model"])
    assert not same_bits(much["model"], without["model"])
    for taught, alone in zip(steps(tmp_path / "nothing"), steps(tmp_path / "without"), strict=True):
        assert {name: value for name, value in taught.items() if name in alone} == alone


@pytest.mark.parametrize(
    ("of_teacher", "of_student"),
    [("tiny8", NAME), (NAME, "tiny26"), ("tiny26", "tiny8"), ("tiny8", "tiny11")],
)
def test_they_may_be_of_any_two_families(
    digits: Path, tmp_path: Path, names: tuple[str, ...], of_teacher: str, of_student: str
) -> None:
    file = write_teacher(tmp_path / "teacher.pt", names, of_teacher)
    config = config_of(digits, file, cfg=of_student, optimizer="SGD")
    result = run_world(2, job(config, tmp_path / "run"))[0]
    assert all(row[f"{term}_loss"] > 0 for row in steps(tmp_path / "run") for term in TERMS)
    assert result["teacher"] == of_teacher and result["train"]["teacher_cls_loss"] > 0


def test_the_teacher_stays_as_it_is(digits: Path, teacher: Path) -> None:
    trainer, _ = make_trainer(config_of(digits, teacher))
    of_student = {id(p) for p in trainer.stepper.model.parameters()}
    model = trainer.stepper.teacher.model  # type: ignore[union-attr]
    before = {key: value.clone() for key, value in model.state_dict().items()}
    trainer.fit()
    assert same_bits(dict(model.state_dict()), before) and not model.training
    assert not any(p.requires_grad or id(p) in of_student for p in model.parameters())


def test_classes_go_by_name(digits: Path, teacher: Path, tmp_path: Path, names: tuple[str, ...]) -> None:
    """In another order, with a class more, and by a class map."""
    order = [*range(1, len(names)), 0]
    turned = write_teacher(tmp_path / "turned.pt", names, order=order)
    for name, file in (("same", teacher), ("turned", turned)):
        run_world(1, job(config_of(digits, file, slices=1), tmp_path / name))
    assert same_bits(checkpoint(tmp_path / "same")["model"], checkpoint(tmp_path / "turned")["model"])
    renamed = write_teacher(tmp_path / "renamed.pt", ["nought", *names[1:], "dog"])
    with pytest.raises(UserError, match=f"the teacher does not know '{names[0]}'; it knows 'nought'"):
        make_trainer(config_of(digits, renamed))
    make_trainer(config_of(digits, renamed, class_map=(("nought", names[0]),)))


def test_a_resumed_run_ends_as_the_whole_one(digits: Path, teacher: Path) -> None:
    require_resumed_as_whole(config_of(digits, teacher, commit_every=1), moment=1)


def test_a_run_goes_on_with_its_own_teacher_only(
    digits: Path, teacher: Path, tmp_path: Path, names: tuple[str, ...]
) -> None:
    run_world(1, job(config_of(digits, teacher, max_steps=2), tmp_path / "run"))
    other = write_teacher(tmp_path / "other.pt", names, seed=4)
    moved = shutil.move(teacher, tmp_path / "moved.pt")

    def resumed(**given: str) -> Any:
        return train(resumed_run(str(tmp_path / "run"), given, COMM), COMM)

    with pytest.raises(UserError, match=r"other\.pt: this is another teacher than the run's\. name the file"):
        resumed(teacher=str(other))
    with pytest.raises(UserError, match=r"teacher\.pt: No such file"):
        resumed()
    assert resumed(teacher=str(moved))["steps"] == 2
    run_world(1, job(replace(config_of(digits, moved, max_steps=2), teacher=""), tmp_path / "without"))
    with pytest.raises(UserError, match=r"--teacher .*moved\.pt differs from the run's"):
        resumed_run(str(tmp_path / "without"), {"teacher": str(moved)}, COMM)
