"""Before ranks branch, they agree.

A rank that raises, stops or chooses alone leaves the others waiting in their next collective call. So what
one rank found becomes what all of them know, and all branch alike. Every function here that takes a
`Communicator` is *collective*.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from horovod_yolo.core.errors import UserError
from horovod_yolo.distributed.communicator import Communicator

T = TypeVar("T")


def agree(comm: Communicator, problem: str | None) -> str | None:
    """The first rank's problem, the same answer on every rank. *Collective.*

    Call it before any branch that a rank might take alone.
    """
    problems = comm.allgather_object(problem)
    bad = [rank for rank, text in enumerate(problems) if text is not None]
    if not bad:
        return None
    first = problems[bad[0]]
    if len(bad) == comm.size:
        return first
    return f"{first} (on rank{'s' if len(bad) > 1 else ''} {_ranges(bad)} of {comm.size})"


def raise_together(comm: Communicator, problem: str | None) -> None:
    """Raise `UserError` on all ranks where any rank has a problem. *Collective.*"""
    agreed = agree(comm, problem)
    if agreed is not None:
        raise UserError(agreed)


def together(comm: Communicator, make: Callable[[], T]) -> T:
    """What ``make`` returns; where it raises `UserError` on any rank, all raise it. *Collective.*

    ``make`` itself must not be collective.
    """
    try:
        value, problem = make(), None
    except UserError as error:
        value, problem = None, str(error)
    raise_together(comm, problem)
    return value  # type: ignore[return-value]  # raise_together has raised where it is None for an error


def on_rank_0(comm: Communicator, make: Callable[[], T]) -> T:
    """What ``make`` returns on rank 0, for all ranks; its `UserError` too. *Collective.*"""
    value, problem = None, None
    if comm.rank == 0:
        try:
            value = make()
        except UserError as error:
            problem = str(error)
    value, problem = comm.broadcast_object((value, problem))
    if problem is not None:
        raise UserError(problem)
    return value  # type: ignore[return-value]  # it is rank 0's


def require_same(comm: Communicator, value: str, what: str, *, where: object, fix: str) -> None:
    """Raise `UserError` on all ranks where a value differs between them. *Collective.*

    Args:
        comm: the ranks.
        value: what all should have alike, short.
        what: its name, in the plural.
        where: where it came from.
        fix: what to do.
    """
    versions = len(set(comm.allgather_object(value)))
    if versions > 1:
        raise UserError(f"{what} differ between ranks: {versions} versions", where=where, fix=fix)


def checksum(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names and bytes: equal on two ranks only where every bit is."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def require_equal(comm: Communicator, tensors: Mapping[str, Tensor], what: str) -> None:
    """Raise on all ranks unless the tensors are bitwise equal everywhere. *Collective.*"""
    if different := different_ranks(comm, tensors):
        raise RuntimeError(f"{what} differ from rank 0's on ranks {different} after the broadcast")


def different_ranks(comm: Communicator, tensors: Mapping[str, Tensor]) -> str:
    """The ranks whose tensors are not rank 0's to the bit, for people; empty: none. *Collective.*"""
    sums = comm.allgather_object(checksum(tensors))
    return _ranges([rank for rank, value in enumerate(sums) if value != sums[0]])


def _ranges(ranks: Sequence[int]) -> str:
    shown = ", ".join(str(rank) for rank in ranks[:8])
    return shown + (f" and {len(ranks) - 8} more" if len(ranks) > 8 else "")
