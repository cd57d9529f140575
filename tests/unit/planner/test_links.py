"""The cost of an allreduce, against counting its messages one by one."""

from __future__ import annotations

import math

import pytest

from horovod_yolo.planner.fit import Calibration, calibrate, latency_and_slope
from horovod_yolo.planner.links import ALGORITHMS, Link, World, allreduce_s, ring_link

NETWORK, LOCAL = Link(1e-3, 1e6), Link(1e-5, 1e8)


def world(hosts: int, ranks_per_host: int) -> World:
    return World(hosts, ranks_per_host, NETWORK, LOCAL)


@pytest.mark.parametrize("ranks", [2, 3, 16])
def test_a_ring_of_hosts_is_the_sum_of_its_messages(ranks: int) -> None:
    size = 12e6
    rounds = 2 * (ranks - 1)  # each rank sends a piece to its neighbour, all at once
    one_round = NETWORK.latency_s + size / ranks / NETWORK.bytes_per_s
    assert allreduce_s("ring", size, world(ranks, 1)) == pytest.approx(rounds * one_round)


def test_hierarchical_sums_inside_then_between_then_hands_out() -> None:
    size, hosts, g = 8e6, 4, 2
    inside = (g - 1) * (LOCAL.latency_s + size / g / LOCAL.bytes_per_s)
    # g rings at once, each with its share of the bytes and of the host's network
    ring = 2 * (hosts - 1) * (NETWORK.latency_s + size / g / hosts / (NETWORK.bytes_per_s / g))
    assert allreduce_s("hierarchical", size, world(hosts, g)) == pytest.approx(2 * inside + ring)


def test_a_tree_in_pieces_is_as_fast_as_the_best_number_of_pieces() -> None:
    """Counted: pieces follow one another up and down 2 * 4 levels; each host sends all bytes twice."""
    size, hosts = 64e6, 16
    levels = 2 * math.ceil(math.log2(hosts))

    def in_pieces(count: int) -> float:
        return (levels + count) * (NETWORK.latency_s + 2 * size / count / NETWORK.bytes_per_s)

    best = min(in_pieces(count) for count in range(1, 4000))
    # a piece that is sent and received at once passes the first level only once
    assert allreduce_s("tree", size, world(hosts, 1)) == pytest.approx(best, rel=0.01)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_more_bytes_ranks_and_latency_never_cost_less(algorithm: str) -> None:
    def cost(size: float, hosts: int, g: int, latency: float) -> float:
        return allreduce_s(algorithm, size, World(hosts, g, Link(latency, 1e8), Link(latency / 9, 1e9)))

    for hosts, g in ((2, 1), (2, 4), (8, 8), (512, 8)):
        base = cost(1e6, hosts, g, 1e-5)
        assert cost(2e6, hosts, g, 1e-5) > base
        assert cost(1e6, 2 * hosts, g, 1e-5) > base
        assert cost(1e6, hosts, g, 1e-4) > base


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_one_rank_sends_nothing(algorithm: str) -> None:
    assert allreduce_s(algorithm, 1e9, world(1, 1)) == 0


def test_small_messages_of_many_ranks_take_the_tree() -> None:
    many = world(512, 8)
    assert (
        allreduce_s("tree", 1e3, many)
        < allreduce_s("hierarchical", 1e3, many)
        < allreduce_s("ring", 1e3, many)
    )


@pytest.mark.parametrize("ranks", [2, 5])
def test_a_link_is_found_again_from_the_times_of_its_ring(ranks: int) -> None:
    sizes = [256.0, 4096.0, 1e6, 3e7]
    times = [allreduce_s("ring", size, World(ranks, 1, NETWORK, NETWORK)) for size in sizes]
    found = ring_link(ranks, ranks, *latency_and_slope(sizes, times))
    assert found.latency_s == pytest.approx(NETWORK.latency_s)
    assert found.bytes_per_s == pytest.approx(NETWORK.bytes_per_s)


def test_times_that_fall_with_size_give_no_negative_link() -> None:
    a, b = latency_and_slope([1.0, 10.0, 100.0], [3.0, 2.0, 1.0])
    assert a > 0 and b > 0
    a, b = latency_and_slope([10.0, 100.0, 1000.0], [1.0, 100.0, 1000.0])
    assert a > 0 and b > 0


def test_calibration_finds_the_factors() -> None:
    def predicted(factors: Calibration) -> list[float]:
        return [factors.compute * c + factors.network * n for c, n in ((1, 1), (1, 4), (1, 9))]

    found = calibrate(predicted, predicted(Calibration(1.2, 0.8)))
    assert found.compute == pytest.approx(1.2, rel=0.02) and found.network == pytest.approx(0.8, rel=0.02)
    assert calibrate(predicted, [1, 1, 1], fits_compute=False).compute == 1
