"""Files of other trainers: whichever form they have, their weights and what they say of them."""

from __future__ import annotations

import argparse
import collections
import os
import pathlib
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from horovod_yolo.checkpoint.published import opened_published
from horovod_yolo.core.errors import UserError
from horovod_yolo.models.detector import Detector
from horovod_yolo.training.eager import eager
from tests.helpers.published_files import V5, V8, save_published
from tests.helpers.tiny_zoo import Tiny

NAMES = {0: "RBC", 1: "WBC"}


@pytest.fixture(scope="module")
def model() -> Detector:
    torch.manual_seed(0)
    return Tiny().build("tiny", 2)


def read(path: Path) -> dict[str, Tensor]:
    with opened_published(path) as file:
        return file.tensors(file.shapes)


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return [*one] == [*other] and all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("kinds", [V5, V8])
def test_modules_give_their_state_in_its_order(
    tmp_path: Path, model: Detector, kinds: dict[str, str]
) -> None:
    weights = save_published(tmp_path / "m.pt", model, NAMES, kinds=kinds, license="AGPL-3.0 (x)")
    assert same(read(tmp_path / "m.pt"), weights)
    assert {value.dtype for value in weights.values()} == {torch.float16, torch.int64}
    with opened_published(tmp_path / "m.pt") as file:
        assert (file.names, file.strides, file.license) == (("RBC", "WBC"), (8.0, 16.0), "AGPL-3.0 (x)")
        assert {"DetectionModel", "Detect", "Conv", "ModuleList"} == file.classes
    assert "models" not in sys.modules and "ultralytics" not in sys.modules


def test_the_average_goes_before_the_model_of_the_moment(tmp_path: Path, model: Detector) -> None:
    weights = save_published(tmp_path / "m.pt", model, ["RBC", "WBC"], ema=True, train_args={"imgsz": 160})
    assert same(read(tmp_path / "m.pt"), weights)
    with opened_published(tmp_path / "m.pt") as file:
        assert (file.names, file.imgsz) == (("RBC", "WBC"), 160)


def test_buffers_that_are_no_state_are_left_out(tmp_path: Path) -> None:
    module = torch.nn.BatchNorm2d(2)
    module.register_buffer("scratch", torch.ones(2), persistent=False)
    torch.save({"model": module}, tmp_path / "m.pt")
    assert same(read(tmp_path / "m.pt"), {f"model.{key}": v for key, v in module.state_dict().items()})


def test_what_trainers_leave_beside_is_no_matter(tmp_path: Path, model: Detector) -> None:
    """Arrays and numbers of numpy, paths, devices, the options of the command line, an optimizer's state."""
    parameters = [torch.nn.Parameter(torch.ones(3))]
    optimizer = eager(torch.optim.SGD)(parameters, lr=0.1, momentum=0.9)
    parameters[0].sum().backward()
    optimizer.step()
    beside = {
        "best_fitness": np.array([0.5]),
        "fitness": np.float64(0.25),
        "opt": {"project": pathlib.Path("runs"), "device": torch.device("cpu"), "n": 1 << 40, "imgsz": 320},
        "optimizer": optimizer.state_dict(),
        "sizes": torch.Size((1, 2)),
        "order": collections.OrderedDict(a=1),
        "seen": {"a", "b"},
    }
    weights = save_published(tmp_path / "m.pt", model, NAMES, **beside)
    assert same(read(tmp_path / "m.pt"), weights)


@pytest.mark.parametrize("wrapped", ["", "model", "state_dict"])
@pytest.mark.parametrize("prefix", ["", "module.", "model.", "rows alone"])
def test_tensors_by_name(tmp_path: Path, model: Detector, wrapped: str, prefix: str) -> None:
    weights = save_published(tmp_path / "m.pt", model, NAMES)
    named = {
        key.removeprefix("model.") if prefix == "rows alone" else prefix + key: value
        for key, value in weights.items()
    }
    given = {wrapped: named, "names": NAMES} if wrapped else named
    torch.save(given, tmp_path / "t.pt")
    assert same(read(tmp_path / "t.pt"), weights)
    with opened_published(tmp_path / "t.pt") as file:
        assert file.names == (("RBC", "WBC") if wrapped else None)
        assert not file.classes


def test_a_state_dict_of_torch_has_attributes(tmp_path: Path) -> None:
    layer = torch.nn.Linear(2, 3)
    torch.save(layer.state_dict(), tmp_path / "t.pt")
    assert same(read(tmp_path / "t.pt"), {f"model.{key}": v for key, v in layer.state_dict().items()})


def test_safetensors(tmp_path: Path, model: Detector) -> None:
    weights = save_published(tmp_path / "m.pt", model, NAMES)
    for text, names in (
        ('{"0": "RBC", "1": "WBC"}', ("RBC", "WBC")),
        ('["a", "b"]', ("a", "b")),
        ("x", None),
    ):
        save_file(weights, tmp_path / "t.safetensors", metadata={"names": text, "license": "L"})
        with opened_published(tmp_path / "t.safetensors") as file:
            assert (file.names, file.license) == (names, "L")
            assert same(file.tensors(weights), weights)


def test_safetensors_without_the_package(
    tmp_path: Path, model: Detector, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_file({"a": torch.ones(1)}, tmp_path / "t.safetensors")
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(UserError, match=r"t.safetensors: this is a file of safetensors.*pip install"):
        read(tmp_path / "t.safetensors")


@pytest.mark.parametrize(
    ("names", "words"),
    [({0: "a", 2: "b"}, "not numbered"), ([["a"], "b"], "names of its classes are damaged")],
)
def test_names_that_are_none(tmp_path: Path, model: Detector, names: dict[int, str], words: str) -> None:
    save_published(tmp_path / "m.pt", model, names)
    with pytest.raises(UserError, match=words):
        read(tmp_path / "m.pt")


def test_texts_are_one_line_without_codes_for_terminals(tmp_path: Path, model: Detector) -> None:
    save_published(tmp_path / "m.pt", model, ["a\x1b[2J\nb", "x" * 9999], license="AGPL-3.0\r\x07 (x)")
    with opened_published(tmp_path / "m.pt") as file:
        assert file.names == ("a [2J b", "x" * 200)
        assert file.license == "AGPL-3.0 (x)"


def test_an_object_of_some_other_class(tmp_path: Path) -> None:
    torch.save({"model": argparse.Namespace(a=1)}, tmp_path / "m.pt")
    with pytest.raises(UserError, match=r"m\.pt: it names 'argparse\.Namespace', which is no part of"):
        read(tmp_path / "m.pt")


def test_values_that_diverged(tmp_path: Path) -> None:
    for value in (float("nan"), float("inf"), -float("inf")):
        torch.save({"model.0.conv.weight": torch.tensor([1.0, value, 0.0])}, tmp_path / "m.pt")
        with pytest.raises(UserError, match=r"model\.0\.conv\.weight holds numbers that are not finite"):
            read(tmp_path / "m.pt")


def test_a_file_that_is_not_there_and_one_that_is_a_pipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.pt")
    for name, words in (("none.pt", "No such file"), ("pipe.pt", "not a regular file")):
        with pytest.raises(UserError, match=f"{name}: {words}"):
            read(tmp_path / name)
