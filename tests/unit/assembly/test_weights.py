"""Weights of another run: what the head knows of a class goes with its name."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from horovod_yolo.assembly.weights import transfer
from horovod_yolo.core.errors import UserError
from horovod_yolo.families import zoo
from horovod_yolo.models.detector import Detector


def checkpoint(*names: str) -> dict[str, Any]:
    torch.manual_seed(1)
    weights = zoo.build_model("yolov5n", len(names)).state_dict()
    return {"model_name": "yolov5n", "names": names, "ema": {"weights": weights}}


def model_for(*names: str) -> Detector:
    torch.manual_seed(2)
    return zoo.build_model("yolov5n", len(names))


def rows(weights: dict[str, torch.Tensor], classes: int) -> torch.Tensor:
    """(anchors, 5 + classes, channels) of the finest level."""
    return weights["head.m.0.weight"].view(3, 5 + classes, -1)


def test_classes_go_by_name() -> None:
    names, old = ("dog", "bird", "Cat"), checkpoint("cat", "dog", "cow")
    model = model_for(*names)
    fresh = rows(model.state_dict(), 3).clone()
    transfer(model, old, "w.pt", names, (("cow", ""),))
    was, now = rows(old["ema"]["weights"], 3), rows(model.state_dict(), 3)
    assert torch.equal(now[:, :5], was[:, :5])
    assert torch.equal(now[:, 5], was[:, 6]) and torch.equal(now[:, 7], was[:, 5])
    assert torch.equal(now[:, 6], fresh[:, 6]), "a bird is new"
    key = next(iter(model.state_dict()))
    assert torch.equal(model.state_dict()[key], old["ema"]["weights"][key])


def test_as_many_classes_by_other_names_are_not_taken_for_the_same() -> None:
    with pytest.raises(UserError, match=r"differ: 'Hund' here, 'dog' there.*--class-map"):
        transfer(model_for("cat", "dog"), checkpoint("cat", "Hund"), "w.pt", ("cat", "dog"))
    model = model_for("cat", "dog")
    old = checkpoint("cat", "Hund")
    transfer(model, old, "w.pt", ("cat", "dog"), (("Hund", "dog"),))
    assert torch.equal(rows(model.state_dict(), 2), rows(old["ema"]["weights"], 2))


def test_as_many_other_things_have_a_new_head_where_the_user_says_that_they_are(
    caplog: pytest.LogCaptureFixture,
) -> None:
    old, names = checkpoint("car", "bus"), ("cat", "dog")
    with pytest.raises(UserError, match=r"'car', 'bus'; and 'cat', 'dog'.*new head.*'car=,bus='$"):
        transfer(model_for(*names), old, "w.pt", names)
    model = model_for(*names)
    fresh = rows(model.state_dict(), 2).clone()
    transfer(model, old, "w.pt", names, (("car", ""), ("bus", "")))
    assert torch.equal(rows(model.state_dict(), 2), fresh)
    key = next(iter(model.state_dict()))
    assert torch.equal(model.state_dict()[key], old["ema"]["weights"][key])
    assert "they know 'car', 'bus', none of 'cat', 'dog': the head is new" in caplog.text


def test_a_head_of_other_things_is_new(caplog: pytest.LogCaptureFixture) -> None:
    model = model_for("x")
    fresh = rows(model.state_dict(), 1).clone()
    transfer(model, checkpoint("cat", "dog"), "w.pt", ("x",))
    assert torch.equal(rows(model.state_dict(), 1), fresh)
    assert "they know 'cat', 'dog', none of 'x': the head is new" in caplog.text


def test_another_model_is_an_error() -> None:
    with pytest.raises(UserError, match="weights are of yolov5n, the model is yolov5s"):
        transfer(zoo.build_model("yolov5s", 1), checkpoint("a"), "w.pt", ("a",))
