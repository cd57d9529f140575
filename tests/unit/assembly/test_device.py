"""Which device a rank takes, and that all take one of the same kind."""

from __future__ import annotations

from threading import current_thread

import pytest
import torch

from horovod_yolo.assembly.device import agreed_device, choose_device
from horovod_yolo.core.errors import UserError
from horovod_yolo.distributed.local import LocalCommunicator
from tests.helpers.world import WorldCommunicator, run_world, world_outcomes


class Rank(LocalCommunicator):
    """One of two ranks."""

    def __init__(self, rank: int) -> None:
        self.rank, self.size, self.local_rank, self.local_size = rank, 2, rank, 2


def test_devices_of_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    assert choose_device("cpu", Rank(1)) == torch.device("cpu")
    assert choose_device("", Rank(1)) == torch.device("cuda", 1)
    assert choose_device("2,3", Rank(1)) == torch.device("cuda", 3)
    with pytest.raises(UserError, match="2 ranks on a host for 1 GPUs"):
        choose_device("2", Rank(1))
    assert chosen == [torch.device("cuda", 1), torch.device("cuda", 3)]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("", Rank(0)) == torch.device("cpu")


def give_gpus(monkeypatch: pytest.MonkeyPatch, of_ranks: dict[str, int]) -> None:
    """Pretend that each rank is alone on a host, named after it, where torch finds so many GPUs."""
    monkeypatch.setattr("socket.gethostname", lambda: f"host of {current_thread().name}")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: of_ranks[current_thread().name] > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: of_ranks[current_thread().name])
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)


def test_a_host_whose_driver_is_broken_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def device(comm: WorldCommunicator) -> torch.device:
        return agreed_device("", comm)

    alone = (1, 1, 1)
    give_gpus(monkeypatch, {"rank 0": 1, "rank 1": 0, "rank 2": 1})
    for error in world_outcomes(3, device, alone):
        assert isinstance(error, UserError)
        assert str(error).startswith(
            "no GPU can be used on host of rank 1, and host of rank 0, host of rank 2 would train on GPUs"
        )
    assert run_world(3, lambda comm: agreed_device("cpu", comm), alone) == [torch.device("cpu")] * 3
    for error in world_outcomes(3, lambda comm: agreed_device("0", comm), alone):
        assert "--device names GPU 0, this host has 0" in str(error) and "on rank 1 of 3" in str(error)
    give_gpus(monkeypatch, dict.fromkeys(("rank 0", "rank 1", "rank 2"), 1))
    assert run_world(3, device, alone) == [torch.device("cuda", 0)] * 3
    give_gpus(monkeypatch, dict.fromkeys(("rank 0", "rank 1", "rank 2"), 0))
    assert run_world(3, device, alone) == [torch.device("cpu")] * 3
