"""What a run's bits depend on besides its settings: how many slices a batch has, and on how many threads."""

from __future__ import annotations

import logging
import os
import socket
from dataclasses import replace

import torch

from horovod_yolo.assembly.device import device_kind
from horovod_yolo.assembly.same_bits import require_promise
from horovod_yolo.config.schema import TrainConfig
from horovod_yolo.core.errors import UserError
from horovod_yolo.core.slices import Slices
from horovod_yolo.data.loader import Loader
from horovod_yolo.distributed.agreement import together
from horovod_yolo.distributed.communicator import Communicator
from horovod_yolo.process.cores import own_cores, share
from horovod_yolo.process.environment import WEIGHTS, weights_of_hosts
from horovod_yolo.training.balance import Balance, best_shares
from horovod_yolo.training.double_check import DoubleChecks

log = logging.getLogger(__name__)


def slices_of(config: TrainConfig, comm: Communicator) -> Slices:
    """This rank's of each batch; one where the config does not say how many there are."""
    return Slices.even(config.slices or comm.size, comm.rank, comm.size)


def with_slices(
    config: TrainConfig,
    first_size: int,
    device: torch.device,
    comm: Communicator,
) -> TrainConfig:
    """The config with its numbers of slices and threads, and what adds up; sets the threads. *Collective.*

    With synchronised batch norm the ranks' parts of a batch depend on each other, and there are none.

    Args:
        config: of the run; without a number of slices it has as many as ranks when it began.
        first_size: ranks when it began.
        device: of this rank.
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
    config = replace(config, slices=count, threads=_threads(config, comm))
    torch.set_num_threads(config.threads)
    where = "any number of ranks" if config.sums == "exact" else "as many ranks, to rounding on others"
    how = "slices a batch: %d; the same results with --slices %d --threads %d on %s"
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


def _threads(config: TrainConfig, comm: Communicator) -> int:
    """As many on every rank as the run has; at first the fewest. *Collective.*

    What several threads add up is rounded otherwise than what one does.
    """
    least = min(comm.allgather_object(torch.get_num_threads()))
    threads = config.threads or least
    if threads > least:
        log.warning("%d threads a rank, as the run has them; here are cores for %d", threads, least)
    return threads


def checks_of(
    config: TrainConfig, loader: Loader, device: torch.device, comm: Communicator
) -> DoubleChecks | None:
    """What does slices twice on two ranks, where that was asked for."""
    if not config.check_every:
        return None
    kind = device_kind(device, deterministic=config.deterministic)
    return DoubleChecks(config.check_every, config.seed, comm, kind, loader.made)


def balance_of(config: TrainConfig, device: torch.device, comm: Communicator) -> Balance | None:
    """What the ranks' slices follow; None where all have as many. *Collective.*

    Args:
        config: from `with_slices`.
        device: of this rank.
        comm: the ranks.

    Raises:
        UserError: it cannot follow what it is asked to; on all ranks alike.
    """
    if config.balance == "off" or comm.size == 1:
        return None
    if config.slices <= comm.size:
        log.warning(
            "--balance %s: %d slices leave nothing to choose on %d ranks; begin the run with --slices %d",
            *(config.balance, config.slices, comm.size, 4 * comm.size),
        )
        return None
    if config.balance == "auto":
        if device.type != "cpu":
            fix = "use --balance static, with weights in the hostfile"
            raise UserError("--balance auto measures on CPUs only", fix=fix)
        shares = tuple(len(Slices.even(config.slices, rank, comm.size)) for rank in range(comm.size))
    else:
        weights = _weights(device, comm)
        shares = best_shares(config.slices, [1 / weight for weight in weights])
        log.info("slices of the ranks: %s", ", ".join(map(str, shares)))
    pixels = 3.0 * config.imgsz**2 * config.batch_size / config.slices
    return Balance(comm.rank, shares, adapts=config.balance == "auto", pixels=pixels)


def _weights(device: torch.device, comm: Communicator) -> list[float]:
    """How fast each rank is: as the hostfile says, else by the cores for its threads. *Collective.*"""
    here = os.environ.get("HOROVOD_HOSTNAME") or socket.gethostname()
    said = together(comm, weights_of_hosts)
    everyone = comm.allgather_object((socket.gethostname(), here, own_cores()))
    if said:
        named = {_short(name): weight for name, weight in said.items()}
        found = [named.get(_short(name)) for _, name, _ in everyone]
        unnamed = sorted(
            {name for (_, name, _), weight in zip(everyone, found, strict=True) if weight is None}
        )
        if unnamed:
            log.warning("%s names no %s: weight 1", WEIGHTS, ", ".join(unnamed))
        return [weight or 1.0 for weight in found]
    if device.type != "cpu":
        return [1.0] * comm.size
    return [
        min(share(mine, [cores for other, _, cores in everyone if other == host]), torch.get_num_threads())
        for host, _, mine in everyone
    ]


def _short(name: str) -> str:
    """A host's name without its domain; an address stays."""
    return name if name[:1].isdigit() else name.partition(".")[0]
