"""Models to export whose outputs are no constants, and what their files say and give."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from horovod_yolo.core.types import Decoded, Detections
from horovod_yolo.export.about import About
from horovod_yolo.export.onnx_run import OnnxRunner
from horovod_yolo.export.running import ExportedFile, Runner
from horovod_yolo.families import zoo
from horovod_yolo.families.anchor_based.head import AnchorHead
from horovod_yolo.models.detector import Detector
from tests.helpers.reference_fill import fill

NAMES = ("cat", "dog", "bird/fish")
# Of the weights: with less all places give the same, with more rounding becomes chaos.
GAINS = {"yolov5n": 1.5, "yolov3-tiny": 1.41, "yolov8n": 1.5, "yolo11n": 1.43, "yolo26n": 1.3}
RISE = 3.0  # of objectness and class logits, which the filling puts where scores are next to 0


def filled_model(name: str, head: str = "") -> Detector:
    """Always the same weights."""
    model = zoo.build_model(name, len(NAMES))
    fill(model, GAINS[name])
    raise_scores(model)
    model.head.use(head)
    return model.eval()


def raise_scores(model: Detector) -> None:
    """To where they differ."""
    for key, value in model.head.named_parameters():
        if isinstance(model.head, AnchorHead) and key.endswith("bias"):
            value.data.view(-1, model.head.outputs)[:, 4:] += RISE
        elif "cv3" in key and key.endswith(".2.bias"):
            value.data += RISE


def about_of(model: Detector, imgsz: tuple[int, int] = (64, 96), **more: object) -> About:
    """What a dynamic file of it says, unless ``more`` says otherwise."""
    plain = About(
        model=model.name,
        names=NAMES,
        stride=max(model.strides),
        imgsz=imgsz,
        head=model.head.used,
        finds_once=model.head.finds_once,
    )
    return replace(plain, **more)  # type: ignore[arg-type]


def ready(content: bytes) -> Runner:
    """An ONNX file, ready on the CPU."""
    return OnnxRunner(ExportedFile("m.onnx", "onnx", (content,)), gpu=None, must=False, threads=1)


@torch.no_grad()
def decoded(model: Detector, images: Tensor) -> Decoded:
    """What the model gives."""
    result: Decoded = model.head.decode(model(images))
    return result


def pictures(images: int, height: int, width: int) -> Tensor:
    """(B, 3, H, W) in 0..1, always the same."""
    return torch.rand((images, 3, height, width), generator=torch.Generator().manual_seed(1))


def same_detections(found: list[Detections], expected: list[Detections]) -> None:
    """To the rounding of another program."""
    for one, other in zip(found, expected, strict=True):
        assert one.classes.tolist() == other.classes.tolist()
        torch.testing.assert_close(one.scores, other.scores, rtol=0, atol=1e-4)
        torch.testing.assert_close(one.boxes_xyxy, other.boxes_xyxy, rtol=0, atol=1e-3)
