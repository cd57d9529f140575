"""Whole runs of one rank: exact resume at awkward moments, and mistakes that are noticed before training."""

from __future__ import annotations

import copy
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from horovod_yolo.assembly.build import build_trainer
from horovod_yolo.assembly.data import build_data
from horovod_yolo.assembly.run import new_run, resumed_run, start_run
from horovod_yolo.assembly.run_lock import NAME, RunLock
from horovod_yolo.assembly.settings import settings_of
from horovod_yolo.assembly.train import train
from horovod_yolo.assembly.validate import ValOptions
from horovod_yolo.checkpoint import store
from horovod_yolo.config.schema import TrainConfig
from horovod_yolo.core.errors import UserError
from horovod_yolo.data.spec import load_data_yaml
from horovod_yolo.distributed.local import LocalCommunicator
from horovod_yolo.evaluation.evaluator import Evaluator
from horovod_yolo.training.events import Callback, EpochReport
from horovod_yolo.training.loop import Trainer
from horovod_yolo.training.step import Stepper

COMM = LocalCommunicator()


class Recorder(Callback):
    """Keeps every committed state."""

    def __init__(self) -> None:
        self.states: list[dict[str, Any]] = []
        self.epochs: list[EpochReport] = []

    def on_commit(self, state: dict[str, Any], best: bool) -> None:
        self.states.append(copy.deepcopy(state))

    def on_epoch(self, report: EpochReport) -> None:
        self.epochs.append(report)


def settings(data: Path, **changes: Any) -> TrainConfig:
    values: dict[str, Any] = {"cfg": "yolov5n", "imgsz": 64, "batch_size": 14, "epochs": 2, "workers": 0}
    return settings_of({"data": str(data), **values, "device": "cpu", **changes})


def make_trainer(config: TrainConfig, *, state: dict[str, Any] | None = None) -> tuple[Trainer, Recorder]:
    recorder = Recorder()
    data = build_data(load_data_yaml(Path(config.data)), config, COMM)
    return build_trainer(config, data, COMM, [recorder], state), recorder


@pytest.fixture(scope="module")
def whole(digits: Path) -> Recorder:
    """A run of two epochs of two batches, each step committed."""
    trainer, recorder = make_trainer(settings(digits, commit_every=1))
    trainer.fit()
    return recorder


def equal(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(equal, a, b))
    return bool(a == b)


def test_each_step_and_epoch_is_committed(whole: Recorder) -> None:
    moments = [(s["sampler"]["epoch"], s["sampler"]["batch"], s["step"]) for s in whole.states]
    assert moments == [(0, 1, 1), (0, 2, 2), (1, 0, 2), (1, 1, 3), (1, 2, 4), (2, 0, 4)]


@pytest.mark.parametrize("noval", [False, True])
def test_data_workers_of_the_validation_begin_beside_the_step_before_it(
    noval: bool, digits: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer, _ = make_trainer(settings(digits, noval=noval))
    moments: list[str] = []

    def told(owner: type, name: str) -> None:
        done = getattr(owner, name)

        def tell(*given: Any) -> Any:
            moments.append(name)
            return done(*given)

        monkeypatch.setattr(owner, name, tell)

    told(Stepper, "step")
    told(Evaluator, "prepare")
    told(Evaluator, "run")
    trainer.fit()
    first = [] if noval else ["prepare", "run"]
    assert moments == ["step", *first[:1], "step", *first[1:], "step", "prepare", "step", "run"]


@pytest.mark.parametrize("moment", [0, 1, 2, 4])
def test_a_resumed_run_ends_as_the_whole_one(digits: Path, whole: Recorder, moment: int) -> None:
    """Also from the commit on the last step of an epoch, whose validation is still to come."""
    config = settings(digits, commit_every=1)
    trainer, resumed = make_trainer(config, state=copy.deepcopy(whole.states[moment]))
    trainer.fit()
    last, expected = resumed.states[-1], whole.states[-1]
    for key in ("model", "ema", "optimizer", "metrics", "early_stopping", "rng", "step", "epoch"):
        assert equal(last[key], expected[key]), key
    assert resumed.epochs[-1].losses == whole.epochs[-1].losses


@pytest.mark.parametrize("optimizer", ["SGD", "AdamW", "MuSGD"])
def test_what_a_run_begins_from_does_not_change_with_it(digits: Path, optimizer: str) -> None:
    """An elastic run that loses a rank before its next commit begins from the same state once more."""
    config = settings(digits, max_steps=1, optimizer=optimizer)
    trainer, recorder = make_trainer(config)
    trainer.fit()
    state, kept = recorder.states[-1], copy.deepcopy(recorder.states[-1])
    trainer, _ = make_trainer(replace(config, max_steps=2), state=state)
    trainer.fit()
    assert trainer.progress.step == 2
    for key, value in state.items():
        assert equal(value, kept[key]), key


def test_torchs_generator_goes_on_where_it_was(digits: Path, whole: Recorder) -> None:
    state = copy.deepcopy(whole.states[0])
    state["rng"]["torch"] = torch.Generator().manual_seed(12345).get_state()
    make_trainer(settings(digits), state=state)
    assert torch.rand(()) == torch.rand((), generator=torch.Generator().manual_seed(12345))


def test_a_run_that_is_over_has_nothing_to_do(digits: Path, whole: Recorder) -> None:
    trainer, recorder = make_trainer(settings(digits), state=copy.deepcopy(whole.states[-1]))
    trainer.fit()
    assert trainer.done and not recorder.states


def test_max_steps_ends_within_an_epoch(digits: Path) -> None:
    trainer, recorder = make_trainer(settings(digits, max_steps=1))
    trainer.fit()
    (state,) = recorder.states
    assert (state["step"], state["sampler"]) == (1, {"epoch": 0, "batch": 1})
    assert recorder.epochs[0].evaluation is not None
    assert recorder.epochs[0].images == 14


def saved(folder: Path, state: dict[str, Any]) -> Path:
    path = folder / "exp" / "weights" / "last.pt"
    path.parent.mkdir(parents=True)
    store.write(path, store.serialise(state))
    return path


def test_a_run_started_from_weights_alone_can_be_resumed(
    digits: Path, whole: Recorder, tmp_path: Path
) -> None:
    start = saved(tmp_path, whole.states[0])
    config = replace(settings(digits, weights=str(start), max_steps=1), cfg="")
    trainer, recorder = make_trainer(config)
    assert trainer.stepper.model.name == "yolov5n"
    trainer.fit()
    start.unlink()  # a resumed run needs its own checkpoint only
    resumed, _ = make_trainer(config, state=recorder.states[-1])
    assert equal(resumed.stepper.model.state_dict(), recorder.states[-1]["model"])


def test_weights_are_the_averaged_ones(digits: Path, whole: Recorder, tmp_path: Path) -> None:
    path = saved(tmp_path, whole.states[3])
    trainer, _ = make_trainer(settings(digits, weights=str(path)))
    assert equal(trainer.stepper.model.state_dict(), whole.states[3]["ema"]["weights"])


def test_mistakes_are_noticed_before_training(digits: Path, whole: Recorder, tmp_path: Path) -> None:
    path = str(saved(tmp_path, whole.states[0]))
    for changes, message in (
        ({"cfg": "yolov5s", "weights": path}, "weights are of yolov5n, not of yolov5s"),
        ({"weights": str(digits)}, "no file of torch.save, safetensors or horovod_yolo"),
        ({"weights": "none.pt"}, "none.pt: No such file"),
        ({"freeze": [25]}, "--freeze leaves nothing to train"),
        ({"device": "gpu"}, "--device is 'gpu'"),
        ({"device": "99"}, "--device names GPU 99"),
    ):
        with pytest.raises(UserError, match=message):
            make_trainer(settings(digits, **changes))


def test_mistakes_are_noticed_before_a_folder_is_made(digits: Path, tmp_path: Path) -> None:
    project = tmp_path / "runs"
    with pytest.raises(UserError, match="unknown model 'yolov5q'"):
        new_run(settings(digits, cfg="yolov5q", project=str(project)), COMM)
    assert not project.exists()
    run = new_run(settings(digits, project=str(project), name="a"), COMM)
    assert (run.folder, run.state) == (project / "a", None)


def test_a_start_that_failed_leaves_no_empty_folder(digits: Path, tmp_path: Path) -> None:
    none = tmp_path / "none.yaml"
    run = new_run(settings(none, project=str(tmp_path), name="a"), COMM)
    with pytest.raises(UserError, match=r"none\.yaml"):
        train(run, COMM)
    assert not run.folder.exists()
    run = new_run(settings(digits, project=str(tmp_path), name="a", device="99"), COMM)
    with pytest.raises(UserError, match="GPU 99"):
        train(run, COMM)
    assert not run.folder.exists()
    run = new_run(settings(none, project=str(tmp_path), name="a"), COMM)
    (run.folder / "mine.txt").touch()
    with pytest.raises(UserError):
        train(run, COMM)
    assert sorted(path.name for path in run.folder.iterdir()) == ["mine.txt", "weights"]


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"workers": 3, "device": "cpu", "cache": "ram"},
        {"epochs": 2, "batch_size": 14},
        {"freeze": [0]},
        {"project": "elsewhere", "name": "other", "exist_ok": True},
    ],
)
def test_flags_that_a_resumed_run_takes(whole: Recorder, tmp_path: Path, given: dict[str, Any]) -> None:
    path = saved(tmp_path, whole.states[0])
    for target in (path, path.parent.parent):
        run = resumed_run(str(target), given, COMM)
        assert run.folder == path.parent.parent
        assert run.state is not None and run.state["step"] == 1
        for name in ("workers", "cache"):
            assert getattr(run.config, name) == given.get(name, whole.states[0]["config"][name])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"epochs": 3}, "--resume: --epochs 3 differs from the run's 2"),
        ({"batch_size": 8}, "--batch-size 8 differs from the run's 14"),
        ({"freeze": [10]}, "--freeze .*10.* differs"),
        ({"cos_lr": True}, "--cos-lr True differs from the run's False"),
        ({"workers": -1}, "--workers is -1"),
    ],
)
def test_flags_that_would_change_a_resumed_run(
    whole: Recorder, tmp_path: Path, given: dict[str, Any], message: str
) -> None:
    path = saved(tmp_path, whole.states[0])
    with pytest.raises(UserError, match=message):
        resumed_run(str(path), given, COMM)


def test_resume_without_a_name_takes_the_newest(whole: Recorder, tmp_path: Path) -> None:
    path = saved(tmp_path, whole.states[0])
    assert resumed_run("newest", {"project": str(tmp_path)}, COMM).folder == path.parent.parent
    with pytest.raises(UserError, match="no run to resume"):
        resumed_run("newest", {"project": str(tmp_path / "none")}, COMM)


def flags(data: Path, project: Path, **more: Any) -> dict[str, Any]:
    given = {"data": str(data), "cfg": "yolov5n", "imgsz": 63, "batch_size": 14, "epochs": 2, "workers": 0}
    return {**given, "device": "cpu", "project": str(project), "name": "exp", **more}


def test_one_command_line_starts_a_run_and_goes_on_with_it(
    digits: Path, whole: Recorder, tmp_path: Path
) -> None:
    given = flags(digits, tmp_path, commit_every=1)
    for _ in range(2):  # a start that came to nothing takes no other folder the next time
        run = start_run("auto", dict(given), COMM)
        assert (run.folder, run.state, run.config.imgsz) == (tmp_path / "exp", None, 63)
    state = copy.deepcopy(whole.states[0])
    state["config"] |= {"project": str(tmp_path), "exist_ok": True}
    store.write(run.folder / "weights" / "last.pt", store.serialise(state))
    run = start_run("auto", {**given, "workers": 2}, COMM)
    assert run.folder == tmp_path / "exp"
    assert run.state is not None and run.state["step"] == 1
    assert (run.config.imgsz, run.config.workers) == (64, 2)  # rounded as the run did
    with pytest.raises(UserError, match="--epochs 5 differs from the run's 2"):
        start_run("auto", {**given, "epochs": 5}, COMM)


def test_a_run_without_a_whole_checkpoint_begins_anew_and_says_so(
    digits: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    last = tmp_path / "exp" / "weights" / "last.pt"
    last.parent.mkdir(parents=True)
    last.write_bytes(b"damaged")
    run = start_run("auto", flags(digits, tmp_path), COMM)
    assert (run.folder, run.state) == (tmp_path / "exp", None)
    (warning,) = [record for record in caplog.records if record.levelname == "WARNING"]
    assert "a new run in" in warning.getMessage() and "last.pt: not a checkpoint" in warning.getMessage()


def test_without_resume_each_run_has_its_own_folder(digits: Path, tmp_path: Path) -> None:
    folders = [start_run("", flags(digits, tmp_path), COMM).folder.name for _ in range(2)]
    assert folders == ["exp", "exp2"]


def test_two_jobs_do_not_work_on_one_run(digits: Path, tmp_path: Path) -> None:
    run = start_run("", flags(digits, tmp_path, imgsz=64, max_steps=1, noplots=True, exist_ok=True), COMM)
    other = RunLock()
    other.take(run.folder)
    with pytest.raises(UserError, match="another job is at work on this run"):
        train(run, COMM)
    assert sorted(path.name for path in run.folder.iterdir()) == [NAME, "weights"]
    other.release()
    train(run, COMM)
    assert not (run.folder / NAME).exists()
    with pytest.raises(UserError, match="another job has just trained this run"):
        train(run, COMM)  # it looked before the first did its work
    assert not (run.folder / NAME).exists()


def test_going_on_with_a_run_that_is_over_keeps_its_rows_and_asks_for_its_data(
    digits: Path, tmp_path: Path
) -> None:
    """Ended by --max-steps within its first epoch, whose line is in results.csv."""
    shutil.copytree(digits.parent, tmp_path / "data")
    data = tmp_path / "data" / digits.name
    given = flags(data, tmp_path, imgsz=64, max_steps=1, noplots=True)
    run = start_run("auto", dict(given), COMM)
    train(run, COMM)
    tables = {name: (run.folder / name).read_text() for name in ("results.csv", "steps.csv")}
    assert [len(text.splitlines()) for text in tables.values()] == [2, 2]
    train(start_run("auto", dict(given), COMM), COMM)
    assert {name: (run.folder / name).read_text() for name in tables} == tables
    image = min((data.parent / "images/train").iterdir())
    shutil.copy(image, image.with_name("new" + image.suffix))
    with pytest.raises(UserError, match=r"1 are new.*--data-changed"):
        train(start_run("auto", dict(given), COMM), COMM)
    data.parent.rename(tmp_path / "moved")
    with pytest.raises(UserError, match=f"--resume {run.folder} --data path/to/data.yaml"):
        train(resumed_run(str(run.folder), {}, COMM), COMM)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("batch_size", 0),
        ("imgsz", -1),
        ("max_det", 0),
        ("workers", -1),
        ("conf_thres", 1.5),
        ("iou_thres", -0.1),
        ("slices", -1),
        ("slices", 33),
    ],
)
def test_impossible_options_of_val(name: str, value: float) -> None:
    with pytest.raises(UserError, match=f"--{name.replace('_', '-')} is {value}"):
        ValOptions(weights="w.pt", **{name: value})  # type: ignore[arg-type]
