"""`YOLO.tune`: a search from Python, in this process and on ranks of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from horovod_yolo import YOLO, UserError
from horovod_yolo.core.results import TrialResults, TuneResults
from tests.helpers.tiny_zoo import add_tiny

SPACE = {"lr0": {"low": 0.001, "high": 0.1, "log": True}, "mosaic": {"choices": [0, 1]}}


@pytest.fixture
def flags(digits: Path, tmp_path: Path) -> dict[str, Any]:
    small = {"imgsz": 64, "batch": 14, "epochs": 1, "workers": 0, "noautoanchor": True}
    return {"data": digits, "project": tmp_path, "name": "search", **small}


def test_a_search_and_a_training_with_what_it_found(
    flags: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    add_tiny(monkeypatch)
    model = YOLO("tiny")
    found = model.tune(trials=2, space=SPACE, **flags)
    assert found.keys() == TuneResults.__annotations__.keys()
    assert all(trial.keys() == TrialResults.__annotations__.keys() for trial in found["trials"])
    assert [trial["state"] for trial in found["trials"]] == ["done", "done"]
    assert found["best"] is not None and found["best"]["value"] == max(
        trial["value"] or 0.0 for trial in found["trials"]
    )
    assert model.weights == Path(found["weights"]) and model.weights.is_file()
    assert found["hyp"]["lr0"] == found["best"]["params"]["lr0"]
    more = model.tune(resume=found["folder"], trials=3)
    assert len(more["trials"]) == 3 and more["trials"][:2] == found["trials"]
    YOLO("tiny").train(**{**flags, "name": "anew"}, hyp=found["hyp"], noplots=True)


def test_mistakes_are_named(flags: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    add_tiny(monkeypatch)
    with pytest.raises(UserError, match="space: unknown hyperparameter 'lr'"):
        YOLO("tiny").tune(space={"lr": {"low": 1, "high": 2}}, **flags)
    with pytest.raises(UserError, match="--trials is 0"):
        YOLO("tiny").tune(trials=0, **flags)
    with pytest.raises(UserError, match="--data is missing"):
        YOLO("tiny").tune()
    with pytest.raises(UserError, match="no search is in this folder"):
        YOLO("tiny").tune(resume=flags["project"])


@pytest.mark.slow
def test_a_search_on_ranks_of_its_own(flags: dict[str, Any]) -> None:
    model = YOLO("yolov5n")
    found = model.tune(trials=1, space=SPACE, np=2, engine="torch", device="cpu", max_steps=1, **flags)
    assert [trial["state"] for trial in found["trials"]] == ["done"]
    assert model.weights == Path(found["weights"])
