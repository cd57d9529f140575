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


def test_as_many_classes_by_other_names_are_not_taken_for_the_same(caplog: pytest.LogCaptureFixture) -> None:
    model, old = model_for("cat", "dog"), checkpoint("dog", "Hund")
    fresh = rows(model.state_dict(), 2).clone()
    transfer(model, old, "w.pt", ("cat", "dog"))
    was, now = rows(old["ema"]["weights"], 2), rows(model.state_dict(), 2)
    assert torch.equal(now[:, 6], was[:, 5]), "a dog is a dog"
    assert torch.equal(now[:, 5], fresh[:, 5]), "a cat is no Hund"
    assert "left out are 'Hund'; new are 'cat'" in caplog.text
    transfer(model, old, "w.pt", ("cat", "dog"), (("Hund", "cat"),))
    assert torch.equal(rows(model.state_dict(), 2)[:, 5], was[:, 6])


def test_as_many_other_things_have_a_new_head(caplog: pytest.LogCaptureFixture) -> None:
    old, names = checkpoint("car", "bus"), ("cat", "dog")
    model = model_for(*names)
    fresh = rows(model.state_dict(), 2).clone()
    transfer(model, old, "w.pt", names)
    assert torch.equal(rows(model.state_dict(), 2), fresh)
    key = next(iter(model.state_dict()))
    assert torch.equal(model.state_dict()[key], old["ema"]["weights"][key])
    assert "they know 'car', 'bus', none of 'cat', 'dog': the head is new" in caplog.text


def test_one_line_counts_what_was_taken(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    transfer(model_for("Cat ", "x", "dog"), checkpoint("cat", "dog"), "w.pt", ("Cat ", "x", "dog"))
    assert "weights: 2 of 3 classes and 349 of 349 tensors taken from w.pt" in caplog.text


def test_classes_without_names_are_those_of_the_data(caplog: pytest.LogCaptureFixture) -> None:
    old = {**checkpoint("class0", "class1"), "names_known": False}
    model = model_for("cat", "dog")
    transfer(model, old, "w.pt", ("cat", "dog"))
    assert torch.equal(rows(model.state_dict(), 2), rows(old["ema"]["weights"], 2))
    assert "w.pt does not name its classes: they are taken to be 'cat', 'dog'" in caplog.text
    other = model_for("cat")
    fresh = rows(other.state_dict(), 1).clone()
    transfer(other, old, "w.pt", ("cat",))
    assert torch.equal(rows(other.state_dict(), 1), fresh), "as many would be a guess"


def test_a_head_of_other_things_is_new(caplog: pytest.LogCaptureFixture) -> None:
    model = model_for("x")
    fresh = rows(model.state_dict(), 1).clone()
    transfer(model, checkpoint("cat", "dog"), "w.pt", ("x",))
    assert torch.equal(rows(model.state_dict(), 1), fresh)
    assert "they know 'cat', 'dog', none of 'x': the head is new" in caplog.text


def test_another_model_is_an_error() -> None:
    with pytest.raises(UserError, match="weights are of yolov5n, the model is yolov5s"):
        transfer(zoo.build_model("yolov5s", 1), checkpoint("a"), "w.pt", ("a",))
