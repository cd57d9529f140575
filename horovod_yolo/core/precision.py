"""Number formats of the network."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from horovod_yolo.core.types import Batch


@dataclass(frozen=True, kw_only=True)
class Precision:
    """Number format of the forward pass."""

    device: torch.device
    dtype: torch.dtype
    memory_format: torch.memory_format = torch.channels_last

    @property
    def of_weights(self) -> torch.dtype:
        """What the weights and the input are kept in: float32 under autocast too."""
        return torch.float64 if self.dtype == torch.float64 else torch.float32

    def images(self, batch: Batch) -> Tensor:
        """The images of a batch as the network's input."""
        return self.inputs(batch.images)

    def inputs(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) uint8 or scaled pixels -> the network's input in 0..1, on the device.

        Channels last: convolutions are up to a third faster so, on CPUs and on GPUs. The weights stay as
        they are, because Horovod and checkpoints want them contiguous.
        """
        images = pixels.to(self.device, self.of_weights, non_blocking=True)
        return images.contiguous(memory_format=self.memory_format) / 255

    def autocast(self) -> torch.autocast:
        """The context of the forward pass."""
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != self.of_weights)
