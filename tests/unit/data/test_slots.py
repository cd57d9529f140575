"""What a worker has written stays as it is while the trainer has a tensor over it; then its place is free."""

from __future__ import annotations

import os
import pickle

import pytest
import torch
from torch import Tensor

from horovod_yolo.data.slots import Slots, usable

SHAPE = (2, 3, 4, 5)


def filled(slots: Slots, value: int, shape: tuple[int, ...] = SHAPE) -> bytes:
    filling = slots.take(shape)
    filling.images.fill_(value)
    return pickle.dumps(filling)


def test_a_batch_in_a_slot_becomes_a_tensor_over_the_same_memory() -> None:
    slots = Slots()
    filling = slots.take(SHAPE)
    filling.images.copy_(torch.arange(120).view(SHAPE))
    images: Tensor = pickle.loads(pickle.dumps(filling))
    assert images.dtype == torch.uint8 and images.is_contiguous()
    assert torch.equal(images, torch.arange(120, dtype=torch.uint8).view(SHAPE))
    filling.images.fill_(7)
    assert (images == 7).all()


def test_a_slot_is_used_again_when_no_view_of_its_batch_is_left() -> None:
    slots = Slots()
    one, two = (pickle.loads(filled(slots, value)) for value in (1, 2))
    assert (one == 1).all() and (two == 2).all(), "what is needed is not overwritten"
    part = one[1:, :2]
    del one
    third = filled(slots, 3)
    assert (part == 1).all(), "a view of it is a need for it"
    del part, two
    assert len({_address(filled(slots, 0)), _address(filled(slots, 0)), _address(third)}) == 3
    assert len(slots._slots) == 3


def _address(pickled: bytes) -> bytes:
    return pickled[pickled.index(b"/proc") :][:40]


def test_slots_grow_and_hold_smaller_batches_and_none() -> None:
    slots = Slots()
    for shape in ((1, 3, 2, 2), (4, 3, 64, 64), (2, 3, 8, 8), (0, 3, 64, 64), (5, 3, 64, 64)):
        images = pickle.loads(filled(slots, 9, shape))
        assert images.shape == shape and (images == 9).all()
        del images
    assert len(slots._slots) == 1


def test_a_system_without_such_memory_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise PermissionError

    assert usable.__wrapped__()
    with monkeypatch.context() as patch:
        patch.setattr(os, "open", refuse)
        assert not usable.__wrapped__()
