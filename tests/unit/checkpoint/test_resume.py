"""Resume finds the newest whole checkpoint and says what it passed over."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from horovod_yolo.checkpoint import resume, store
from horovod_yolo.checkpoint.state import EarlyStopping, Progress, inference_state, training_state
from horovod_yolo.core.errors import UserError


def make_state(step: int) -> dict[str, Any]:
    return training_state(
        model={"w": torch.full((4,), float(step))},
        ema={"weights": {"w": torch.zeros(4)}, "updates": step},
        optimizer={"state": {}, "param_groups": [{"lr": 0.1}, {"lr": 0.2}]},
        scaler={},
        progress=Progress(epoch=2, batch=5, step=step),
        early_stopping=EarlyStopping(),
        metrics={"mAP50": 0.5},
        config={"seed": 0},
        model_name="yolov5n",
        variant={},
        names=("a", "b"),
    )


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder with three generations, of steps 3, 2 and 1."""
    weights = tmp_path / "exp" / "weights"
    weights.mkdir(parents=True)
    for step in (1, 2, 3):
        store.write_rotating(weights / "last.pt", store.serialise(make_state(step)), resume.KEEP)
    return weights.parent


def damage(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.unlink()  # a generation may share its bytes with another by a hard link
    path.write_bytes(data)


def test_the_newest_is_chosen(run: Path) -> None:
    state, path, passed_over = resume.load(run)
    assert (state["step"], path, passed_over) == (3, run / "weights" / "last.pt", [])


@pytest.mark.parametrize(("damaged", "step"), [(1, 2), (2, 1)])
def test_damaged_ones_are_named_and_passed_over(run: Path, damaged: int, step: int) -> None:
    generations = resume.generations(run / "weights")
    for path in generations[:damaged]:
        damage(path)
    state, chosen, passed_over = resume.load(run)
    assert (state["step"], chosen) == (step, generations[damaged])
    assert len(passed_over) == damaged
    for text, path in zip(passed_over, generations, strict=False):
        assert text.startswith(f"{path}: damaged")


def test_damage_at_any_byte_costs_one_generation(run: Path) -> None:
    """100 random bytes, 20 random lengths: the one before it is used, and a line names the damaged one."""
    last, rng = run / "weights" / "last.pt", np.random.default_rng(0)
    whole = last.read_bytes()
    variants = [whole[:length] for length in rng.integers(len(whole), size=20)]
    for place in rng.integers(len(whole), size=100):
        variants.append(
            whole[:place] + bytes([whole[place] ^ (1 << int(rng.integers(8)))]) + whole[place + 1 :]
        )
    for variant in variants:
        last.unlink()
        last.write_bytes(variant)
        state, chosen, passed_over = resume.load(run)
        assert (state["step"], chosen) == (2, run / "weights" / "last.1.pt")
        (line,) = passed_over
        assert line.startswith(f"{last}: ")


def test_a_missing_newest_is_named_too(run: Path) -> None:
    (run / "weights" / "last.pt").unlink()
    state, _, passed_over = resume.load(run)
    assert state["step"] == 2
    assert len(passed_over) == 1 and "last.pt: No such file" in passed_over[0]


def test_nothing_usable_names_all_reasons(run: Path) -> None:
    for path in resume.generations(run / "weights"):
        path.unlink()
        path.write_bytes(b"no")
    with pytest.raises(UserError, match="no checkpoint to resume from") as caught:
        resume.load(run)
    for name in ("last.pt", "last.1.pt", "last.2.pt"):
        assert f"{name}: not a checkpoint" in str(caught.value)


def test_a_file_is_taken_as_named(run: Path) -> None:
    older = run / "weights" / "last.1.pt"
    state, path, passed_over = resume.load(older)
    assert (state["step"], path, passed_over) == (2, older, [])
    damage(older)
    with pytest.raises(UserError, match=r"last\.1\.pt: damaged"):
        resume.load(older)
    with pytest.raises(UserError, match=r"nowhere: No such file"):
        resume.load(run / "nowhere")


def test_weights_alone_are_no_state_to_resume(run: Path) -> None:
    best = run / "weights" / "best.pt"
    store.write(best, store.serialise(inference_state(make_state(3))))
    with pytest.raises(UserError, match=r"best\.pt: holds weights only"):
        resume.load(best)


def test_newest_run_is_the_one_written_last(run: Path) -> None:
    project = run.parent
    for name, time in (("exp2", 300), ("exp10", 200), ("exp3", 100)):
        weights = project / name / "weights"
        weights.mkdir(parents=True)
        store.write(weights / "last.pt", b"x")
        os.utime(weights / "last.pt", ns=(time, time))
    (project / "exp11" / "weights").mkdir(parents=True)  # a run that wrote nothing
    for path in (run / "weights").iterdir():
        os.utime(path, ns=(250, 250))
    assert resume.newest_run(project) == project / "exp2"
    os.utime(run / "weights" / "last.1.pt", ns=(400, 400))
    assert resume.newest_run(project) == run


def test_no_run_to_resume(tmp_path: Path) -> None:
    for project in (tmp_path, tmp_path / "none"):
        with pytest.raises(UserError, match=f"{project}: no run to resume"):
            resume.newest_run(project)


def test_state_holds_what_the_design_promises(run: Path) -> None:
    state = torch.load(run / "weights" / "last.pt", weights_only=True)
    promised = "format_version model ema optimizer scaler schedule sampler rng early_stopping step epoch"
    assert {*promised.split(), "metrics", "config", "names"} <= set(state)
    assert state["sampler"] == {"epoch": 2, "batch": 5}
    assert state["schedule"] == {"last_step": 3, "lr": [0.1, 0.2]}
    assert Progress(**state["progress"]) == Progress(epoch=2, batch=5, step=3)
    assert EarlyStopping(**state["early_stopping"]) == EarlyStopping()
    assert {"format_version", "ema", "metrics", "config", "names"} <= set(inference_state(state))
    assert "optimizer" not in inference_state(state)


def test_random_state_comes_back() -> None:
    before = torch.get_rng_state()
    saved = make_state(1)["rng"]["torch"]
    first = torch.rand(5)
    torch.set_rng_state(saved)
    assert torch.equal(torch.rand(5), first)
    torch.set_rng_state(before)


def test_early_stopping_counts_epochs_without_a_better_one() -> None:
    stopping = EarlyStopping()
    fitness = [0.1, 0.3, 0.3, 0.2, 0.31, 0.1, 0.1, 0.1]
    best = [stopping.update(epoch, value, patience=3) for epoch, value in enumerate(fitness[:-1])]
    assert best == [True, True, False, False, True, False, False]
    assert not stopping.stopped
    stopping.update(7, fitness[7], patience=3)
    assert stopping.stopped
    assert (stopping.best_epoch, stopping.best_fitness) == (4, 0.31)


def test_patience_of_zero_never_stops() -> None:
    stopping = EarlyStopping()
    for epoch in range(300):
        stopping.update(epoch, -float(epoch), patience=0)
    assert not stopping.stopped


def test_what_cannot_be_read_just_now_is_not_given_up(run: Path) -> None:
    """`--resume auto` begins anew over what is damaged, and three commits later that would be gone."""
    for path in resume.generations(run / "weights"):
        path.unlink()
        path.symlink_to(path)  # a loop, which not even root can read
    with pytest.raises(UserError, match="mend the disk, or name another") as caught:
        resume.load(run)
    assert not isinstance(caught.value, resume.NothingWholeError)
    for path in resume.generations(run / "weights"):
        path.unlink()
        path.write_bytes(b"nonsense")
    with pytest.raises(resume.NothingWholeError):
        resume.load(run)
