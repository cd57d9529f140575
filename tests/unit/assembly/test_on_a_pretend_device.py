"""Runs on a device that is not the CPU: all tensors are there, and steps wait as seldom as they can."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from horovod_yolo.assembly.device import choose_precision, pinned
from horovod_yolo.assembly.model import build_criterion, trained_model
from horovod_yolo.assembly.run import new_run, resumed_run
from horovod_yolo.assembly.settings import settings_of_state
from horovod_yolo.assembly.train import train
from horovod_yolo.assembly.validate import ValOptions, validate
from horovod_yolo.checkpoint.state import copied
from horovod_yolo.core.errors import StoppedError
from horovod_yolo.data.read import read_image
from horovod_yolo.families.zoo import build_model
from horovod_yolo.losses.criterion import by_name, count
from horovod_yolo.models.detector import Detector
from horovod_yolo.prediction.predict import predict_images
from horovod_yolo.process.stop import StopRequest
from horovod_yolo.training.passes import Passes
from tests.helpers.pretend_device import NAME, Log, PretendTensor, pretend_device
from tests.helpers.runs import checkpoint, largest_loss_difference, same_bits
from tests.helpers.short_runs import ALONE, make_trainer, random_batch, settings, trained

SHORT = {"batch_size": 4, "max_steps": 2}  # float16 is slow on a CPU


@pytest.fixture
def log() -> Iterator[Log]:
    with pretend_device() as log:
        yield log


def test_the_device_is_as_strict_as_a_gpu(log: Log) -> None:
    there, here = torch.ones(3, device=NAME), torch.ones(3)
    with pytest.raises(RuntimeError, match="expected all tensors to be on the same device"):
        there + here
    with pytest.raises(TypeError, match="numpy"):
        there.numpy()
    assert not log.waits
    assert float((there + 2 * torch.ones(())).sum()) == 9  # a scalar of the CPU may take part
    assert there.cpu().tolist() == there.tolist() == [1, 1, 1]
    assert len(there.nonzero()) == 3
    here.copy_(there)
    assert [wait.split()[0] for wait in log.waits] == [
        *("_local_scalar_dense", "_to_copy", "tolist", "nonzero", "copy_")
    ]
    assert not log.copies_to_device
    there.copy_(here)
    assert type(here.to(NAME)) is PretendTensor
    assert len(log.copies_to_device) == 2


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_narrows_convolutions_and_their_gradients_are_wide(log: Log, dtype: torch.dtype) -> None:
    x, weight = torch.ones(1, 2, 4, 4, device=NAME), torch.ones(3, 2, 3, 3, device=NAME, requires_grad=True)
    with torch.autocast(NAME, dtype):
        y = F.conv2d(x, weight)
        both = torch.cat((y, x.expand(3, 2, 4, 4)[:1, :, :2, :2]), dim=1)
    assert (y.dtype, both.dtype) == (dtype, torch.float32)
    y.float().sum().backward()
    assert weight.grad is not None and (weight.grad.dtype, weight.grad.device.type) == (torch.float32, NAME)
    assert F.conv2d(x, weight).dtype == torch.float32


@pytest.fixture(scope="module")
def on_cpu(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(digits, tmp_path_factory.mktemp("cpu"), "cpu", precision="fp32", **SHORT)


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-3), ("fp16", 0.05), ("bf16", 0.2)])
def test_training_is_that_of_the_cpu(
    log: Log, digits: Path, tmp_path: Path, on_cpu: Path, precision: str, tolerance: float
) -> None:
    run = trained(digits, tmp_path / "there", NAME, precision=precision, **SHORT)
    assert (largest_loss_difference(run, on_cpu) > 1e-5) == (precision != "fp32")
    assert largest_loss_difference(run, on_cpu) < tolerance
    state = checkpoint(run)
    assert bool(state["scaler"]) == (precision == "fp16")
    assert {type(tensor) for tensor in tensors(state)} == {Tensor}


def test_auto_is_fp16_with_a_scaler_on_what_is_not_the_cpu() -> None:
    assert choose_precision("auto", torch.device(NAME, 0)).dtype == torch.float16
    assert choose_precision("auto", torch.device("cpu")).dtype == torch.float32


class StopsAtThirdLook(StopRequest):
    """Asked after the second step: each step looks once."""

    looks = 0

    @property
    def asked(self) -> bool:
        self.looks += 1
        return self.looks > 2

    @asked.setter
    def asked(self, value: bool) -> None:
        """Nobody else asks."""


def test_a_stopped_run_resumes_to_the_bit(log: Log, digits: Path, tmp_path: Path) -> None:
    flags: dict[str, Any] = {"precision": "fp16", "epochs": 1, "batch_size": 7}
    whole = trained(digits, tmp_path / "whole", NAME, **flags)
    flags |= {"project": str(tmp_path), "name": "stopped", "noplots": True, "noval": True}
    run = new_run(settings(digits, NAME, **flags), ALONE)
    with pytest.raises(StoppedError):
        train(run, ALONE, StopsAtThirdLook())
    assert checkpoint(run.folder)["step"] < 4
    train(resumed_run(str(run.folder), {}, ALONE), ALONE)
    for key in ("model", "ema", "optimizer", "scaler", "metrics", "step", "epoch"):
        assert same_bits(checkpoint(run.folder)[key], checkpoint(whole)[key]), key


def test_what_an_elastic_job_keeps_of_a_commit_is_on_the_cpu(log: Log, digits: Path) -> None:
    config = settings(digits, NAME, noval=True, precision="fp32")
    trainer = make_trainer(config)
    trainer.train_epoch()
    kept = copied(trainer.state())
    at_commit = copied(kept)
    trainer.train_epoch()  # goes on in the same tensors
    assert same_bits(kept, at_commit)
    assert {type(tensor) for tensor in tensors(kept)} == {Tensor}
    again = make_trainer(config, kept)
    again.train_epoch()
    assert same_bits(copied(again.state())["model"], copied(trainer.state())["model"])


def test_validation_and_prediction_find_what_they_find_on_the_cpu(
    log: Log, digits: Path, on_cpu: Path
) -> None:
    weights = on_cpu / "weights" / "best.pt"
    scores = [
        validate(ValOptions(weights=str(weights), device=device, workers=0, precision="fp32"), ALONE)[0]
        for device in (NAME, "cpu")
    ]
    assert scores[0].summary.map50_95 == pytest.approx(scores[1].summary.map50_95, abs=1e-6)
    images = [read_image(path) for path in sorted((digits.parent / "images" / "val").iterdir())[:2]]
    found = []
    for device in (torch.device(NAME, 0), torch.device("cpu")):
        model = trained_model(weights)[0].to(device)
        precision = choose_precision("fp32", device)
        log.clear()
        found.append(predict_images(model, images, 64, precision, conf_threshold=0.001))
        assert bool(log.copies_to_device) == (device.type == NAME)  # the inputs; results are on the CPU
    for there, here in zip(*found, strict=True):
        assert len(here.scores) and there.boxes_xyxy.device.type == "cpu"
        torch.testing.assert_close(there.boxes_xyxy, here.boxes_xyxy)


@pytest.mark.parametrize(
    ("cfg", "optimizer", "precision", "passes", "digests"),
    [
        ("yolov5n", "SGD", "fp32", 1, False),
        ("yolov5n", "MuSGD", "fp16", 2, False),
        ("yolo11n", "AdamW", "fp32", 1, False),
        ("yolov5n", "SGD", "fp16", 1, True),
    ],
)
def test_a_step_waits_for_the_device_for_its_numbers_only(
    log: Log, digits: Path, cfg: str, optimizer: str, precision: str, passes: int, digests: bool
) -> None:
    """Once, when they are read, and then for the digest of the weights, which is there by then.

    To the device go the images, and all that is known of the targets at once.

    What cannot step where the device decides (MuSGD) waits for them before the step. The first step is not
    counted: it makes what later ones keep.
    """
    trainer = make_trainer(settings(digits, NAME, cfg=cfg, optimizer=optimizer, precision=precision))
    trainer.stepper.passes = Passes(2, passes)
    trainer.stepper.digests = digests
    for seed in (1, 2):
        log.clear()
        step = trainer.stepper.step(iter([random_batch(2, 64, classes=10, seed=seed)]), [1.0])
        trainer.ema.update(trainer.stepper.model, step.made)
        before = len(log.waits)
        step.result()
    assert before == (optimizer == "MuSGD")
    assert len(log.waits) == 1 + digests, Counter(log.waits)
    assert len(log.copies_to_device) == 1 + passes, Counter(log.copies_to_device)


def test_the_loss_of_a_size_that_no_value_decides_is_that_of_the_answers_alone(log: Log) -> None:
    """On a device the assignment gives more cells than answer. The others add nothing, nor to gradients."""
    torch.manual_seed(0)
    here = build_model("yolo26n", 10)
    there = copy.deepcopy(here).to(NAME)
    batch, found = random_batch(3, 64, classes=10, seed=4), []
    for model in (there, here):
        criterion = build_criterion(model, settings(Path("none.yaml"), "cpu", cfg="yolo26n"))
        images = batch.images.to(next(model.parameters()).device).float() / 255
        predictions = model.eval()(images)
        matches = criterion.match(batch.targets, (64, 64), predictions)
        totals = by_name(criterion, count(criterion, [matches], len(batch)))
        loss = criterion(predictions, matches, totals)
        loss.total.backward()
        gradients = [p.grad.cpu() for p in model.parameters() if p.grad is not None]
        found.append((loss.terms.cpu(), gradients, len(matches["one2many"].answers)))
    assert found[0][2] == 10 * len(batch.targets.image) > found[1][2]
    torch.testing.assert_close(found[0][0], found[1][0])
    for mine, theirs in zip(found[0][1], found[1][1], strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)


def test_passes_are_found_that_fit_the_devices_memory_and_a_run_keeps_them(
    log: Log, digits: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 6 images, 4 fit: two passes, as if that had been asked for."""
    whole, flags = Detector.forward, {"batch_size": 6, "precision": "fp32"}

    def limited(self: Detector, images: Tensor) -> Any:
        if images.device.type == NAME and len(images) > 4:
            raise torch.OutOfMemoryError("device out of memory")
        return whole(self, images)

    told = make_trainer(settings(digits, NAME, micro_batch=4, **flags))
    monkeypatch.setattr(Detector, "forward", limited)
    found = make_trainer(settings(digits, NAME, micro_batch="auto", **flags))
    assert (found.stepper.passes, found.config.micro_batch) == (Passes(6, 2), 4)
    for trainer in (told, found):
        trainer.stepper.step(iter([random_batch(6, 64, classes=10)]), [1.0])
    state = copied(found.state())
    assert same_bits(state["model"], copied(told.state())["model"])
    assert (state["config"]["micro_batch"], state["passes"]) == (4, 2)
    assert told.about["arithmetic"]["unlike"] == ""
    said = state["arithmetic"]["unlike"]
    assert said.endswith("--micro-batch 4 gives these bits anywhere"), "another GPU may have other memory"
    again = make_trainer(settings_of_state(state), state=state)
    assert again.stepper.passes == Passes(6, 2) and again.about["arithmetic"]["unlike"] == said
    whole_slice = make_trainer(settings(digits, NAME, micro_batch="auto", batch_size=4, precision="fp32"))
    assert whole_slice.stepper.passes == Passes(4) and not whole_slice.about["arithmetic"]["unlike"]


def test_no_page_is_locked_for_what_is_no_gpu(digits: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To lock pages is to make a CUDA context, also where a run is to use the CPU only."""
    asked = []
    original = torch.utils.data.DataLoader.__init__

    def remember(self: Any, *args: Any, **kwargs: Any) -> None:
        asked.append(kwargs["pin_memory"])
        original(self, *args, **kwargs)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.utils.data.DataLoader, "__init__", remember)
    make_trainer(settings(digits, "cpu"))
    assert asked == [False, False]  # of training and of validation
    assert pinned(torch.device("cuda", 0))


def tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    return [tensor for part in parts for tensor in tensors(part)]
