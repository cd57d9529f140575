"""``--dashboard``: who serves it, and what the other ranks tell for it."""

from __future__ import annotations

import logging
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import horovod_yolo
from horovod_yolo.assembly.run import Run
from horovod_yolo.checkpoint.checkpointer import Checkpointer
from horovod_yolo.core.address import Address
from horovod_yolo.core.errors import UserError
from horovod_yolo.distributed.agreement import on_rank_0
from horovod_yolo.distributed.communicator import Communicator
from horovod_yolo.telemetry.dashboard import Dashboard
from horovod_yolo.telemetry.live import LiveRun
from horovod_yolo.training.events import Callback
from horovod_yolo.training.loop import Trainer
from horovod_yolo.training.rank_times import RankTimes

log = logging.getLogger(__name__)


@dataclass
class Watching:
    """Whether a run is watched, and by what on rank 0."""

    watched: bool = False  # the same on all ranks
    run: LiveRun | None = None
    checkpointer: Checkpointer | None = None

    def begin(self, trainer: Trainer, callbacks: list[Callback], checkpointer: Checkpointer) -> None:
        """Follow a run from its first step on; all ranks tell what their time goes into."""
        if not self.watched:
            return
        comm, loader = trainer.comm, trainer.loader
        trainer.stepper.times = RankTimes(comm.rank, comm.size, lambda: (loader.wait_s, comm.wait_s))
        if self.run is not None:
            self.checkpointer = checkpointer
            self.run.facts["model"] = trainer.stepper.model.name
            callbacks.append(self.run)

    def written_at(self) -> float | None:
        """When the last checkpoint was written, seconds since 1970."""
        return self.checkpointer.written_at if self.checkpointer is not None else None


@contextmanager
def dashboard(run: Run, comm: Communicator) -> Iterator[Watching]:
    """Inside, rank 0 shows the run where ``--dashboard`` says. *Collective.*

    Raises:
        UserError: nothing can listen there; on all ranks alike. A run that goes on goes on without its page.
    """
    watching = Watching()
    hosts = comm.allgather_object(socket.gethostname())
    server: Dashboard | None = None

    def open_page() -> bool:
        nonlocal server
        if not run.config.dashboard:
            return False
        server = _opened(run, watching, hosts)
        return server is not None

    try:
        watching.watched = on_rank_0(comm, open_page)
        yield watching
    finally:
        if server is not None:
            server.close()
        if watching.run is not None:
            logging.getLogger(horovod_yolo.__name__).removeHandler(watching.run.tail)


def _opened(run: Run, watching: Watching, hosts: list[str]) -> Dashboard | None:
    address = Address.parse(run.config.dashboard, "--dashboard")
    facts = {
        "run": str(run.folder),
        "model": run.config.cfg or (run.state or {}).get("model_name", ""),
        "version": horovod_yolo.__version__,
        "ranks": len(hosts),
        "hosts": hosts,
        "global_batch": run.config.batch_size,
    }
    watching.run = LiveRun(run.folder, facts, watching.written_at)
    try:
        server = Dashboard(address, watching.run)
    except OSError as error:
        what = f"--dashboard {run.config.dashboard} cannot be opened ({error.strerror or error})"
        where, fix = socket.gethostname(), "give another port, or 0 for any free one"
        watching.run = None
        if run.state is None:
            raise UserError(what, where=where, fix=fix) from None
        log.warning("%s on %s; the run goes on without it", what, where)
        return None
    logging.getLogger(horovod_yolo.__name__).addHandler(watching.run.tail)
    log.info("dashboard: %s", _for_people(server.address))
    return server


def _for_people(address: Address) -> str:
    """Where the page is, with the host's name: in an elastic run rank 0 moves from host to host."""
    here = socket.gethostname()
    if address.is_loopback:
        return f"{address.url} on {here}"
    shown = Address(here, address.port) if address.is_all_addresses else address
    return f"{shown.url} (whoever reaches it can read)"
