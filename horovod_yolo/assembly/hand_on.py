"""A file of columns on every rank: opened where the host has it, else sent in pieces, once a host."""

from __future__ import annotations

import logging
import os
import socket
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

from horovod_yolo.distributed.communicator import Communicator
from horovod_yolo.io.columns import ColumnFile, DamagedError, check_descriptor, open_columns

log = logging.getLogger(__name__)
BYTES_OF_A_PIECE = 32 << 20


def host_id() -> str:
    """Equal for processes that can open each other's files through ``/proc``."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    machine = boot.read_text().strip() if boot.exists() else ""
    return f"{socket.gethostname()} {machine} {Path('/proc/self/ns/pid').stat().st_ino}"


def hand_on(file: ColumnFile | None, comm: Communicator, folder: Path | None) -> ColumnFile | None:
    """The file that some ranks have, on all ranks; None on all where none has it. *Collective.*

    Args:
        file: this rank's, checked; None where it has none.
        comm: the ranks.
        folder: for what arrives; None for memory.
    """
    host, tries = host_id(), 0
    while True:
        offers = comm.allgather_object((host, file and _Offer(file.address, file.key, file.size)))
        if file is None:
            file = _opened([offer for where, offer in offers if offer and where == host])
        lacking = comm.allgather_object(file is None)
        owner = next((rank for rank, (_, offer) in enumerate(offers) if offer), None)
        if owner is None or not any(lacking):
            return file
        first_here = next((r for r, (where, _) in enumerate(offers) if lacking[r] and where == host), None)
        takes = file is None and (tries > 0 or first_here == comm.rank)
        size = offers[owner][1].size  # type: ignore[union-attr]  # an owner made an offer
        received = _send(file if comm.rank == owner else None, size, comm, folder, takes)
        file, tries = file or received, tries + 1


class _Offer(NamedTuple):
    address: str
    key: str
    size: int


def _opened(offers: Sequence[_Offer]) -> ColumnFile | None:
    for offer in offers:
        try:
            return open_columns(offer.address, offer.key)
        except (OSError, DamagedError):  # a process of another container, for one
            continue
    return None


def _send(
    file: ColumnFile | None, size: int, comm: Communicator, folder: Path | None, takes: bool
) -> ColumnFile | None:
    """Send a file to the ranks that take it. *Collective.*"""
    target = _unnamed_file(folder, size) if takes else None
    for start in range(0, size, BYTES_OF_A_PIECE):
        piece = file.content(start, BYTES_OF_A_PIECE) if file else b""
        pieces = comm.allgather_object(piece)
        if target is not None:
            target.write(next(piece for piece in pieces if piece))
    if target is None:
        return None
    with target:
        target.flush()
        return check_descriptor(os.dup(target.fileno()))


def _unnamed_file(folder: Path | None, size: int) -> BinaryIO:
    """A file for so many bytes that is gone with the last process that has it open."""
    if folder is not None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115  # the caller's
            try:
                os.posix_fallocate(file.fileno(), 0, size)
            except BaseException:
                file.close()
                raise
            return file
        except OSError as error:
            log.warning(
                "%s takes no annotations (%s): they are kept in memory", folder, error.strerror or error
            )
    return os.fdopen(os.memfd_create("columns"), "w+b")
