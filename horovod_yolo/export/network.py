"""A trained model as one function from images to boxes and scores, for a file."""

from __future__ import annotations

import copy

from torch import Tensor, nn

from horovod_yolo.models.detector import Detector
from horovod_yolo.models.fusing import fuse


class ExportedNetwork(nn.Module):
    """A copy of a detector that does nothing but detect; the detector stays as it is.

    Batch norm is part of the convolutions. With ``half`` the weights are float16 and so is the arithmetic up
    to the head's predictions; these are decoded in float32. Inputs and outputs are float32 either way.
    """

    def __init__(self, model: Detector, *, half: bool = False) -> None:
        super().__init__()
        self.model = copy.deepcopy(model).float().eval().requires_grad_(False)
        self.half_precision = half
        fuse(self.model)
        if half:
            _halve(self.model)
        self.eval()

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, H, W) RGB in 0..1 -> boxes_xyxy (B, M, 4) in pixels of the input, scores (B, M, C)."""
        predictions = self.model(images.half() if self.half_precision else images)
        decoded = self.model.head.decode(predictions)
        return decoded.boxes_xyxy, decoded.scores


def _halve(model: Detector) -> None:
    """All but what the head decodes with (anchors), which is its own buffers."""
    exact = {name: buffer.clone() for name, buffer in model.head.named_buffers(recurse=False)}
    model.half()
    for name, buffer in exact.items():
        setattr(model.head, name, buffer)
