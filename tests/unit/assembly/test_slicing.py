"""What the ranks' slices follow: weights of hosts, cores, or nothing where there is nothing to choose."""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from horovod_yolo.assembly import slicing
from horovod_yolo.assembly.run import resumed_run
from horovod_yolo.assembly.slicing import balance_of, with_slices
from horovod_yolo.assembly.train import train
from horovod_yolo.core.errors import UserError
from horovod_yolo.process.cores import Cores
from horovod_yolo.training.balance import Balance
from tests.helpers.runs import checkpoint
from tests.helpers.short_runs import ALONE
from tests.helpers.tiny_zoo import NAME
from tests.helpers.world import run_world

from .test_run import make_trainer, saved, settings

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


@pytest.mark.parametrize("slices", [1, 2])
def test_the_first_lines_say_slices_and_threads(
    digits: Path, caplog: pytest.LogCaptureFixture, slices: int
) -> None:
    caplog.set_level(logging.INFO)
    threads = torch.get_num_threads()
    with_slices(settings(digits), slices, CPU, ALONE)
    assert (
        f"slices a batch: {slices}; the same results with --slices {slices} --threads {threads} "
        "on any number of ranks"
    ) in caplog.text


def test_measured_time_is_that_of_cpus(digits: Path) -> None:
    with pytest.raises(UserError, match=r"--balance auto measures on CPUs only\. use --balance static"):
        balances(2, digits, torch.device("cuda"), balance="auto")
    assert [balance and balance.shares for balance in balances(2, digits, balance="auto")] == [(4, 4)] * 2


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"slices": 15}, "--slices is 15. it must be up to --batch-size, 14"),
        ({"sync_bn": True, "slices": 2}, "--slices and --sync-bn exclude each other. leave one of them out"),
        ({"sync_bn": True, "sums": "exact"}, "--sums exact and --sync-bn exclude each other"),
        ({"sync_bn": True, "balance": "auto"}, "--balance auto and --sync-bn exclude each other"),
        ({"sums": "exact", "compression": "fp16"}, "--sums exact and --compression fp16 exclude each other"),
        ({"sums": "exact", "compression": "bf16"}, "--sums exact and --compression bf16 exclude each other"),
    ],
)
def test_what_goes_against_slices_is_refused(digits: Path, flags: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=re.escape(words)):
        settings(digits, **flags)


def test_compression_chooses_sums_of_floats(digits: Path) -> None:
    """Where nobody has chosen sums; as many slices as images are allowed."""
    for flags, sums in (({"compression": "fp16"}, "float"), ({}, "exact"), ({"sums": "float"}, "float")):
        found = with_slices(settings(digits, slices=14, threads=1, **flags), 1, CPU, ALONE)
        assert (found.sums, found.slices) == (sums, 14)


@pytest.mark.usefixtures("tiny")
def test_a_checkpoint_without_slices_goes_on_with_as_many_as_it_has_ranks(
    digits: Path, tmp_path: Path
) -> None:
    """As one of before there were any, which was resumed on any ranks."""
    trainer, recorder = make_trainer(settings(digits, cfg=NAME, noplots=True, commit_every=1))
    trainer.fit()
    state = recorder.states[0]
    for name in ("slices", "threads", "sums", "balance"):
        del state["config"][name]
    path = saved(tmp_path, state)
    results = run_world(3, lambda comm: train(resumed_run(str(path), {}, comm), comm))
    assert [result["slices"] for result in results] == [3] * 3
    kept = checkpoint(path.parent.parent)
    assert (kept["config"]["slices"], kept["config"]["sums"], kept["step"]) == (3, "exact", 4)
    assert kept["exchange"]
