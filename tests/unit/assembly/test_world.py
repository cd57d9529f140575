"""Which ranks a command or a call starts, and what it refuses before anything is started."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from horovod_yolo.assembly.calls import _unspoken
from horovod_yolo.assembly.world import Wish, World, world_to_start
from horovod_yolo.core.errors import RanksFailedError, UserError
from horovod_yolo.distributed import backends
from horovod_yolo.distributed.launchers.alone import Alone
from horovod_yolo.distributed.launchers.torchrun import Torchrun
from horovod_yolo.launch.child import Ended
from horovod_yolo.launch.hostfile import parse_hosts

ALONE = Alone()
TWO = Torchrun(rank=1, size=2, local_rank=1, local_size=2)


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Horovod is installed, and there are two GPUs."""
    monkeypatch.setattr(backends, "horovod_built_with", lambda: ("Gloo",))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    return monkeypatch


@pytest.mark.parametrize(
    ("wish", "hosts"),
    [
        (Wish(), ""),
        (Wish(1), ""),
        (Wish(device="1"), ""),
        (Wish(2), "localhost:2"),
        (Wish(device="0,1"), "localhost:2"),
        (Wish(4, device="0,1"), "localhost:4"),
        (Wish(hosts="h1:4,h2:4"), "h1:4,h2:4"),
        (Wish(6, "h1:4,h2:4"), "h1:4,h2:2"),
        (Wish(hosts="h1:2,h2:2", device="0,7"), "h1:2,h2:2"),  # what other hosts have is not known here
        (Wish(1, "h1:4"), "h1:1"),
    ],
)
def test_what_is_started(wish: Wish, hosts: str) -> None:
    found = world_to_start(wish, "auto", ALONE)
    assert found == (World(parse_hosts(hosts), "horovod") if hosts else None)


def test_auto_is_horovod_where_it_is_installed(here: pytest.MonkeyPatch) -> None:
    assert str(world_to_start(Wish(2), "auto", ALONE)) == "starting 2 ranks on localhost, through Horovod"
    torch_ranks = world_to_start(Wish(3), "torch", ALONE)
    assert str(torch_ranks) == "starting 3 ranks on localhost, through torch.distributed"
    here.setattr(backends, "horovod_built_with", lambda: None)
    assert world_to_start(Wish(3), "auto", ALONE) == torch_ranks
    assert torch_ranks is not None and torch_ranks.flags == ["--torch", "--hosts", "localhost:3"]


@pytest.mark.parametrize(
    ("wish", "words"),
    [
        (Wish(0), "np is 0. it must be 1 or more"),
        (Wish(True), "np is True. it must be 1 or more"),
        (Wish(1, device="0,1"), "device 0,1 names 2 GPUs, and this host has 1 rank. give each GPU a rank"),
        (Wish(hosts="h1,h2", device="0,1"), "device 0,1 names 2 GPUs, and h1 has 1 rank"),
        (Wish(device="0,2,3"), r"device 0,2,3 names GPU 2, this host has 2 GPUs. use np=3 \(--np 3\) for 3"),
        (Wish(9, "h1:4"), "h1:4: 9 ranks do not fit 4 slots"),
        (Wish(hosts="a b"), "'b' is not understood"),
    ],
)
def test_what_does_not_fit_is_one_line(wish: Wish, words: str) -> None:
    with pytest.raises(UserError, match=words):
        world_to_start(wish, "auto", ALONE)


def test_devices_without_any_gpu(here: pytest.MonkeyPatch) -> None:
    here.setattr(torch.cuda, "is_available", lambda: False)
    words = r"device 0,1 names GPU 0, this host has no GPU that PyTorch can use. use np=2 \(--np 2\)"
    with pytest.raises(UserError, match=words):
        world_to_start(Wish(device="0,1"), "auto", ALONE)


def test_under_a_launcher_ranks_are_there() -> None:
    """Devices are then those of each host, as ever."""
    assert world_to_start(Wish(2, device="0,1"), "auto", TWO) is None
    with pytest.raises(UserError, match=r"np=3, but torchrun has started 2 ranks. leave np out"):
        world_to_start(Wish(3), "auto", TWO)
    with pytest.raises(UserError, match=r"hosts=h1:2, but torchrun has started 2 ranks. leave hosts out"):
        world_to_start(Wish(hosts="h1:2"), "auto", TWO)


@pytest.mark.parametrize(
    ("ended", "kind", "words"),
    [
        (Ended(2, None, "rank 1 on h: x.pt is gone", 0), UserError, "rank 1 on h: x.pt is gone"),
        (Ended(1, None, "", 0), RanksFailedError, "2 ranks ended with exit code 1; what they said is above"),
        (Ended(2, None, "", 1), RanksFailedError, "2 ranks ended with exit code 2"),
        (Ended(1, None, "", 2), KeyboardInterrupt, ""),
    ],
)
def test_a_job_that_did_not_end_together(ended: Any, kind: type[BaseException], words: str) -> None:
    error = _unspoken(ended, World(parse_hosts("localhost:2"), "torch"))
    assert type(error) is kind and words in str(error)
