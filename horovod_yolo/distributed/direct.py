"""Small sums straight from rank to rank, over connections of their own.

The queue of a network library costs more than a small sum itself: Horovod looks into its own once a cycle,
which takes milliseconds, and torch's Gloo hands each call through three threads. Synchronised batch norm
waits for over a hundred such sums in a step. Here the thread that needs a sum sends and receives by itself.

By recursive doubling all ranks add up the same pairs (Thakur, Rabenseifner and Gropp, "Optimization of
collective communication operations in MPICH", 2005, section 4.5). So all have the same bits, in every run on
as many ranks.
"""

from __future__ import annotations

import hmac
import secrets
import socket
import struct
import time
import zlib
from collections import deque
from collections.abc import Callable, Generator
from typing import Any, Protocol

import torch
from torch import Tensor

from horovod_yolo.distributed.keepalive import let_break

MOST_BYTES = 1 << 16  # of a sum that travels so, and of all that are under way
TYPES = (torch.float32, torch.float64, torch.int64)
SECONDS_BETWEEN_LOOKS = 1.0  # of a rank that waits
SECONDS_TO_CONNECT = 30.0
_SECONDS_OF_A_STRANGER = 1.0  # who connects and says nothing
_BUFFER = 4 * MOST_BYTES  # of a connection: what is under way never waits for the other rank to read
_HEADER = struct.Struct("<II")  # checksum of the name, bytes
HELLO = struct.Struct("<16sI")  # secret, rank

Combine = Callable[[Tensor, Tensor], Tensor]  # addition, or another operation whose order does not matter
Everyones = Callable[[Any], list[Any]]  # what all ranks have given, by rank
Look = Callable[[float, str], None]


class GoneError(ConnectionError):
    """Another rank is gone, or does not answer."""


class SmallSum(Protocol):
    """A small sum on its way."""

    def wait(self) -> Tensor:
        """The result, when it is there.

        Raises:
            GoneError: another rank is gone.
        """


class DirectSums(Protocol):
    """Sums of small tensors on the CPU, which come in the same order on all ranks."""

    def start(self, tensor: Tensor, name: str, combine: Combine) -> SmallSum:
        """Start combining a tensor of `TYPES`, of at most `MOST_BYTES`, over ranks. *Collective.*

        Raises:
            GoneError: another rank is gone.
        """

    def settle(self) -> None:
        """Wait for all that is under way. Raises `GoneError` as they do."""

    def close(self) -> None:
        """Make no more of them. Ranks that wait for this one get a `GoneError`."""


def suits(tensor: Tensor) -> bool:
    """Whether a tensor can travel directly; the same on all ranks, as its shape and type are."""
    return tensor.device.type == "cpu" and tensor.dtype in TYPES and tensor.nbytes <= MOST_BYTES


class SocketSums:
    """`DirectSums` over TCP.

    Args:
        rank: this one.
        size: number of ranks.
        connections: to each of `partners`.
        look: called about every second of a wait with its seconds so far, and for whom it is; may raise.
    """

    def __init__(self, rank: int, size: int, connections: dict[int, socket.socket], look: Look) -> None:
        self._rank, self._size = rank, size
        self._connections = connections
        self._look = look
        self._under_way: deque[_Exchange] = deque()
        for connection in connections.values():
            connection.settimeout(SECONDS_BETWEEN_LOOKS)

    @classmethod
    def connect(cls, rank: int, size: int, address: str, everyones: Everyones, look: Look) -> SocketSums:
        """Connect with the other ranks; afterwards nothing listens any more. *Collective.*

        Args:
            rank: this one.
            size: number of ranks.
            address: of this host, at which the other ranks reach it.
            everyones: exchanges an object between all ranks.
            look: see the class.

        Raises:
            OSError: there is no way between two ranks; on all of them.
        """
        server, connections, problem = None, {}, None
        try:
            server = socket.create_server((address, 0), backlog=size)
        except OSError as error:
            problem = f"rank {rank} at {address}: {error}"
        told = everyones((problem, server and server.getsockname()[:2], secrets.token_bytes(16)))
        if server is not None and not any(found for found, *_ in told):
            try:
                connections = _connections(rank, size, server, [place for _, place, _ in told], told[0][2])
            except OSError as error:
                problem = f"rank {rank} at {address}: {error}"
        if server is not None:
            server.close()
        sums = cls(rank, size, connections, look)
        if problems := [found for found in everyones(problem) if found]:
            sums.close()
            raise OSError(problems[0])
        return sums

    def start(self, tensor: Tensor, name: str, combine: Combine) -> SmallSum:
        """Start combining a tensor over ranks. *Collective.*"""
        if tensor.nbytes + sum(one.nbytes for one in self._under_way) > MOST_BYTES:
            self.settle()
        exchange = _Exchange(self, tensor, name, combine)
        self._under_way.append(exchange)
        return exchange

    def settle(self) -> None:
        """Wait for all that is under way."""
        while self._under_way:
            self.finish_first()

    def finish_first(self) -> None:
        """Wait for the sum that was started first: a connection brings one after the other."""
        self._under_way[0].finish()
        self._under_way.popleft()

    def rounds(self, own: Tensor, combine: Combine, header: bytes) -> Generator[int, Tensor, Tensor]:
        """The result. Sends, and yields the ranks whose message it needs next.

        Where the number of ranks is no power of two, those that are too many add theirs to a partner's first.
        """
        core = 1 << (self._size.bit_length() - 1)
        if self._rank >= core:
            self.send(self._rank - core, header, own)
            return (yield self._rank - core)
        total, extra = own, self._rank + core
        if extra < self._size:
            total = combine(total, (yield extra))
        distance = 1
        while distance < core:
            self.send(self._rank ^ distance, header, total)
            total = combine(total, (yield self._rank ^ distance))
            distance *= 2
        if extra < self._size:
            self.send(extra, header, total)
        return total

    def send(self, other: int, header: bytes, tensor: Tensor) -> None:
        """A message for another rank."""
        try:
            self._to(other).sendall(header + tensor.numpy().tobytes())
        except OSError as error:
            raise self._gone(other, error) from error

    def receive(self, other: int, header: bytes, like: Tensor) -> Tensor:
        """The message of another rank, of the same shape and type as a tensor."""
        begun = time.monotonic()
        message = bytearray(len(header) + like.nbytes)
        left = memoryview(message)
        connection = self._to(other)
        while left:
            try:
                count = connection.recv_into(left)
            except TimeoutError:
                self._look(time.monotonic() - begun, f"rank {other}")
                continue
            except OSError as error:
                raise self._gone(other, error) from error
            if not count:
                raise self._gone(other, "it closed its connection")
            left = left[count:]
        if message[: len(header)] != header:
            self.close()
            raise RuntimeError(f"ranks {self._rank} and {other} came to different sums")
        received = torch.frombuffer(message, dtype=torch.uint8)[len(header) :]
        return received.view(like.dtype)

    def close(self) -> None:
        """Make no more of them."""
        for connection in self._connections.values():
            connection.close()
        self._connections = {}

    def _to(self, other: int) -> socket.socket:
        if other not in self._connections:
            raise GoneError("the connections between the ranks are closed")
        return self._connections[other]

    def _gone(self, other: int, why: object) -> GoneError:
        """Ends the connections with it: others that wait for this rank must not do so for ever."""
        self.close()
        return GoneError(f"rank {other}: {why}")


class _Exchange:
    """One sum on its way. What it can send without a message of others has been sent."""

    def __init__(self, sums: SocketSums, tensor: Tensor, name: str, combine: Combine) -> None:
        own = tensor.detach().reshape(-1).clone()
        self.nbytes = own.nbytes
        self._sums, self._own, self._shape = sums, own, tensor.shape
        self._header = _HEADER.pack(zlib.crc32(name.encode()), own.nbytes)
        self._rounds = sums.rounds(own, combine, self._header)
        self._needs = next(self._rounds)
        self._result: Tensor | None = None

    def wait(self) -> Tensor:
        """The result; of sums that were started before it, too."""
        while self._result is None:
            self._sums.finish_first()
        return self._result

    def finish(self) -> None:
        try:
            while True:
                received = self._sums.receive(self._needs, self._header, self._own)
                self._needs = self._rounds.send(received)
        except StopIteration as end:
            self._result = end.value.view(self._shape)


def partners(rank: int, size: int) -> set[int]:
    """The ranks that a rank sends to and receives from."""
    core = 1 << (size.bit_length() - 1)
    if rank >= core:
        return {rank - core}
    doubling = {rank ^ (1 << bit) for bit in range(core.bit_length() - 1)}
    return doubling | ({rank + core} if rank + core < size else set())


def _connections(
    rank: int, size: int, server: socket.socket, places: list[tuple[str, int]], secret: bytes
) -> dict[int, socket.socket]:
    """To each partner: of two ranks the higher one calls. Who does not know the secret stays outside.

    Raises:
        OSError: one cannot be reached, or does not come.
    """
    wanted = partners(rank, size)
    found = {}
    for other in sorted(other for other in wanted if other < rank):
        found[other] = socket.create_connection(places[other], timeout=SECONDS_TO_CONNECT)
        found[other].sendall(HELLO.pack(secret, rank))
    found |= called(server, wanted - set(found), secret, SECONDS_TO_CONNECT)
    for connection in found.values():
        let_break(connection)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for buffer in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            connection.setsockopt(socket.SOL_SOCKET, buffer, _BUFFER)
    return found


def called(server: socket.socket, ranks: set[int], secret: bytes, seconds: float) -> dict[int, socket.socket]:
    """The connections of ranks that are to call. Who does not know the secret stays outside.

    Raises:
        OSError: one does not come in time.
    """
    found: dict[int, socket.socket] = {}
    deadline = time.monotonic() + seconds
    while missing := ranks - set(found):
        server.settimeout(max(deadline - time.monotonic(), 0.001))
        connection, _ = server.accept()
        caller = _caller(connection, secret)
        if caller in missing:
            found[caller] = connection
        else:
            connection.close()
    return found


def _caller(connection: socket.socket, secret: bytes) -> int | None:
    """The rank that calls; None for a stranger."""
    connection.settimeout(_SECONDS_OF_A_STRANGER)
    hello = b""
    try:
        while len(hello) < HELLO.size and (more := connection.recv(HELLO.size - len(hello))):
            hello += more
    except OSError:
        return None
    if len(hello) < HELLO.size:
        return None
    told, rank = HELLO.unpack(hello)
    return int(rank) if hmac.compare_digest(told, secret) else None
