"""``export`` writes files that ``val`` and ``predict`` take as they take the checkpoint, on all ranks."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch

from horovod_yolo import cli
from horovod_yolo.api import YOLO
from horovod_yolo.assembly.export import ExportOptions, export
from horovod_yolo.assembly.given_weights import load_weights
from horovod_yolo.assembly.predict import PredictOptions, predict
from horovod_yolo.assembly.validate import ValOptions, validate
from horovod_yolo.checkpoint import store
from horovod_yolo.core.errors import UserError
from horovod_yolo.distributed.local import LocalCommunicator
from horovod_yolo.export.formats import opened_runner, read_exported
from horovod_yolo.families import zoo
from horovod_yolo.metrics.scores import Evaluation
from horovod_yolo.process.stop import StopRequest
from tests.helpers.exporting import NAMES, decoded, filled_model, pictures
from tests.helpers.files_of_others import OF_ULTRALYTICS, write_theirs
from tests.helpers.pictures import write_picture_file
from tests.helpers.reference_fill import REFERENCES, needs_references
from tests.helpers.untrained import write_untrained
from tests.helpers.world import run_world

COMM = LocalCommunicator()
FORMATS = ("openvino", "torchscript", "safetensors")
LEAST = 1e-5  # the least score that counts


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of YOLO26 that was not trained, with a licence."""
    path = write_untrained(tmp_path_factory.mktemp("weights") / "best.pt", "yolo26n")
    state = store.read(path)
    state["ema"]["weights"] = filled_model("yolo26n").state_dict()
    store.write(path, store.serialise({**state, "license": "AGPL-3.0 (somewhere)"}))
    return path


@pytest.fixture(scope="module")
def dynamic(weights: Path) -> Path:
    """Its ONNX file for any size."""
    return write(weights, dynamic=True, out=str(weights.parent / "dynamic"))


@pytest.fixture(scope="module")
def static(weights: Path) -> Path:
    """For 3 images of 96x64 pixels, with suppression."""
    more = {"nms": True, "conf_thres": 1e-3, "max_det": 9}
    return write(weights, imgsz=(64, 96), batch_size=3, out=str(weights.parent / "static"), **more)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five pictures of different shapes."""
    root = tmp_path_factory.mktemp("pictures")
    for seed in range(5):
        write_picture_file(root / f"{seed}.png", seed, 40 + 8 * seed)
    return root


def write(weights: Path, **flags: Any) -> Path:
    (path,) = export(ExportOptions(weights=str(weights), **flags), COMM)
    return path


def rows(weights: Path, folder: Path, ranks: int, out: Path, **flags: Any) -> list[dict[str, Any]]:
    """What predict finds, as COCO's results."""
    given: dict[str, Any] = {"conf_thres": 1e-3, "max_det": 9, "device": "cpu", "nosave": True}
    options = PredictOptions(
        weights=str(weights), source=(str(folder),), save_json=True, project=str(out), **{**given, **flags}
    )
    run_world(ranks, lambda comm: predict(options, comm, StopRequest()))
    (file,) = out.rglob("predictions.json")
    found: list[dict[str, Any]] = json.loads(file.read_text())
    return found


def require_alike(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    assert len(found) == len(expected) > 20
    for one, other in zip(found, expected, strict=True):
        assert (one["image_id"], one["category_id"]) == (other["image_id"], other["category_id"])
        assert one["score"] == pytest.approx(other["score"], abs=1e-4)
        assert one["bbox"] == pytest.approx(other["bbox"], abs=2e-3)


def test_predict_finds_the_same_on_any_number_of_ranks(
    weights: Path, dynamic: Path, static: Path, folder: Path, tmp_path: Path
) -> None:
    expected = rows(weights, folder, 1, tmp_path / "model")
    require_alike(rows(dynamic, folder, 1, tmp_path / "1"), expected)
    require_alike(rows(dynamic, folder, 2, tmp_path / "2"), expected)
    alone = rows(static, folder, 1, tmp_path / "s1")
    require_alike(rows(static, folder, 2, tmp_path / "s2"), alone)


def test_other_formats_find_the_same(weights: Path, folder: Path, tmp_path: Path) -> None:
    expected = rows(weights, folder, 1, tmp_path / "model")
    options = ExportOptions(weights=str(weights), format=FORMATS, dynamic=True, out=str(tmp_path))
    files = export(options, COMM)
    assert [file.name for file in files] == [
        "best_openvino_model",
        "best.torchscript",
        "best.safetensors",
    ]
    for number, file in enumerate(files):
        require_alike(rows(file, folder, 2, tmp_path / str(number)), expected)


def test_files_of_others_find_and_score_the_same(weights: Path, folder: Path, tmp_path: Path) -> None:
    """A model as Ultralytics exports it, for any size, on two ranks."""
    texts = {**OF_ULTRALYTICS, "imgsz": "[96, 96]"}
    file = write_theirs(tmp_path / "m.onnx", filled_model("yolo26n", "one2many"), "v8", texts, dynamic=True)
    expected = rows(weights, folder, 1, tmp_path / "model", imgsz=96, head="one2many", iou_thres=0.3)
    require_alike(rows(file, folder, 2, tmp_path / "theirs", iou_thres=0.3), expected)
    data = own_findings(weights, sorted(folder.iterdir()), tmp_path, NAMES, imgsz=96, head="one2many")
    wanted = scored(weights, data, 1, imgsz=96, head="one2many").summary
    assert wanted.map50_95 > 0.05, "the weights are no trained ones"
    found = scored(file, data, 2, imgsz=0).summary
    assert found.map50_95 == pytest.approx(wanted.map50_95, abs=1e-3)


def test_openvino_suppresses_and_sends_nothing(
    weights: Path, static: Path, folder: Path, tmp_path: Path
) -> None:
    """Its telemetry would leave a file in the home folder, and threads that wait for an answer."""
    more = {"nms": True, "conf_thres": 1e-3, "max_det": 9, "imgsz": (64, 96), "batch_size": 3, "half": True}
    file = write(weights, format=("openvino",), out=str(tmp_path), **more)
    found, expected = (rows(one, folder, 1, tmp_path / one.stem) for one in (file, static))
    scores = [sorted(row["score"] for row in one) for one in (found, expected)]
    assert len(found) == len(expected) and scores[0] == pytest.approx(scores[1], abs=1e-2)
    home = tmp_path / "home"
    home.mkdir()
    code = (
        "import sys, torch, pathlib\n"
        "from horovod_yolo.export.formats import opened_runner, read_exported\n"
        "file = read_exported(pathlib.Path(sys.argv[1]))\n"
        "runner = opened_runner(file, torch.device('cpu'), must=False)\n"
        "print(runner.sides, 'openvino_telemetry' in sys.modules)"
    )
    environment = {**os.environ, "HOME": str(home)}
    done = subprocess.run(
        [sys.executable, "-c", code, file], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout == "(3, 64, 96) False\n"
    assert not list(home.iterdir())


def test_int8_says_what_it_costs(
    weights: Path, digits: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """On two ranks, both of which score."""
    state = store.read(weights)
    torch.manual_seed(5)
    model = zoo.build_model("yolov3-tiny", 10)
    state |= {"model_name": "yolov3-tiny", "names": [str(digit) for digit in range(10)]}
    state["ema"]["weights"] = model.state_dict()
    state["config"] |= {"cfg": "yolov3-tiny", "imgsz": 64}
    source = tmp_path / "digits.pt"
    store.write(source, store.serialise(state))
    more = {"int8": True, "data": str(digits), "imgsz": (64,), "batch_size": 4}
    options = ExportOptions(weights=str(source), format=("onnx", "openvino"), **more)  # type: ignore[arg-type]
    caplog.set_level("INFO")
    files, others = run_world(2, lambda comm: export(options, comm))
    assert files == others and [one.name for one in files] == [
        "digits_int8.onnx",
        "digits_int8_openvino_model",
    ]
    for one in files:
        words = rf"{one.name}: mAP50-95 0\.\d{{4}}, the model's 0\.\d{{4}}: -?0\.\d{{4}} lost"
        assert re.search(words, caplog.text)
    kinds = {one.data_type for one in onnx.load(files[0]).graph.initializer if len(one.dims) == 4}
    assert kinds == {onnx.TensorProto.INT8}
    of_openvino = files[1] / "digits_int8.bin"
    for one in (files[0], of_openvino):
        assert one.stat().st_size < 0.3 * sum(p.numel() * 4 for p in model.parameters())
    inputs = pictures(4, 64, 64)
    expected = decoded(model.eval(), inputs)
    for one in files:
        file = read_exported(one)
        assert file is not None
        runner = opened_runner(file, torch.device("cpu"), must=False)
        assert runner.texts["precision"] == "int8" and runner.sides == (4, 64, 64)
        boxes, scores = runner(inputs.numpy())
        assert float(abs(scores - expected.scores.numpy()).max()) < 0.01
        assert float(abs(boxes - expected.boxes_xyxy.numpy()).mean()) < 1.0
    for flags, message in (({"half": True, "data": "d"}, "--int8 and --half"), ({}, "--int8 without --data")):
        with pytest.raises(UserError, match=message):
            ExportOptions(weights="w", int8=True, **flags)
    with pytest.raises(UserError, match=r"--int8 and --format torchscript\. it is for onnx and openvino"):
        ExportOptions(weights="w", int8=True, data="d", format=("torchscript",))


def test_from_python_and_from_the_command_line(
    weights: Path, dynamic: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = YOLO(weights)
    file = model.export(imgsz=(64, 96), batch=2, out=tmp_path)
    assert file == tmp_path / "best.onnx"
    assert [one.name for one in model.export(["torchscript"], imgsz=64, out=tmp_path)] == ["best.torchscript"]
    ready = YOLO(file)
    assert ready.name == "yolo26n"
    picture = folder / "0.png"
    (found,) = ready.predict(picture, conf=1e-3, max_det=9)
    (expected,) = model.predict(picture, conf=1e-3, max_det=9, rect=False, imgsz=96)
    assert len(found) == 9 and found.names == expected.names
    with pytest.raises(UserError, match="an exported file has no weights to begin with"):
        ready.export()
    with pytest.raises(UserError, match="half is 'yes'"):
        model.export(half="yes")
    with pytest.raises(UserError, match="unknown argument dynamics"):
        model.export(dynamics=True)
    capsys.readouterr()
    words = [
        "export",
        "--weights",
        str(weights),
        "--imgsz",
        "64",
        "96",
        "--batch",
        "2",
        "--out",
        str(tmp_path),
    ]
    assert cli.main(words) == 0
    assert capsys.readouterr().out.endswith(f"{file}\n")
    assert cli.main(["export", "--weights", str(dynamic)]) == 2
    assert "an exported file has no weights to begin with" in capsys.readouterr().err


def test_what_safetensors_say_comes_back(weights: Path, tmp_path: Path) -> None:
    """Names, size, licence and head; and where there is no licence, none is made up."""
    state = store.read(weights)
    for license in ("AGPL-3.0 (somewhere)", ""):
        source = tmp_path / "given.pt"
        given = {key: value for key, value in state.items() if key != "license"}
        store.write(source, store.serialise({**given, **({"license": license} if license else {})}))
        read = load_weights(write(source, format=("safetensors",), imgsz=(96,), head="one2many"))
        assert read["names"] == state["names"] and read["names_known"]
        assert read["config"]["imgsz"] == 96 and read["config"]["head"] == "one2many"
        assert read.get("license", "") == license and ("license" in read) == bool(license)
        assert read["model_name"] == "yolo26n"
        for key, value in state["ema"]["weights"].items():
            assert torch.equal(read["ema"]["weights"][key], value), key


def test_a_package_that_is_missing_is_named_before_any_work(
    weights: Path, dynamic: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for missing, flags, message in (
        ("onnx", {}, "--format onnx needs onnx, which is not installed. pip install onnx"),
        ("onnxslim", {"simplify": True}, "--format onnx needs onnxslim"),
        ("onnxscript", {"opset": 21, "format": ("openvino",)}, "--format openvino needs onnxscript"),
        ("safetensors", {"format": ("safetensors",)}, "--format safetensors needs safetensors"),
    ):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, missing, None)
            with pytest.raises(UserError, match=message):
                write(Path("none.pt"), **flags)
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "onnxruntime", None)
        with pytest.raises(UserError, match=r"best\.onnx needs onnxruntime, which is not inst"):
            YOLO(dynamic)


def test_what_does_not_fit_is_a_line_on_all_ranks(
    dynamic: Path, static: Path, folder: Path, tmp_path: Path
) -> None:
    for file, flags, message in (
        (static, {"imgsz": 640}, "--imgsz 640, but its inputs are 96x64"),
        (static, {"imgsz": 96}, "--imgsz 96, but its inputs are 96x64"),
        (dynamic, {"head": "one2many"}, "--head one2many, but it was exported with head one2one"),
        (dynamic, {"augment": True}, "--augment and an exported file"),
        (dynamic, {"half": True}, "--half and an exported file"),
        (dynamic, {"precision": "bf16"}, "--precision bf16 and an exported file"),
        (dynamic, {"classes": (3,)}, "--classes names 3. the classes are 0 cat"),
        (dynamic, {"device": "0"}, "--device names GPU 0, this host has 0"),
        (dynamic.with_name("none.onnx"), {}, "none.onnx: No such file"),
        (dynamic.with_name("best.engine"), {}, "files of TensorRT are not run here"),
    ):
        with pytest.raises(UserError) as caught:
            rows(file, folder, 2, tmp_path, **flags)
        assert message in str(caught.value)
    with pytest.raises(UserError, match="an exported file has no weights to begin with"):
        load_weights(dynamic)


def scored(weights: Path, data: Path, ranks: int, **flags: Any) -> Evaluation:
    usual: dict[str, Any] = {"conf_thres": LEAST, "iou_thres": 0.6, "imgsz": 160, "batch_size": 8}
    options = ValOptions(weights=str(weights), data=str(data), device="cpu", workers=0, **{**usual, **flags})
    (found, *others) = run_world(ranks, lambda comm: validate(options, comm)[0])
    assert all(other.summary.map50_95 == found.summary.map50_95 for other in others)
    return found


@needs_references
@pytest.mark.parametrize("name", ["yolov5n", "yolov8n", "yolo11n", "yolo26n"])
def test_the_map_of_real_checkpoints_is_that_of_their_files(
    name: str, shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a dynamic file, of one with half precision, and of a static one with suppression in it.

    The pictures are a third of BCCD's. The checkpoints were trained for minutes and find hardly a cell of
    blood, so no mistake would cost them much: they are scored by what they find themselves, the five best.
    """
    monkeypatch.chdir(tmp_path)
    source = REFERENCES / "checkpoints" / f"{name}-bccd3{'-finetuned' * (name == 'yolov8n')}.pt"
    some = sorted((shared_data / "bccd/images/val").iterdir())[::3]
    data = own_findings(source, some, tmp_path, ("RBC", "WBC", "Platelets"))
    expected = scored(source, data, 1).summary
    assert expected.map50_95 > 0.2
    file = write(source, dynamic=True, out=str(tmp_path))
    found = scored(file, data, 2)
    assert found.summary.map50_95 == pytest.approx(expected.map50_95, abs=1e-3)
    assert found.summary.map50 == pytest.approx(expected.map50, abs=1e-3)
    assert found.head == ("one2one" if "26" in name else "") and not found.losses
    half = scored(write(source, dynamic=True, half=True, out=str(tmp_path)), data, 1)
    assert half.summary.map50_95 == pytest.approx(expected.map50_95, abs=5e-3)
    squares = scored(source, data, 1, rect=False).summary
    suppressing = {"nms": True, "conf_thres": LEAST, "iou_thres": 0.6, "multi_label": True, "batch_size": 5}
    fixed = scored(write(source, imgsz=(160,), out=str(tmp_path), **suppressing), data, 2)
    assert fixed.summary.map50_95 == pytest.approx(squares.map50_95, abs=1e-3)
    assert not fixed.rect


def own_findings(
    weights: Path, pictures: Sequence[Path], folder: Path, names: Sequence[str], **flags: Any
) -> Path:
    """A data.yaml of pictures whose labels are the five best boxes that the weights find in each."""
    usual: dict[str, Any] = {"imgsz": 160, "conf_thres": LEAST, "iou_thres": 0.45, "max_det": 5}
    options = PredictOptions(
        weights=str(weights),
        source=tuple(map(str, pictures)),
        device="cpu",
        save_txt=True,
        nosave=True,
        project=str(folder / "found"),
        **{**usual, **flags},
    )
    predict(options, COMM, StopRequest())
    (folder / "images/val").mkdir(parents=True)
    (folder / "labels").mkdir()
    (folder / "found/exp/labels").rename(folder / "labels/val")
    for picture in pictures:
        (folder / "images/val" / picture.name).symlink_to(picture)
    data = folder / "data.yaml"
    data.write_text(f"path: .\ntrain: images/val\nval: images/val\nnames: {[*names]}\n")
    return data
