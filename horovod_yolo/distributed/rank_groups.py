"""The ranks of one ``mpirun`` in groups, each a job of its own: what becomes of one is nothing to the others.

With ``mpirun --enable-recovery`` ranks go on where another was killed. MPI itself does not tell those that
wait for it, so the ranks of a group watch each other over connections that end with a process.
"""

from __future__ import annotations

import os
import secrets
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from horovod_yolo.core.errors import UserError
from horovod_yolo.distributed.communicator import Communicator
from horovod_yolo.distributed.direct import HELLO, called
from horovod_yolo.distributed.horovod_settings import prepare
from horovod_yolo.distributed.keepalive import let_break
from horovod_yolo.distributed.launchers.launcher import Launcher
from horovod_yolo.process.interfaces import address_of, route_interface

INTERFACE = "OMPI_MCA_btl_tcp_if_include"  # Open MPI's, as -mca btl_tcp_if_include sets it
RECOVERS = "OMPI_MCA_orte_enable_recovery"  # as --enable-recovery sets it
SECONDS_TO_CONNECT = 60.0
_SECRET_BYTES = 16
_BYE = b"b"


@dataclass(frozen=True)
class RankGroup:
    """This rank's group.

    Attributes:
        number: of the group, from 0.
        count: of groups.
        comm: of the ranks in it.
        world: MPI's, of all ranks. Where one may be lost, no call that needs all must be made with it.
    """

    number: int
    count: int
    comm: Communicator
    world: Any
    _watch: Watch = field(repr=False)

    @property
    def outlives_others(self) -> bool:
        """Whether mpirun lets this group go on where a rank of another is lost."""
        return os.environ.get(RECOVERS) == "1"

    def close(self) -> None:
        """Leave the group in order, and MPI where that cannot wait for ranks that are lost. *Collective.*"""
        self._watch.close()
        self.comm.close()
        if not self.outlives_others:
            from mpi4py import MPI

            MPI.Finalize()


def join_group(launched: Launcher, ranks: int, lost: Callable[[], None]) -> RankGroup:
    """Find the other ranks of this rank's group: the ranks of the job in their order, ``ranks`` a group.

    *Collective* over all ranks of the job.

    Args:
        launched: who started this process.
        ranks: of a group.
        lost: called in a thread, once, where another rank of the group is gone.

    Raises:
        UserError: the launcher or the build is none for groups, or ranks would be left over; on all alike.
    """
    _require_fitting(launched, ranks)
    try:
        from horovod_yolo.distributed.horovod_backend import HorovodCommunicator
    except ImportError as error:
        fix = "build it with horovod-yolo install-horovod"
        raise UserError(f"groups of ranks need Horovod ({error})", fix=fix) from None
    prepare()
    try:
        import mpi4py

        mpi4py.rc.finalize = False  # which waits for all ranks
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        fix = "pip install 'horovod_yolo[mpi]'"
        raise UserError(f"groups of ranks need mpi4py ({error})", fix=fix) from None
    world = MPI.COMM_WORLD
    if world.size != launched.size:
        raise UserError(
            f"launched as rank {launched.rank} of {launched.size}, but MPI finds {world.size} ranks",
            fix="its MPI is not the launcher's: use this environment's mpirun",
        )
    group = world.Split(world.rank // ranks, world.rank)
    comm = HorovodCommunicator(group)
    if comm.size != ranks:
        raise UserError(
            f"Horovod finds {comm.size} ranks in a group of {ranks}",
            fix="it has no MPI: build it with horovod-yolo install-horovod where mpirun is",
        )
    watch = Watch.begin(comm, lost)
    return RankGroup(world.rank // ranks, world.size // ranks, comm, world, watch)


def _require_fitting(launched: Launcher, ranks: int) -> None:
    if not launched.over_mpi:
        raise UserError(
            f"--ranks-per-trial {ranks}, and what started this is {launched.name}",
            fix="groups of ranks are MPI's: use mpirun -np 16 ... horovod-yolo tune, or leave it out",
        )
    if ranks < 1 or launched.size % ranks:
        raise UserError(
            f"--ranks-per-trial {ranks}, and there are {launched.size} ranks",
            fix=f"give a number that divides {launched.size}",
        )


class Watch:
    """Connections between rank 0 of a group and the others. One that ends without a word is a lost rank's."""

    def __init__(self, connections: list[socket.socket], lost: Callable[[], None]) -> None:
        self._connections, self._lost = connections, lost
        self._told = threading.Lock()
        self._threads = [
            threading.Thread(target=self._listen, args=(each,), name="watch", daemon=True)
            for each in connections
        ]
        for thread in self._threads:
            thread.start()

    @classmethod
    def begin(cls, comm: Communicator, lost: Callable[[], None]) -> Watch:
        """Connect the ranks. *Collective.*"""
        place = ("", 0, b"")
        server = None
        hosts = comm.allgather_object(socket.gethostname())
        if comm.rank == 0:
            host = _own_address(hosts)
            server = socket.create_server((host, 0), backlog=socket.SOMAXCONN)
            place = (host, server.getsockname()[1], secrets.token_bytes(_SECRET_BYTES))
        host, port, secret = comm.broadcast_object(place)
        if server is not None:
            with server:
                others = called(server, set(range(1, comm.size)), secret, SECONDS_TO_CONNECT)
                connections = list(others.values())
        else:
            connections = [socket.create_connection((host, port), timeout=SECONDS_TO_CONNECT)]
            connections[0].sendall(HELLO.pack(secret, comm.rank))
        for connection in connections:
            connection.settimeout(None)
            let_break(connection)
        return cls(connections, lost)

    def _listen(self, connection: socket.socket) -> None:
        try:
            word = connection.recv(1)
        except OSError:  # silent for too long
            word = b""
        if word != _BYE and self._told.acquire(blocking=False):  # for good: one word is enough
            self._lost()

    def close(self) -> None:
        """Say that this rank leaves, and wait until the others have. *Collective.*"""
        for connection in self._connections:
            with suppress(OSError):  # it has left already, and said so
                connection.sendall(_BYE)
        for thread in self._threads:
            thread.join()
        for connection in self._connections:
            connection.close()


def _own_address(hosts: list[str]) -> str:
    """Of this host, where the ranks on ``hosts`` reach it: on MPI's interface, or that which leads there."""
    other = next((host for host in hosts if host != socket.gethostname()), None)
    if other is None:
        return "127.0.0.1"
    names = [name.strip() for name in os.environ.get(INTERFACE, "").split(",")]
    interfaces = [*names, route_interface(other) or ""]
    return next((found for name in interfaces if (found := address_of(name))), socket.gethostname())
