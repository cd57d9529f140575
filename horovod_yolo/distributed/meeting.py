"""Where the ranks of ``torch.distributed`` meet, and which of them belong together."""

from __future__ import annotations

import os
import secrets
import socket
import time
from datetime import timedelta

from torch.distributed import PrefixStore, Store, TCPStore  # type: ignore[attr-defined]

from horovod_yolo.core.errors import UserError
from horovod_yolo.distributed.launchers.launcher import Launcher
from horovod_yolo.process.interfaces import address_of, interface_with

INTERFACE = "GLOO_SOCKET_IFNAME"  # Gloo's, where ranks reach each other
SECONDS_BETWEEN_LOOKS = 0.05


def meet(launched: Launcher, patience: timedelta) -> Store:
    """A store that all ranks of this world have, and nobody else. *Collective.*

    Raises:
        UserError: this launcher's ranks do not find each other, or MPI's are not those that were launched.
        RuntimeError: there is no way to the store, or a rank does not come.
    """
    host, port = launched.address if launched.for_torch and launched.address else _told_by_mpi(launched)
    if launched.keeps_store or launched.rank:
        store = TCPStore(host, port, launched.size, False, patience, wait_for_workers=False)
    else:
        store = _serve(host, port, patience, launched.local_size == launched.size)
    return of_this_world(store, launched.rank, launched.size, patience)


def _serve(host: str, port: int, patience: timedelta, alone: bool) -> TCPStore:
    """A store at one address of this host. By itself torch would serve it at all of them.

    It does so still where ``host`` stands for no address at which ranks ``alone`` here, or else those of
    other hosts, could find it: behind a service of Kubernetes, or called localhost for ranks elsewhere.
    """
    try:
        address = socket.gethostbyname(host)
    except OSError:
        address = ""
    if not interface_with(address) or (address.startswith("127.") and not alone):
        return TCPStore(host, port, None, True, patience, wait_for_workers=False)
    with socket.create_server((address, port), backlog=socket.SOMAXCONN) as listening:
        return TCPStore(
            address, port, None, True, patience, wait_for_workers=False, master_listen_fd=listening.detach()
        )


def of_this_world(store: Store, rank: int, size: int, patience: timedelta) -> Store:
    """The part of a store that only the ranks of this world know. *Collective.*

    torchrun keeps its store when it starts the ranks anew, with what earlier ones have left in it: addresses
    at which nobody listens any more. So each rank says hello with a word that it makes up, and rank 0 answers
    to that word with the name of this world's part.

    Raises:
        RuntimeError: not all ranks came in time.
    """
    own = secrets.token_hex(8)
    store.set(f"hello {rank}", own)
    if rank:
        store.wait([f"welcome {own}"], patience)
        name = store.get(f"welcome {own}").decode()
        store.set(f"here {name} {rank}", "")
        return PrefixStore(name, store)
    name = secrets.token_hex(8)
    absent, deadline = set(range(1, size)), time.monotonic() + patience.total_seconds()
    while True:
        for other in sorted(absent):
            if store.check([f"here {name} {other}"]):
                absent.discard(other)
            elif store.check([f"hello {other}"]):
                store.set(f"welcome {store.get(f'hello {other}').decode()}", name)
        if not absent:
            return PrefixStore(name, store)
        if time.monotonic() > deadline:
            raise RuntimeError(f"ranks {sorted(absent)} did not come")
        time.sleep(SECONDS_BETWEEN_LOOKS)


def _told_by_mpi(launched: Launcher) -> tuple[str, int]:
    """An address and a free port of rank 0's host. *Collective.*"""
    try:
        if not launched.over_mpi:
            raise ImportError(f"{launched.name} is none of MPI's launchers")
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        absent = isinstance(error, ModuleNotFoundError)
        raise UserError(
            f"--engine torch: ranks started by {launched.name} do not find each other ({error})",
            fix="pip install mpi4py, or start them with torchrun"
            if absent
            else "start them with torchrun or mpirun, or leave --engine out",
        ) from None
    world = MPI.COMM_WORLD
    if world.size != launched.size:
        raise UserError(
            f"launched as rank {launched.rank} of {launched.size}, but MPI finds {world.size} ranks",
            fix="its MPI is not the launcher's: use this environment's mpirun, or torchrun",
        )
    hosts = world.allgather(socket.gethostname())
    here = "127.0.0.1" if len(set(hosts)) == 1 else address_of(os.environ.get(INTERFACE, "")) or hosts[0]
    found: tuple[str, int] = world.bcast((here, _free_port(here) if launched.rank == 0 else 0), root=0)
    return found


def _free_port(host: str) -> int:
    with socket.socket() as taken:
        taken.bind((host, 0))
        port: int = taken.getsockname()[1]
        return port
