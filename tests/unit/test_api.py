"""The same from Python: train, score and use a detector without the command line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook

import horovod_yolo
from horovod_yolo import YOLO, api, errors
from horovod_yolo.assembly import ready
from horovod_yolo.cli import main
from horovod_yolo.core.errors import UserError
from horovod_yolo.core.results import ClassMetrics, Metrics, TrainResults
from horovod_yolo.data.read import read_image
from horovod_yolo.models.detector import Detector
from horovod_yolo.prediction.sources import pixels


@pytest.fixture(scope="module")
def trained(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[YOLO, dict[str, Any]]:
    project = tmp_path_factory.mktemp("runs")
    model = YOLO("yolov5n")
    flags: dict[str, Any] = {"imgsz": 64, "batch": 14, "workers": 0, "device": "cpu", "project": project}
    return model, model.train(data=digits, epochs=1, name="a", noplots=True, cos_lr=True, **flags)


def test_the_name_that_documents_once_gave_for_the_errors_still_works() -> None:
    assert errors.__all__ == sorted({*api.__all__} - {"YOLO"})
    assert all(getattr(errors, name) is getattr(api, name) for name in errors.__all__)


def test_the_package_gives_the_api_and_brings_torch_only_then() -> None:
    code = (
        "import sys, horovod_yolo; assert {'YOLO', 'UserError'} <= {*dir(horovod_yolo)}; "
        "assert not {'torch', 'numpy'} & {*sys.modules}; from horovod_yolo import *; "
        "assert YOLO is sys.modules['horovod_yolo.api'].YOLO and issubclass(UserError, Exception)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert horovod_yolo.__all__ == api.__all__
    with pytest.raises(AttributeError, match="has no attribute 'yolo'"):
        horovod_yolo.yolo  # type: ignore[attr-defined]  # noqa: B018


def test_results_have_the_keys_that_their_types_name(trained: tuple[YOLO, dict[str, Any]]) -> None:
    _, results = trained
    for kind, found in (
        (TrainResults, results),
        (Metrics, results["metrics"]),
        (ClassMetrics, results["metrics"]["per_class"][0]),
    ):
        assert kind.__required_keys__ <= found.keys(), kind.__name__
    assert {**results["metrics"]}.keys() <= Metrics.__annotations__.keys()


def images_of(data: Path) -> list[Path]:
    return sorted((data.parent / "images" / "val").iterdir())


def test_train_returns_what_results_json_holds(trained: tuple[YOLO, dict[str, Any]]) -> None:
    model, results = trained
    assert model.weights is not None
    assert json.loads((model.weights.parent.parent / "results.json").read_text()) == results
    assert (results["model"], results["epochs"], results["world_size"]) == ("yolov5n", 1, 1)
    config = torch.load(model.weights, weights_only=True)["config"]
    assert (config["imgsz"], config["batch_size"], config["cos_lr"]) == (64, 14, True)


def test_val_scores_as_training_did(trained: tuple[YOLO, dict[str, Any]], digits: Path) -> None:
    model, results = trained
    metrics = model.val(workers=0, device="cpu", batch_size=28)
    assert metrics["mAP50-95"] == pytest.approx(results["metrics"]["mAP50-95"], abs=1e-6)
    assert metrics["val_loss"] == pytest.approx(results["metrics"]["val_loss"], rel=1e-5)
    named = model.val(digits, workers=0, device="cpu", batch_size=28)
    assert named == metrics
    assert metrics["rect"] and results["metrics"]["rect"]


@pytest.mark.parametrize(
    ("flag", "said", "side"), [("--rect", "rectangles", 96), ("--no-rect", "squares", 64)]
)
def test_val_says_what_its_inputs_were(
    trained: tuple[YOLO, dict[str, Any]],
    capsys: pytest.CaptureFixture[str],
    flag: str,
    said: str,
    side: int,
) -> None:
    """Rectangles have half a stride of margin: a square picture of 64 pixels is in one of 96."""
    sides = set()

    def note(module: nn.Module, given: tuple[Any, ...]) -> None:
        if isinstance(module, Detector):
            sides.add(tuple(given[0].shape[2:]))

    weights = str(trained[0].weights)
    given = ["--weights", weights, "--workers", "0", "--device", "cpu", "--noplots", flag]
    with register_module_forward_pre_hook(note):
        assert main(["val", *given]) == 0
    assert sides == {(side, side)}
    assert capsys.readouterr().out.splitlines()[-1].startswith(f"inputs: {said}")


def test_predict_from_paths_and_pixels(trained: tuple[YOLO, dict[str, Any]], digits: Path) -> None:
    weights = trained[0].weights
    assert weights is not None
    model = YOLO(weights)
    paths = images_of(digits)[:3]
    found = model.predict(paths, conf_threshold=1e-4, max_detections=20)
    again = model.predict([read_image(path) for path in paths], conf_threshold=1e-4, max_detections=20)
    assert len(found) == 3 and sum(map(len, found)) > 0
    for path, one, other in zip(paths, found, again, strict=True):
        assert torch.equal(one.boxes_xyxy, other.boxes_xyxy) and torch.equal(one.scores, other.scores)
        assert len(one) <= 20
        height, width = read_image(path).shape[:2]
        assert (one.boxes_xyxy >= 0).all()
        assert (one.boxes_xyxy <= torch.tensor([width, height, width, height])).all()
        assert torch.equal(one.scores, one.scores.sort(descending=True).values)
    assert model.predict([]) == []


def test_predict_takes_the_gpu_of_this_rank(
    trained: tuple[YOLO, dict[str, Any]], digits: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, int]] = []

    def choose(wanted: str, local_rank: int) -> torch.device:
        asked.append((wanted, local_rank))
        return torch.device("cpu")

    monkeypatch.setattr(ready, "choose_device", choose)
    meeting = (("GLOO_RENDEZVOUS_ADDR", "127.0.0.1"), ("GLOO_RENDEZVOUS_PORT", "1"))
    for name, value in (("RANK", "7"), ("SIZE", "8"), ("LOCAL_RANK", "3"), ("LOCAL_SIZE", "4"), *meeting):
        monkeypatch.setenv(f"HOROVOD_{name}", value)
    trained[0].predict(images_of(digits)[0], device=[0, 1])
    trained[0].predict(images_of(digits)[0])
    assert asked == [("0,1", 3), ("", 3)]


def test_weights_go_on_training(trained: tuple[YOLO, dict[str, Any]], digits: Path, tmp_path: Path) -> None:
    weights = trained[0].weights
    assert weights is not None
    model = YOLO(str(weights))
    assert model.name == "yolov5n"
    flags: dict[str, Any] = {"imgsz": 64, "batch": 28, "workers": 0, "max_steps": 1, "noplots": True}
    results = model.train(data=digits, epochs=1, hyp={"lr0": 0.02}, project=tmp_path, **flags)
    assert results["steps"] == 1
    config = torch.load(tmp_path / "exp" / "weights" / "last.pt", weights_only=True)["config"]
    assert (config["weights"], config["hyp"]["lr0"]) == (str(weights), 0.02)
    assert model.weights == tmp_path / "exp" / "weights" / "best.pt"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"epoch": 3}, "unknown argument epoch. did you mean epochs"),
        ({"epochs": "many"}, "argument --epochs: invalid int value: 'many'"),
        ({"epochs": 0}, "--epochs is 0"),
        ({"amp": False, "no_such_flag": False}, "unknown argument no_such_flag"),
        ({"typo": None}, "unknown argument typo"),
        ({"resume": True}, "resume is not for a new run"),
        ({"hyp": "none.yaml"}, "none.yaml: cannot be read: No such file"),
        ({"hyp": {"momentm": 0.1}}, "hyp: unknown hyperparameter 'momentm'. did you mean momentum"),
        ({"batch_size": 8, "batch": 8}, "batch_size and batch are one thing. give one of them"),
    ],
)
def test_wrong_flags_are_named(digits: Path, flags: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        YOLO("yolov5n").train(data=digits, **flags)
    assert message in str(caught.value)


def test_wrong_data_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.yaml: cannot be read"):
        YOLO("yolov5n").train(data=tmp_path / "none.yaml", project=tmp_path, device="cpu")


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("yolov5q", "unknown model 'yolov5q'"),
        ("none.pt", "none.pt: No such file"),
        ("", "unknown model ''"),
        (None, "None is no model"),
        (5, "5 is no model"),
    ],
)
def test_wrong_models_are_named(model: Any, message: str) -> None:
    with pytest.raises(UserError) as caught:
        YOLO(model)
    assert message in str(caught.value)


def test_a_new_model_has_nothing_to_score_or_find_with() -> None:
    for use in (lambda: YOLO("yolov5n").val(), lambda: YOLO("yolov5n").predict([])):
        with pytest.raises(UserError, match="yolov5n has no weights yet"):
            use()


def test_wrong_options_and_images_are_named(trained: tuple[YOLO, dict[str, Any]], tmp_path: Path) -> None:
    model, _ = trained
    with pytest.raises(UserError, match=r"unknown argument batchsize\. did you mean batch"):
        model.val(batchsize=3)
    with pytest.raises(UserError, match="--batch-size is 0"):
        model.val(batch_size=0)
    with pytest.raises(UserError, match="task is 'nope'"):
        model.val(task="nope")
    with pytest.raises(UserError, match=r"--save-json .*no folder to write into"):
        model.val(save_json=str(tmp_path / "none" / "x.json"), workers=0)
    (tmp_path / "x.jpg").write_bytes(b"text")
    for image in (tmp_path / "none.jpg", tmp_path / "x.jpg"):
        with pytest.raises(UserError, match=str(image)):
            model.predict([image])
    for wrong in (
        np.zeros((4, 4), np.uint8),
        np.zeros((3, 8, 8), np.uint8),
        np.zeros((0, 8, 3), np.uint8),
        np.zeros((8, 8, 3), np.float32),
    ):
        with pytest.raises(UserError, match=r"give \(H, W, 3\) uint8 RGB"):
            model.predict([wrong])
    for unusable in (3, b"abc", {}, "", [None], [tmp_path], tmp_path / "none", [[tmp_path / "x.jpg"]]):
        with pytest.raises(UserError):
            model.predict(unusable)  # type: ignore[arg-type]
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"no image in this folder"):
        model.predict(tmp_path / "empty")
    with pytest.raises(UserError, match=r"x.jpg: not an image"):
        model.predict(tmp_path / "x.jpg", stream=False)


def test_images_in_every_form_give_the_same(trained: tuple[YOLO, dict[str, Any]], digits: Path) -> None:
    model = YOLO(str(trained[0].weights))
    paths = images_of(digits)
    path, low = paths[0], {"conf": 1e-4, "max_det": 20}
    expected = model.predict([path], **low)
    array = read_image(path)
    with PIL.Image.open(path) as opened:
        forms: list[Any] = [path, str(path), opened, [opened], array, [array], array[None], (path,)]
        for form in [*forms, iter([path])]:
            (found,) = model.predict(form, **low)
            assert torch.equal(found.boxes_xyxy, expected[0].boxes_xyxy), form
    of_folder = model.predict(path.parent, **low)
    assert len(of_folder) == len(paths)
    assert len(model.predict([path.parent, path], **low)) == len(paths) + 1
    torch.testing.assert_close(of_folder[0].boxes_xyxy, expected[0].boxes_xyxy)  # in a batch with others


def test_a_pillow_image_is_read_as_its_file_is(tmp_path: Path) -> None:
    """Turned upright, palettes and 16-bit grey included; cut-off data is a `UserError`."""
    rng = np.random.default_rng(0)
    rgb = PIL.Image.fromarray(rng.integers(0, 255, (6, 9, 3), dtype=np.uint8))
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    rgb.save(tmp_path / "turned.png", exif=exif)
    rgb.quantize(16).save(tmp_path / "palette.png")
    PIL.Image.fromarray(rng.integers(0, 1 << 16, (6, 9), dtype=np.uint16)).save(tmp_path / "deep.png")
    for name in ("turned.png", "palette.png", "deep.png"):
        with PIL.Image.open(tmp_path / name) as opened:
            assert np.array_equal(pixels(opened), read_image(tmp_path / name)), name
    assert pixels(rgb).shape == (6, 9, 3)
    data = (tmp_path / "turned.png").read_bytes()
    (tmp_path / "short.png").write_bytes(data[: len(data) // 2])
    with PIL.Image.open(tmp_path / "short.png") as opened, pytest.raises(UserError, match=r"short\.png"):
        pixels(opened)
