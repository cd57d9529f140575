"""What a run's bits depend on besides its settings: how many slices a batch has, and on how many threads."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import torch

from horovod_yolo.assembly.same_bits import require_promise
from horovod_yolo.config.schema import TrainConfig
from horovod_yolo.core.errors import UserError
from horovod_yolo.core.slices import Slices
from horovod_yolo.distributed.communicator import Communicator

log = logging.getLogger(__name__)


def slices_of(config: TrainConfig, comm: Communicator) -> Slices:
    """This rank's of each batch; one where the config does not say how many there are."""
    return Slices.even(config.slices or comm.size, comm.rank, comm.size)


def with_slices(
    config: TrainConfig,
    first_size: int,
    device: torch.device,
    resumed: dict[str, Any] | None,
    comm: Communicator,
) -> TrainConfig:
    """The config with the number of slices, and with what adds them up; sets the threads. *Collective.*

    With synchronised batch norm the ranks' parts of a batch depend on each other, and there are none.

    Args:
        config: of the run; without a number of slices it has as many as ranks when it began.
        first_size: ranks when it began.
        device: of this rank.
        resumed: the state that the run goes on from.
        comm: the ranks of now.
    """
    if config.sync_bn:
        _require_slices(config)
        torch.set_num_threads(config.threads or torch.get_num_threads())
        require_promise(config, device, comm)
        return replace(config, sums="float")
    count = config.slices or min(first_size, config.batch_size)
    if config.sums == "auto":
        exact = device.type == "cpu" and config.compression in ("auto", "none")
        config = replace(config, sums="exact" if exact else "float")
    if comm.size > count:
        log.warning("%d slices on %d ranks: some have none, and wait for the others", count, comm.size)
    config = replace(config, slices=count, threads=_threads(config, resumed, comm))
    torch.set_num_threads(config.threads)
    if count > 1:
        where = (
            "any number of ranks" if config.sums == "exact" else f"{comm.size} ranks, to rounding on others"
        )
        how = "%d slices a batch: the same results with --slices %d --threads %d on %s"
        log.info(how, count, count, config.threads, where)
    if config.sums != "exact" and count > 1:
        _require_slices(config)
    if config.check_every and count == 1:
        raise UserError("--check-every with one slice", fix="use --slices 2 or more, or several ranks")
    require_promise(config, device, comm)
    return config


def _require_slices(config: TrainConfig) -> None:
    """Raise `UserError` where something looks at slices by themselves; the same on all ranks."""
    why = "--sync-bn" if config.sync_bn else "--sums float"
    for flag, given in (("--record", config.record), ("--check-every", config.check_every)):
        if given:
            raise UserError(f"{flag} needs slices that are added up exactly, and there are none with {why}")


def _threads(config: TrainConfig, resumed: dict[str, Any] | None, comm: Communicator) -> int:
    """As many on every rank as the run began with: at first the fewest. *Collective.*

    What several threads add up is rounded otherwise than what one does.
    """
    least = min(comm.allgather_object(torch.get_num_threads()))
    threads: int = config.threads or (resumed or {}).get("threads") or least
    if threads > least:
        log.warning("%d threads a rank, as the run has them; here are cores for %d", threads, least)
    return threads
