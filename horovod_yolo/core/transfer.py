"""Between the host and a device, without making either wait for the other.

A copy from memory that is not page-locked, a size that depends on values, and a number that is read: each
makes the host wait until the device has done all that it was given, and then the device waits for more.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor

_ALIGNED = 8  # bytes: the widest type's


def moved(tensors: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """Small tensors of the host on a device, in one copy that nobody waits for; on the CPU they stay."""
    if device.type == "cpu":
        return list(tensors)
    sizes = [-(-tensor.nbytes // _ALIGNED) * _ALIGNED for tensor in tensors]
    message = torch.empty(sum(sizes), dtype=torch.uint8, pin_memory=device.type == "cuda")
    for place, tensor in zip(_places(message, tensors, sizes), tensors, strict=True):
        place.copy_(tensor)
    return _places(message.to(device, non_blocking=True), tensors, sizes)


def _places(message: Tensor, like: Sequence[Tensor], sizes: Sequence[int]) -> list[Tensor]:
    """Views of the message's bytes as tensors of these types and shapes."""
    starts = accumulate(sizes, initial=0)
    return [
        message[start : start + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
        for start, tensor in zip(starts, like, strict=False)
    ]


def numbers(values: Sequence[float], like: Tensor) -> Tensor:
    """(n,) values in the type and on the device of another tensor, to which nothing is copied."""
    if like.device.type == "cpu":
        return like.new_tensor(values)
    return torch.cat([like.new_full((1,), value) for value in values])


class Fetched:
    """(n,) numbers on their way from a device to the host, which goes on meanwhile."""

    def __init__(self, there: Tensor) -> None:
        device = there.device
        self._here, self._arrived = there, None
        if device.type != "cpu":
            self._here = torch.empty(there.shape, dtype=there.dtype, pin_memory=device.type == "cuda")
            self._here.copy_(there, non_blocking=True)
            self._arrived = getattr(torch, device.type).Event()
            self._arrived.record()

    def read(self) -> list[float]:
        """Them, once the device has come so far. Integers keep all their bits."""
        if self._arrived is not None:
            self._arrived.synchronize()
            self._arrived = None
        values: list[float] = self._here.tolist()
        return values
