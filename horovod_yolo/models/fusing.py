"""A network without batch norm, for evaluation: each becomes a part of the convolution before it."""

from __future__ import annotations

import copy

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from horovod_yolo.models.detector import Detector


def fused(model: Detector) -> Detector:
    """A copy in evaluation mode that predicts the same but for rounding, and cannot be trained or saved."""
    copied = copy.deepcopy(model).eval().requires_grad_(False)
    fuse(copied)
    return copied


def fuse(model: nn.Module) -> None:
    """The same in place, in the precision of the weights, for a model in evaluation mode.

    Not in half precision: the running variance of a channel may be out of its range.
    """
    for block in model.modules():
        convolution, norm = getattr(block, "conv", None), getattr(block, "bn", None)
        if isinstance(convolution, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
            block.conv, block.bn = fuse_conv_bn_eval(convolution, norm), nn.Identity()
