"""Files of other trainers as the weights of a run: outputs, names, licence, and lines for people."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from horovod_yolo import cli
from horovod_yolo.api import YOLO
from horovod_yolo.assembly import given_weights
from horovod_yolo.assembly.build import build_trainer
from horovod_yolo.assembly.data import build_data
from horovod_yolo.assembly.given_weights import load_weights, with_model
from horovod_yolo.assembly.model import trained_model
from horovod_yolo.assembly.published import published_checkpoint
from horovod_yolo.assembly.run import start_run
from horovod_yolo.assembly.settings import settings_of
from horovod_yolo.assembly.train import train
from horovod_yolo.assembly.validate import ValOptions, validate
from horovod_yolo.checkpoint import store
from horovod_yolo.core.boxes import xyxy_to_xywh
from horovod_yolo.core.errors import UserError
from horovod_yolo.core.types import Decoded
from horovod_yolo.data.spec import load_data_yaml
from horovod_yolo.distributed.communicator import Communicator
from horovod_yolo.distributed.local import LocalCommunicator
from horovod_yolo.families import zoo
from horovod_yolo.models.detector import Detector
from tests.helpers.published_files import V5, V8, published_weights, save_published
from tests.helpers.reference_fill import REFERENCES, needs_references
from tests.helpers.tiny_free import TinyFree, add_tiny_free
from tests.helpers.tiny_zoo import Tiny, add_tiny
from tests.helpers.world import run_world

COMM = LocalCommunicator()
DIGITS = [str(digit) for digit in range(10)]
Save = Callable[..., Path]


@pytest.fixture(scope="module", autouse=True)
def small_models() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        add_tiny(patch)
        add_tiny_free(patch)
        zoo._shapes_of.cache_clear()
        yield
    zoo._shapes_of.cache_clear()


@pytest.fixture
def save(tmp_path: Path) -> Save:
    """Writes a published-like file and gives its path."""

    def write(name: str = "tiny", names: Any = ("x", "7", "3"), file: str = "w.pt", **more: Any) -> Path:
        torch.manual_seed(5)
        model = zoo.build_model(name, len(names or "abc"), more.pop("variant", {}))
        kinds = V5 if name == "tiny" else V8
        save_published(tmp_path / file, model, names and [*names], **{"kinds": kinds, **more})
        return tmp_path / file

    return write


# Real files.


def outputs(model: Detector, head: str = "") -> Decoded:
    model.head.use(head)
    images = torch.from_numpy(np.load(REFERENCES / "reference/image.npy"))
    with torch.no_grad():
        decoded = model.head.decode(model(images))
    return Decoded(xyxy_to_xywh(decoded.boxes_xyxy), decoded.scores)


def close(given: Tensor, expected: Any, absolute: float, relative: float = 0.0) -> None:
    torch.testing.assert_close(given, torch.from_numpy(np.array(expected)), atol=absolute, rtol=relative)


@needs_references
@pytest.mark.parametrize(
    ("name", "array", "head"),
    [
        ("yolov5n-bccd3", "decoded", ""),
        ("yolov8n-bccd3-finetuned", "decoded", ""),
        ("yolo11n-bccd3", "decoded", ""),
        ("yolo11n-bccd3-midrun", "decoded", ""),
        ("yolo26n-bccd3", "decoded_one2many", "one2many"),
        ("yolo26n-bccd3", "decoded_one2one_xyxy", "one2one"),
    ],
)
def test_real_files_give_their_outputs(name: str, array: str, head: str) -> None:
    path = REFERENCES / "checkpoints" / f"{name}.pt"
    said = json.loads(path.with_suffix(".json").read_text())
    model, _, names = trained_model(path)
    assert dict(enumerate(names)) == {int(number): text for number, text in said["names"].items()}
    assert list(model.strides) == said["stride"]
    found = outputs(model, head)
    with np.load(path.with_suffix(".npz")) as arrays:
        expected = arrays[array]
    if name.startswith("yolov5"):  # objectness and class, which are one score here
        close(found.boxes_xyxy, expected[..., :4], 2e-3)
        close(found.scores, expected[..., 4:5] * expected[..., 5:], 1e-5, 1e-4)
        return
    boxes = found.boxes_xyxy if "xyxy" not in array else xywh_to_corners(found.boxes_xyxy)
    close(boxes, expected[:, :4].transpose(0, 2, 1), 2e-3)
    close(found.scores, expected[:, 4:].transpose(0, 2, 1), 0, 1e-3)


def xywh_to_corners(boxes: Tensor) -> Tensor:
    half = boxes[..., 2:] / 2
    return torch.cat((boxes[..., :2] - half, boxes[..., :2] + half), dim=-1)


@needs_references
def test_the_licence_and_the_width_of_a_real_file() -> None:
    state = published_checkpoint(REFERENCES / "checkpoints/yolov8n-bccd3-finetuned.pt")
    assert state["license"].startswith("AGPL-3.0")
    assert (state["model_name"], state["variant"]) == ("yolov8n", {"class_width": 80})
    assert state["config"]["imgsz"] == 160


# Files of our own making.


@pytest.mark.parametrize("name", ["tiny", "tiny8", "tiny11", "tiny26"])
def test_each_family_is_read_with_its_variant(name: str, save: Save) -> None:
    variant = {"anchors_a_level": 3} if name == "tiny" else {"class_width": 24}
    path = save(name, variant=variant)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    state = load_weights(path)
    assert torch.equal(torch.get_rng_state(), before), "the run's random numbers are its own"
    assert (state["model_name"], state["variant"], state["names"]) == (name, variant, ["x", "7", "3"])
    torch.manual_seed(5)
    expected = zoo.build_model(name, 3, variant).state_dict()
    for key, value in expected.items():
        rounded = value.half().float() if value.is_floating_point() else value
        assert torch.equal(state["ema"]["weights"][key], rounded), key


def test_the_anchors_are_those_of_the_buffer(save: Save, tmp_path: Path) -> None:
    model = Tiny().build("tiny", 3)
    model.head.anchors.mul_(1.5)  # as after a fit: no longer the defaults
    save_published(tmp_path / "w.pt", model, ["a", "b", "c"])
    assert torch.equal(trained_model(tmp_path / "w.pt")[0].head.anchors, model.head.anchors)


def settings(data: Path, tmp_path: Path, **flags: Any) -> dict[str, Any]:
    return {
        "data": str(data),
        "imgsz": 64,
        "batch_size": 14,
        "epochs": 1,
        "max_steps": 1,
        "workers": 0,
        "device": "cpu",
        "noplots": True,
        "project": str(tmp_path / "runs"),
        **flags,
    }


def test_training_starts_from_a_file_without_cfg_and_keeps_its_licence(
    digits: Path, save: Save, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    path = save(license="AGPL-3.0 (somewhere)")
    run = start_run("", settings(digits, tmp_path, weights=str(path)), COMM)
    assert run.config.cfg == "tiny"
    train(run, COMM)
    assert "weights: 2 of 10 classes and" in caplog.text and f"taken from {path}" in caplog.text
    assert caplog.text.count("carry their own licence (of this file: AGPL-3.0 (somewhere)") == 1
    for name in ("best.pt", "last.pt"):
        assert store.read(run.folder / "weights" / name)["license"] == "AGPL-3.0 (somewhere)"
    # It goes on to what is trained from that, and to what goes on with it.
    path.unlink()
    second = start_run("", settings(digits, tmp_path, weights=str(run.folder / "weights/best.pt")), COMM)
    train(second, COMM)
    assert store.read(second.folder / "weights/best.pt")["license"] == "AGPL-3.0 (somewhere)"
    resumed = start_run(str(second.folder), {}, COMM)
    data = build_data(load_data_yaml(digits), resumed.config, COMM)
    assert build_trainer(resumed.config, data, COMM, [], resumed.state).state()["license"].startswith("AGPL")


def test_rows_of_the_class_branch_go_by_name(digits: Path, save: Save, tmp_path: Path) -> None:
    """Ten names of which nine are none of ours: as many, and still not by their place."""
    theirs = ["7", *(f"other {number}" for number in range(9))]
    weights = load_weights(save("tiny8", theirs))["ema"]["weights"]
    flags = settings(digits, tmp_path, weights=str(tmp_path / "w.pt"), cfg="tiny8")
    config = settings_of(flags)
    data = build_data(load_data_yaml(digits), config, COMM)
    own = build_trainer(config, data, COMM, [], None).stepper.model.state_dict()
    key = "head.cv3.0.2.weight"
    ours = load_data_yaml(digits).names
    assert torch.equal(own[key][ours.index("7")], weights[key][0])
    for number, name in enumerate(ours):
        assert name == "7" or not torch.equal(own[key][number], weights[key][number])


def test_only_rank_0_needs_the_file(
    digits: Path, save: Save, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save("tiny8", DIGITS, variant={"class_width": 24})

    def on_its_host(file: Path) -> None:
        if not threading.current_thread().name.endswith(" 0"):
            raise UserError("there is no such file", where=file)

    monkeypatch.setattr(given_weights, "_require_there", on_its_host)

    def job(comm: Communicator) -> tuple[str, dict[str, int], float]:
        given = with_model(settings(digits, tmp_path, weights=str(path)), comm)
        config = settings_of(given)
        data = build_data(load_data_yaml(digits), config, COMM)
        model = build_trainer(config, data, comm, [], None).stepper.model
        return model.name, model.variant, sum(float(p.detach().sum()) for p in model.parameters())

    one, other = run_world(2, job)
    assert one == other and one[:2] == ("tiny8", {"class_width": 24})


def test_val_needs_data_and_the_same_names(digits: Path, save: Save) -> None:
    path = str(save(names=DIGITS))
    with pytest.raises(UserError, match=r"do not say what they were trained on.*--data"):
        validate(ValOptions(weights=path), COMM)
    quick: dict[str, Any] = {"data": str(digits), "imgsz": 64, "workers": 0, "device": "cpu"}
    evaluation, names = validate(ValOptions(weights=path, **quick), COMM)
    assert evaluation.summary is not None and list(names) == DIGITS
    with pytest.raises(UserError, match=r"differ: '9'.*'nine'|'nine'.*'9'"):
        validate(ValOptions(weights=str(save(names=[*DIGITS[:9], "nine"])), **quick), COMM)


def test_tensors_alone_have_the_names_of_the_data(
    digits: Path, save: Save, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    torch.manual_seed(5)
    tensors = {key: value.clone() for key, value in published_weights(zoo.build_model("tiny11", 10)).items()}
    save_file(tensors, tmp_path / "t.safetensors")
    assert trained_model(tmp_path / "t.safetensors")[2][:2] == ("class0", "class1")
    quick: dict[str, Any] = {"data": str(digits), "imgsz": 64, "workers": 0, "device": "cpu"}
    _, names = validate(ValOptions(weights=str(tmp_path / "t.safetensors"), **quick), COMM)
    assert list(names) == DIGITS
    assert "does not name its classes: they are taken to be '0', '1'" in caplog.text


def test_a_contradicting_cfg_is_noticed_before_a_folder_is_made(
    digits: Path, save: Save, tmp_path: Path
) -> None:
    for weights in (save(), tmp_path / "none.pt"):
        with pytest.raises(UserError, match=r"weights are of tiny, not of yolov5s|none\.pt: No such file"):
            start_run("", settings(digits, tmp_path, weights=str(weights), cfg="yolov5s"), COMM)
    assert not (tmp_path / "runs").exists()


def test_a_contradicting_cfg_and_one_that_decides(save: Save, tmp_path: Path) -> None:
    path = save()
    with pytest.raises(UserError, match=r"w\.pt: weights are of tiny, not of yolov5s\. leave --cfg out"):
        load_weights(path, "yolov5s")

    class Twin(Tiny):
        models = {"twin": Tiny.models["tiny"]}  # noqa: RUF012

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(zoo, "FAMILIES", (*zoo.FAMILIES, Twin()))
        with pytest.raises(UserError, match=r"may be those of tiny or twin\. say which it is: --cfg tiny"):
            load_weights(path)
        assert load_weights(path, "twin")["model_name"] == "twin"


STRANGERS: dict[str, tuple[dict[str, Any], str]] = {
    "segmentation": ({"kinds": {**V8, "whole": "ultralytics.nn.tasks.SegmentationModel"}}, "a segmentation"),
    "pose": ({"kinds": {**V8, "head": "ultralytics.nn.modules.head.Pose"}}, "this is a pose model"),
    "obb": ({"kinds": {**V8, "head": "ultralytics.nn.modules.head.OBB"}}, "a model of oriented boxes"),
    "classify": ({"kinds": {**V5, "whole": "models.yolo.ClassificationModel"}}, "a classification model"),
    "world": ({"kinds": {**V8, "whole": "ultralytics.nn.tasks.WorldModel"}}, "this is YOLO-World"),
    "rtdetr": ({"kinds": {**V8, "whole": "ultralytics.nn.tasks.RTDETRDetectionModel"}}, "this is RT-DETR"),
    "v10": ({"kinds": {**V8, "whole": "ultralytics.nn.tasks.YOLOv10DetectionModel"}}, "this is YOLOv10"),
    "activation": ({"activation": "torch.nn.modules.activation.LeakyReLU"}, "LeakyReLU for SiLU"),
}


@pytest.mark.parametrize("kind", [kind for kind in STRANGERS if kind != "activation"])
def test_models_that_are_no_detectors_here_are_named(kind: str, save: Save) -> None:
    more, words = STRANGERS[kind]
    with pytest.raises(UserError, match=words) as caught:
        load_weights(save(**more))
    assert "w.pt: this is" in str(caught.value)


def as_shapes(**changed: tuple[int, ...] | None) -> dict[str, tuple[int, ...]]:
    shapes = {key: tuple(v.shape) for key, v in published_weights(TinyFree().build("tiny8", 3)).items()}
    named = {key.replace("__", "."): shape for key, shape in changed.items()}
    return {key: shape for key, shape in {**shapes, **named}.items() if shape is not None}


@pytest.mark.parametrize(
    ("shapes", "words"),
    [
        (as_shapes(model__2__proto__cv1__conv__weight=(1,)), "a segmentation model"),
        (as_shapes(model__2__cv4__0__2__bias=(1,)), "poses or oriented boxes"),
        (as_shapes(model__2__linear__weight=(1,)), "a classification model"),
        (as_shapes(model__2__one2one_cv2__0__2__bias=(1,)), "YOLOv10"),
        (as_shapes(model__0__conv__conv__weight=(32, 12, 3, 3)), r"before 6.0 \(its first layer is Focus\)"),
        (as_shapes(model__2__cv2__0__2__scale=()), "quantised"),
        ({key: shape for key, shape in as_shapes().items() if ".bn." not in key}, "a fused model"),
        (as_shapes(model__1__more=(1,)), "not those of a model that is known here. known are yolov5n"),
    ],
)  # fmt: skip
def test_tensors_tell_what_they_are_not_of(shapes: dict[str, tuple[int, ...]], words: str) -> None:
    with pytest.raises(UserError, match=words):
        zoo.recognise(shapes)


def test_another_activation_is_another_model(save: Save) -> None:
    with pytest.raises(UserError, match="a model with LeakyReLU for SiLU"):
        zoo.recognise(as_shapes(), {"Conv", "SiLU", "LeakyReLU"})


def test_names_and_strides_that_do_not_fit(save: Save, tmp_path: Path) -> None:
    model = zoo.build_model("tiny", 3)
    save_published(tmp_path / "w.pt", model, ["a", "b"])
    with pytest.raises(UserError, match=r"w\.pt: it names 2 classes, its head has 3"):
        load_weights(tmp_path / "w.pt")
    model.strides = (4, 8)
    save_published(tmp_path / "w.pt", model, ["a", "b", "c"])
    with pytest.raises(UserError, match=r"its strides are \(4\.0, 8\.0\), those of tiny \(8, 16\)"):
        load_weights(tmp_path / "w.pt")


def test_a_missing_file_is_not_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as caught:
        load_weights(Path("yolov5s.pt"))
    assert str(caught.value) == (
        f"yolov5s.pt: No such file; looked for {tmp_path}/yolov5s.pt. nothing is downloaded: "
        "get yolov5s.pt (published weights of yolov5s) and give its path"
    )
    with pytest.raises(UserError, match=r"weights are a file, such as yolov5s\.pt; for a new model"):
        load_weights(Path("yolov5s"))


def test_import_writes_our_format(save: Save, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, target = save(license="L"), tmp_path / "ours.pt"
    assert cli.main(["data", "import-weights", str(path), str(target)]) == 0
    assert f"tiny with 3 classes in {target}" in capsys.readouterr().out
    assert store.read(target)["license"] == "L"
    again, imported = trained_model(target), trained_model(path)
    assert again[1:] == imported[1:]
    for key, value in imported[0].state_dict().items():
        assert torch.equal(again[0].state_dict()[key], value)
    assert cli.main(["data", "import-weights", str(path), str(target)]) == 2
    assert "there is such a file already" in capsys.readouterr().err
    assert cli.main(["data", "import-weights", str(target), str(tmp_path / "x.pt")]) == 2
    assert "a checkpoint of horovod_yolo already" in capsys.readouterr().err


def test_from_python(save: Save, tmp_path: Path) -> None:
    (tmp_path / "t.safetensors").write_bytes(b"")
    model = YOLO(save())
    assert model.name == "tiny"
    found = model.predict([np.zeros((64, 64, 3), np.uint8)], imgsz=64, device="cpu")
    assert len(found) == 1
    with pytest.raises(UserError, match=r"t\.safetensors: it is no file of"):
        YOLO(tmp_path / "t.safetensors")
