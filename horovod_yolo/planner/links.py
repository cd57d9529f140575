"""What an allreduce costs: latency plus bytes over bandwidth, for each way to do it.

The alpha-beta model: a message of S bytes takes ``alpha + S / B`` over a link. Rings and trees differ in how
many messages follow one another and in how many bytes a rank sends.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

ALGORITHMS = ("ring", "tree", "hierarchical")


@dataclass(frozen=True)
class Link:
    """A way between two ranks."""

    latency_s: float  # alpha: of a message of no size, one way
    bytes_per_s: float  # 1 / beta: in each direction

    def scaled(self, times: float) -> Link:
        """A link on which everything takes so many times as long."""
        return Link(self.latency_s * times, self.bytes_per_s / times)


@dataclass(frozen=True)
class World:
    """Equal hosts with equal ranks."""

    hosts: int
    ranks_per_host: int
    network: Link  # of a host to the others; its ranks share it
    local: Link  # between ranks of a host

    @property
    def ranks(self) -> int:
        """Of all hosts."""
        return self.hosts * self.ranks_per_host


def allreduce_s(algorithm: str, size: float, world: World) -> float:
    """Seconds to sum ``size`` bytes over all ranks by one of `ALGORITHMS`."""
    if world.ranks == 1:
        return 0.0
    return {"ring": _ring, "tree": _tree, "hierarchical": _hierarchical}[algorithm](size, world)


def fastest(size: float, world: World, algorithms: tuple[str, ...] = ALGORITHMS) -> tuple[str, float]:
    """The algorithm with the shortest `allreduce_s` for this size, and its seconds."""
    return min(((name, allreduce_s(name, size, world)) for name in algorithms), key=lambda found: found[1])


def ring_link(ranks: int, hosts: int, base_s: float, s_per_byte: float) -> Link:
    """The link between neighbours of a ring on which an allreduce of S bytes takes base_s + S s_per_byte.

    Between ranks where there is one host; else between hosts, and inside them latency counts for nothing.
    """
    passed = hosts if hosts > 1 else ranks
    return Link(base_s / (2 * (passed - 1)), 2 * (ranks - 1) / ranks / s_per_byte)


def _ring(size: float, world: World) -> float:
    """One ring over all ranks, which enters and leaves each host once.

    Each of n pieces passes n - 1 links to be summed and n - 1 to be handed out (Patarasuk and Yuan, 2009),
    of which a host's share lies in the host.
    """
    n, hosts = world.ranks, world.hosts
    between = 2 * (hosts - 1)
    latency = between * world.network.latency_s + (2 * (n - 1) - between) * world.local.latency_s
    return latency + 2 * (n - 1) / n * size / _slowest(world)


def _tree(size: float, world: World) -> float:
    """Two trees of hosts with half of the bytes each, a chain of ranks in each host.

    Every host sends each byte up and down, so 2 S / B, and the last piece passes all levels twice. For L
    seconds of latency and T seconds of bytes, pieces of the best size give (sqrt(L) + sqrt(T))^2 (Sanders,
    Speck and Traeff, 2009).
    """
    levels = math.ceil(math.log2(world.hosts)) if world.hosts > 1 else 0
    chain = world.ranks_per_host - 1
    latency = 2 * (levels * world.network.latency_s + chain * world.local.latency_s)
    return float((math.sqrt(latency) + math.sqrt(2 * size / _slowest(world))) ** 2)


def _hierarchical(size: float, world: World) -> float:
    """Each host sums for itself, then as many rings as it has ranks share its network, then it hands out."""
    g, hosts = world.ranks_per_host, world.hosts
    inside = 2 * (g - 1) * (world.local.latency_s + size / g / world.local.bytes_per_s)
    if hosts == 1:
        return inside
    return inside + 2 * (hosts - 1) * (world.network.latency_s + size / hosts / world.network.bytes_per_s)


def _slowest(world: World) -> float:
    """Bytes a second of the slowest link on the way."""
    speeds = [world.network.bytes_per_s] if world.hosts > 1 else []
    speeds += [world.local.bytes_per_s] if world.ranks_per_host > 1 else []
    return min(speeds)
