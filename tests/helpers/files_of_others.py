"""Exported files as other trainers write them: outputs, names, sizes and metadata, made here."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import onnx
import torch
from torch import Tensor, nn

from horovod_yolo.export.network import ExportedNetwork
from horovod_yolo.models.detector import Detector
from tests.helpers.exporting import NAMES

HEIGHT, WIDTH = 64, 96
OF_V5 = {"stride": "32", "names": str(dict(enumerate(NAMES)))}
OF_ULTRALYTICS = {
    "description": "Ultralytics YOLOv8n model trained on coco.yaml",
    "author": "Ultralytics",
    "version": "8.4.190",
    "license": "AGPL-3.0 License (https://ultralytics.com/license)",
    "stride": "32",
    "task": "detect",
    "batch": "1",
    "imgsz": str([HEIGHT, WIDTH]),
    "names": str(dict(enumerate(NAMES))),
    "args": "{'batch': 1, 'half': False, 'dynamic': False, 'simplify': True, 'opset': None, 'nms': False}",
}


class Theirs(nn.Module):
    """A model with the one output of their files: ``v5``, ``v8`` or ``once``."""

    def __init__(self, model: Detector, form: str) -> None:
        super().__init__()
        self.net, self.form = ExportedNetwork(model), form

    def forward(self, images: Tensor) -> Tensor:
        corners, scores = self.net(images)
        boxes = torch.cat(((corners[..., :2] + corners[..., 2:]) / 2, corners[..., 2:] - corners[..., :2]), 2)
        if self.form == "v8":
            return torch.cat((boxes, scores), 2).transpose(1, 2)
        if self.form == "v5":  # the scores of classes, and of the place, whose product counts
            place = scores.amax(2, keepdim=True).sqrt()
            return torch.cat((boxes, place, scores / place), 2)
        score, number = scores.max(2, keepdim=True)
        order = score[..., 0].topk(40, dim=1).indices[..., None]
        rows = torch.cat((corners, score, number.float()), 2)
        return rows.gather(1, order.expand(-1, -1, 6))


def write_theirs(
    path: Path, model: Detector, form: str, texts: dict[str, str], *, dynamic: bool = False
) -> Path:
    axes = {"images": {0: "batch", 2: "height", 3: "width"}, "output0": {0: "batch"}}
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            Theirs(model, form).eval(),
            (torch.zeros(1, 3, HEIGHT, WIDTH),),
            buffer,  # type: ignore[arg-type]  # a name is not needed
            dynamo=False,
            input_names=["images"],
            output_names=["output0"],
            opset_version=17,
            dynamic_axes=axes if dynamic else None,
        )
    proto = onnx.load_from_string(buffer.getvalue())
    onnx.helper.set_model_props(proto, texts)
    path.write_bytes(proto.SerializeToString())
    return path
