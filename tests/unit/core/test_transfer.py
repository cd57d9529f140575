"""What goes to a device in one copy, and what comes back later."""

from __future__ import annotations

import torch

from horovod_yolo.core.transfer import Fetched, moved, numbers
from tests.helpers.pretend_device import NAME, pretend_device

CPU = torch.device("cpu")


def test_small_tensors_of_all_kinds_travel_as_one() -> None:
    tensors = [
        torch.tensor([True, False, True]),
        torch.arange(6).view(2, 3).T,
        torch.zeros(0, 4),
        torch.tensor(1.5, dtype=torch.float64),
        torch.rand(3, 2, dtype=torch.float16),
        torch.zeros(0, dtype=torch.int64),
        torch.rand(5),
    ]
    with pretend_device() as log:
        there = moved(tensors, torch.device(NAME, 0))
        assert len(log.copies_to_device) == 1 and not log.waits
        back = [tensor.cpu() for tensor in there]
    assert {tensor.device.type for tensor in there} == {NAME}
    for tensor, other in zip(tensors, back, strict=True):
        assert other.dtype == tensor.dtype and torch.equal(other, tensor)
    assert all(a is b for a, b in zip(moved(tensors, CPU), tensors, strict=True))


def test_numbers_are_made_where_they_are_wanted_and_read_when_they_are() -> None:
    with pretend_device() as log:
        made = numbers([1.5, 2, 3], torch.zeros(1, dtype=torch.float64, device=NAME))
        fetched = Fetched(made)
        assert not log.copies_to_device and not log.waits
        assert fetched.read() == fetched.read() == [1.5, 2, 3]
        assert len(log.waits) == 1
    here = numbers([1.5, 2], torch.zeros(1))
    assert here.dtype == torch.float32 and Fetched(here).read() == [1.5, 2]
