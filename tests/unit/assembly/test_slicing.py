"""What the ranks' slices follow: weights of hosts, cores, or nothing where there is nothing to choose."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from horovod_yolo.assembly import slicing
from horovod_yolo.assembly.slicing import balance_of
from horovod_yolo.core.errors import UserError
from horovod_yolo.process.cores import Cores
from horovod_yolo.training.balance import Balance
from tests.helpers.world import run_world

from .test_run import settings

CPU = torch.device("cpu")


def by_rank(values: list[Any]) -> Callable[[], Any]:
    """Gives each rank its own; the threads of a world are called "rank N"."""
    return lambda: values[int(threading.current_thread().name.split()[-1])]


@pytest.fixture
def two_hosts(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.delenv("HOROVOD_HOSTNAME", raising=False)
    monkeypatch.setattr(slicing.socket, "gethostname", by_rank(["host1.cluster", "host2"]))
    return monkeypatch


def balances(size: int, data: Path, device: torch.device = CPU, **flags: Any) -> list[Balance | None]:
    config = settings(data, **{"slices": 8, "threads": 1, "balance": "static", **flags})
    return run_world(size, lambda comm: balance_of(config, device, comm))


@pytest.mark.parametrize(
    ("told", "shares"),
    [("host1=0.5,host2.cluster=1.5", (2, 6)), ("host1=3", (6, 2)), ("host1=1,host2=1", (4, 4))],
)
def test_weights_of_hosts_are_found_by_their_names(
    two_hosts: pytest.MonkeyPatch, digits: Path, told: str, shares: tuple[int, int]
) -> None:
    two_hosts.setenv("HOROVOD_YOLO_WEIGHTS", told)
    for rank, balance in enumerate(balances(2, digits)):
        assert balance is not None and (balance.rank, balance.shares) == (rank, shares)
        assert not balance.adapts


def test_addresses_are_names_that_count_whole(two_hosts: pytest.MonkeyPatch, digits: Path) -> None:
    two_hosts.setattr(slicing.socket, "gethostname", by_rank(["10.0.0.1", "10.0.0.2"]))
    two_hosts.setenv("HOROVOD_YOLO_WEIGHTS", "10.0.0.1=1,10.0.0.2=3")
    assert {balance.shares for balance in balances(2, digits) if balance} == {(2, 6)}


def test_a_weight_that_is_none_is_said_by_all(two_hosts: pytest.MonkeyPatch, digits: Path) -> None:
    two_hosts.setenv("HOROVOD_YOLO_WEIGHTS", "host1=quick")
    with pytest.raises(UserError, match="'quick' of 'host1' is no weight above 0"):
        balances(2, digits)


def test_without_weights_cores_count_as_far_as_there_are_threads(
    two_hosts: pytest.MonkeyPatch, digits: Path
) -> None:
    many = Cores(frozenset(range(8)))
    two_hosts.setattr(slicing, "own_cores", by_rank([Cores(frozenset({0}), 0.33, "slow"), many]))
    two_hosts.setattr(torch, "get_num_threads", lambda: 1)
    assert {balance.shares for balance in balances(2, digits) if balance} == {(2, 6)}


def test_where_ranks_have_one_slice_each_there_is_nothing_to_choose(
    digits: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert balances(2, digits, slices=2, balance="auto") == [None, None]
    assert "2 slices leave nothing to choose on 2 ranks; begin the run with --slices 8" in caplog.text
    assert balances(1, digits, balance="auto") == [None]
    assert balances(2, digits, balance="off") == [None, None]


def test_measured_time_is_that_of_cpus(digits: Path) -> None:
    with pytest.raises(UserError, match=r"--balance auto measures on CPUs only\. use --balance static"):
        balances(2, digits, torch.device("cuda"), balance="auto")
    assert [balance and balance.shares for balance in balances(2, digits, balance="auto")] == [(4, 4)] * 2


def test_sync_bn_has_no_slices_to_share(digits: Path) -> None:
    with pytest.raises(UserError, match="--balance auto and --sync-bn exclude each other"):
        settings(digits, sync_bn=True, balance="auto")
