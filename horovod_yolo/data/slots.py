"""Memory that a data worker fills again and again, and the trainer reads without a copy.

Fresh shared memory costs more than what is written to it: the kernel hands it out page by page, with zeros in
it. So a worker keeps what it has. A batch lies in a slot; the trainer maps the slot's descriptor and says by
one byte in front that it needs the batch no more, which is when the last tensor over it is gone. Until then
the worker takes another slot, so there are as many as the trainer holds batches at a time.
"""

from __future__ import annotations

import math
import mmap
import os
import weakref
from collections.abc import Iterable
from dataclasses import replace
from functools import cache
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from horovod_yolo.core.types import Batch, Targets

_FRONT = 64  # bytes before the batch, of which the first is 1 while it is needed


@cache
def usable() -> bool:
    """Whether there is memory without a name that another process can open, as on Linux with /proc."""
    try:
        descriptor = os.memfd_create("batch", os.MFD_CLOEXEC)
        try:
            os.close(os.open(f"/proc/{os.getpid()}/fd/{descriptor}", os.O_RDWR | os.O_CLOEXEC))
        finally:
            os.close(descriptor)
    except OSError:
        return False
    else:
        return True


class Slots:
    """The slots of this process."""

    def __init__(self) -> None:
        self._slots: list[Slot] = []

    def take(self, shape: tuple[int, ...]) -> Filling:
        """A slot that nobody needs, for an array of bytes of that shape. What it holds is anything.

        Raises:
            OSError: there is no memory or descriptor left.
        """
        slot = next((each for each in self._slots if each.is_free()), None)
        if slot is None:
            slot = Slot()
            self._slots.append(slot)
        return slot.taken(shape)


class Slot:
    """Memory without a name in any file system, and so without the limit of a container's ``/dev/shm``."""

    def __init__(self) -> None:
        self._descriptor = os.memfd_create("batch", os.MFD_CLOEXEC)
        os.ftruncate(self._descriptor, _FRONT)
        self._map = mmap.mmap(self._descriptor, _FRONT)
        self._closing = weakref.finalize(self, os.close, self._descriptor)

    def is_free(self) -> bool:
        """Whether the trainer has let the last batch go."""
        return self._map[0] == 0

    def taken(self, shape: tuple[int, ...]) -> Filling:
        """The slot, needed from now on, with room for a batch."""
        size = _FRONT + math.prod(shape)
        if len(self._map) < size:
            os.ftruncate(self._descriptor, size)
            self._map = mmap.mmap(self._descriptor, size)
        self._map[0] = 1
        images = np.frombuffer(self._map, np.uint8, math.prod(shape), _FRONT).reshape(shape)
        return Filling(f"/proc/{os.getpid()}/fd/{self._descriptor}", images)


class Filling:
    """A batch's images in a slot. Pickled, they are an address; unpickled, a tensor over the same memory."""

    def __init__(self, address: str, images: NDArray[np.uint8]) -> None:
        self.images = torch.from_numpy(images)
        self._address = address

    def __reduce__(self) -> tuple[Any, ...]:
        return _mapped, (self._address, tuple(self.images.shape))


class Copied:
    """A small tensor that travels in the message: PyTorch makes a file of shared memory for each."""

    def __init__(self, tensor: Tensor) -> None:
        self._tensor = tensor

    def __reduce__(self) -> tuple[Any, ...]:
        return torch.from_numpy, (self._tensor.numpy(),)


def sent(batch: Batch, images: Filling) -> Batch:
    """The batch as a worker sends it. Where it arrives it has tensors again."""
    targets = batch.targets
    numbers = (Copied(tensor) for tensor in (targets.image, targets.classes, targets.boxes_xywhn))
    return replace(
        batch,
        images=cast(Tensor, images),
        targets=Targets(*cast(Iterable[Tensor], numbers)),
        indices=cast(Tensor, Copied(batch.indices)),
    )


def _mapped(address: str, shape: tuple[int, ...]) -> Tensor:
    """The tensor in a slot of another process, which must live; the memory outlives it."""
    descriptor = os.open(address, os.O_RDWR | os.O_CLOEXEC)
    try:
        whole = mmap.mmap(descriptor, _FRONT + math.prod(shape))
    finally:
        os.close(descriptor)
    images = np.frombuffer(whole, np.uint8, math.prod(shape), _FRONT)
    # The array lives as long as any tensor over it.
    weakref.finalize(images, whole.__setitem__, 0, 0)
    return torch.from_numpy(images).view(shape)
