"""Weights of another run: what the head knows of a class goes with its name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from horovod_yolo.assembly.weights import transfer
from horovod_yolo.core.errors import UserError
from horovod_yolo.families import zoo
from horovod_yolo.models.detector import Detector
from tests.helpers.tiny_free import add_tiny_free


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> None:
    add_tiny_free(monkeypatch)


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
    assert "they know 'car', 'bus', none of 'cat', 'dog': 6 of 349 tensors are new" in caplog.text


def test_one_line_counts_what_was_taken(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    transfer(model_for("Cat ", "x", "dog"), checkpoint("cat", "dog"), "w.pt", ("Cat ", "x", "dog"))
    line = "weights: 2 of 3 classes and 349 of 349 tensors taken from w.pt"
    assert caplog.messages[-1] == line + ", of 6 of them the rows of these classes"
    caplog.clear()
    transfer(model_for("cat", "dog"), checkpoint("cat", "dog"), "w.pt", ("cat", "dog"))
    assert caplog.messages == ["weights: 2 of 2 classes and 349 of 349 tensors taken from w.pt"]


@pytest.mark.parametrize(
    ("name", "new"),  # of the last convolution of each class branch: two levels, weight and bias
    [("tiny8", 4), ("tiny11", 4), ("tiny26", 8)],
)
@pytest.mark.parametrize(
    ("theirs", "ours", "classes"),
    [
        (("car", "bus"), ("cat", "dog"), 0),
        (("car", "bus", "cat"), ("cat", "dog"), 1),
        (("dog", "cat"), ("cat", "dog"), 2),
    ],
)
def test_without_anchors_the_lines_count_what_really_came_from_the_file(
    name: str, new: int, theirs: Sequence[str], ours: Sequence[str], classes: int, caplog: Any, free: None
) -> None:
    """Every tensor of theirs is 7, so what was taken can be counted."""
    caplog.set_level("INFO")
    model = zoo.build_model(name, len(ours))
    state = zoo.build_model(name, len(theirs)).state_dict()
    sevens = {key: torch.full_like(value, 7) for key, value in state.items()}
    transfer(model, {"model_name": name, "names": theirs, "ema": {"weights": sevens}}, "w.pt", ours)
    values = list(model.state_dict().values())
    whole = sum(bool((value == 7).all()) for value in values)
    some = sum(bool((value == 7).any()) for value in values)
    if classes == 0:
        assert (
            f"they know 'car', 'bus', none of 'cat', 'dog': {new} of {len(values)} tensors are" in caplog.text
        )
    assert len(values) - some == (new if classes == 0 else 0)
    assert some - whole == (new if classes == 1 else 0)
    line = f"weights: {classes} of 2 classes and {some} of {len(values)} tensors taken from w.pt"
    assert caplog.messages[-1].startswith(line)
    assert caplog.messages[-1].removeprefix(line) == (
        f", of {new} of them the rows of these classes" if classes == 1 else ""
    )


def test_a_file_that_leaves_the_bins_out_gives_a_tensor_less(
    caplog: pytest.LogCaptureFixture, free: None
) -> None:
    caplog.set_level("INFO")
    state = zoo.build_model("tiny8", 2).state_dict()
    del state["head.dfl.conv.weight"]
    for names in (("cat", "dog"), ("cat", "cow")):
        model = zoo.build_model("tiny8", 2)
        transfer(
            model, {"model_name": "tiny8", "names": ("cat", "dog"), "ema": {"weights": state}}, "w", names
        )
        assert f"{len(state)} of {len(state) + 1} tensors taken" in caplog.messages[-1]


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
    assert "they know 'cat', 'dog', none of 'x': 6 of 349 tensors are new" in caplog.text


def test_another_model_is_an_error() -> None:
    with pytest.raises(UserError, match="weights are of yolov5n, the model is yolov5s"):
        transfer(zoo.build_model("yolov5s", 1), checkpoint("a"), "w.pt", ("a",))
