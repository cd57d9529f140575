"""A file of columns reaches all ranks, in pieces, once a host; a full disk costs a line."""

from __future__ import annotations

import errno
import logging
import os
import threading
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pytest

from horovod_yolo.assembly import hand_on as handing
from horovod_yolo.assembly.hand_on import hand_on
from horovod_yolo.distributed.communicator import Communicator
from horovod_yolo.io.columns import ColumnFile, columns_in_memory
from tests.helpers.world import run_world

COLUMNS = {"a": np.arange(1000), "b": np.arange(7, dtype=np.float32)}
HOSTS = (2, 3, 1)


@pytest.fixture
def received(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Hosts of the ranks that have made a file for what arrives. There are three, of six ranks."""

    def host() -> str:
        rank = int(threading.current_thread().name.split()[1])  # of the world in this process
        return f"host{int(np.searchsorted(np.cumsum(HOSTS), rank, side='right'))}"

    def unnamed_file(folder: Path | None, size: int) -> BinaryIO:
        hosts.append(host())
        return real(folder, size)

    hosts: list[str] = []
    real = handing._unnamed_file
    monkeypatch.setattr(handing, "host_id", host)
    monkeypatch.setattr(handing, "_unnamed_file", unnamed_file)
    monkeypatch.setattr(handing, "BYTES_OF_A_PIECE", 1000)
    return hosts


def check(file: ColumnFile | None, key: str) -> None:
    assert file is not None and file.key == key
    for name, column in COLUMNS.items():
        np.testing.assert_array_equal(file[name], column)


@pytest.mark.parametrize("owner", range(6))
def test_each_host_gets_it_once(received: list[str], tmp_path: Path, owner: int) -> None:
    file = columns_in_memory({}, COLUMNS)

    def job(comm: Communicator) -> None:
        folder = tmp_path / "new" / "folder" if comm.rank % 2 else None
        check(hand_on(file if comm.rank == owner else None, comm, folder), file.key)

    run_world(6, job, hosts=HOSTS)
    home = "host0" if owner < 2 else "host1" if owner < 5 else "host2"
    assert sorted(received) == sorted({"host0", "host1", "host2"} - {home})
    assert not [path for path in tmp_path.rglob("*") if path.is_file()], "it has no name"


def test_what_all_have_is_not_sent(received: list[str]) -> None:
    file = columns_in_memory({}, COLUMNS)
    run_world(6, lambda comm: check(hand_on(file, comm, None), file.key), hosts=HOSTS)
    assert run_world(6, lambda comm: hand_on(None, comm, None), hosts=HOSTS) == [None] * 6
    assert received == []


def test_ranks_that_cannot_open_each_others_files_get_one_each(
    received: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in containers of one host."""
    file = columns_in_memory({}, COLUMNS)
    monkeypatch.setattr(handing, "_opened", lambda offers: None)

    def job(comm: Communicator) -> None:
        check(hand_on(file if comm.rank == 3 else None, comm, None), file.key)

    run_world(6, job, hosts=HOSTS)
    assert sorted(received) == ["host0", "host0", "host1", "host1", "host2"]


def test_a_full_disk_costs_a_line(
    received: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    file = columns_in_memory({}, COLUMNS)

    def job(comm: Communicator) -> None:
        check(hand_on(file if comm.rank == 0 else None, comm, tmp_path), file.key)

    with caplog.at_level(logging.WARNING):
        run_world(6, job, hosts=HOSTS)
    line = f"{tmp_path} takes no annotations (No space left on device): they are kept in memory"
    assert [record.getMessage() for record in caplog.records] == [line] * 2
    assert sorted(received) == ["host1", "host2"] and not [*tmp_path.iterdir()]
