"""Who is to blame when pairs of hosts fail or are slow, and which addresses count at all."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Collection

import pytest
from hypothesis import given
from hypothesis import strategies as st

from horovod_yolo.doctor.links import Network, Pair, Place, Reach, listening_addresses, places, rounds, slow
from horovod_yolo.doctor.network_rules import blame, findings, of_trial, slowest, speed
from horovod_yolo.doctor.trial import Trial
from tests.unit.doctor.hosts import cluster

NAMES = ("host1", "host2", "host3", "host4")
GIGABIT = 940e6


def measured(slow_pairs: dict[Pair, float], names: Collection[str] = NAMES) -> Network:
    """A network of 1 Gbit/s but for these pairs."""
    bits = {}
    for a, b in itertools.permutations(names, 2):
        bits[a, b] = slow_pairs.get((a, b), slow_pairs.get((b, a), GIGABIT))
    return Network(bits=bits)


def reached(failed: Collection[Pair], *, interfaces: Collection[str] = ("eth0", "eth1")) -> Network:
    """Each host calls each other on each interface; ``failed`` ones do not answer on eth1."""
    found = [
        Reach(
            a,
            Place(b, f"10.{n}.0.{b[-1]}", f"10.{n}.0.0/24", name),
            "No route to host" if name == "eth1" and (a, b) in failed else "",
        )
        for a, b in itertools.permutations(NAMES, 2)
        for n, name in enumerate(sorted(interfaces))
    ]
    return Network(reaches=tuple(found))


def test_nothing_is_said_of_a_healthy_network() -> None:
    assert findings(Network()) == []
    assert findings(measured({})) == []
    assert findings(reached(())) == []
    assert of_trial(Trial(4, 1 << 20, 0.01, "cpu")) == []


def test_a_slow_host_is_named() -> None:
    (finding,) = findings(measured({("host2", other): 10e6 for other in NAMES if other != "host2"}))
    assert (finding.hosts, finding.kind, finding.blocks) == (("host2",), "link", False)
    assert "its links do 10 Mbit/s where others do 940 Mbit/s" in finding.what


def test_a_slow_pair_is_named() -> None:
    (finding,) = findings(measured({("host1", "host4"): 10e6}))
    assert (finding.hosts, finding.kind) == (("host1", "host4"), "link")


def test_one_slow_direction_is_enough() -> None:
    network = measured({})
    (finding,) = findings(Network(bits={**network.bits, ("host3", "host1"): 10e6}))
    assert finding.hosts == ("host1", "host3")


@pytest.mark.parametrize("count", [3, 4, 8])
def test_one_slow_host_of_several(count: int) -> None:
    """Of three hosts it makes two of the three links slow: what is usual is not the median of the links."""
    names = [f"host{i}" for i in range(1, count + 1)]
    network = measured({("host1", other): 100e6 for other in names[1:]}, names)
    assert {name for pair in slow(network.bits) for name in pair} == set(names)
    assert [finding.hosts for finding in findings(network)] == [("host1",)]


def test_two_hosts_have_no_other_link_to_compare_with() -> None:
    assert findings(measured({("host1", "host2"): 100e6}, NAMES[:2])) == []
    (finding,) = findings(measured({("host1", "host2"): 10e6}, NAMES[:2]))
    assert finding.hosts == ("host1", "host2")


def test_links_that_differ_by_half_are_no_finding() -> None:
    rates = dict(zip(itertools.combinations(NAMES, 2), (10e9, 5e9, 2.1e9, 7e9, 9e9, 3e9), strict=True))
    assert findings(measured(rates)) == []


def test_a_transfer_that_fails_is_a_slow_link() -> None:
    (finding,) = findings(measured({("host1", "host4"): 0.0}))
    assert "does nothing where others do" in finding.what


def test_an_interface_of_one_host() -> None:
    failed = [pair for pair in itertools.permutations(NAMES, 2) if "host3" in pair]
    (finding,) = findings(reached(failed))
    assert (finding.hosts, finding.kind, finding.blocks) == (("host3",), "interface", False)
    assert "eth1 (10.1.0.3) and the other hosts do not reach each other (No route to host)" in finding.what
    assert "--interface eth0" in finding.fix


def test_an_interface_of_two_hosts() -> None:
    failed = [pair for pair in itertools.permutations(NAMES, 2) if {"host3", "host1"} & set(pair)]
    assert sorted(finding.hosts for finding in findings(reached(failed))) == [("host1",), ("host3",)]


def test_a_pair_that_is_blocked_in_one_direction() -> None:
    (finding,) = findings(reached([("host1", "host2")]))
    assert finding.hosts == ("host1", "host2")
    assert "eth1 (10.1.0.1) and eth1 (10.1.0.2) do not reach each other" in finding.what


def test_a_network_on_which_nobody_reaches_anybody() -> None:
    (finding,) = findings(reached(list(itertools.permutations(NAMES, 2))))
    assert finding.hosts == NAMES and "eth1 (10.1.0.0/24) reaches no other host" in finding.what


@given(st.sets(st.sampled_from(NAMES), max_size=2), st.integers(4, 9))
def test_blame_finds_broken_hosts(broken: set[str], count: int) -> None:
    names = [f"host{i}" for i in range(1, count + 1)]
    failed = [pair for pair in itertools.combinations(names, 2) if broken & set(pair)]
    assert blame(failed) == (sorted(broken), []) or set(blame(failed)[0]) == broken


@given(st.sets(st.sampled_from(list(itertools.combinations(NAMES, 2)))))
def test_blame_explains_every_pair(failed: set[Pair]) -> None:
    hosts, left = blame(failed)
    assert all(set(hosts) & set(pair) or pair in left for pair in failed)
    assert set(left) <= failed


@given(st.integers(2, 17))
def test_rounds_hold_each_pair_once_and_no_host_twice(count: int) -> None:
    names = [str(i) for i in range(count)]
    made = rounds(names)
    assert sorted(tuple(sorted(pair)) for pairs in made for pair in pairs) == sorted(
        tuple(sorted(pair)) for pair in itertools.combinations(names, 2)
    )
    for pairs in made:
        taking_part = [name for pair in pairs for name in pair]
        assert len(set(taking_part)) == len(taking_part)


def card(name: str, address: str, network: str) -> dict[str, object]:
    return {"name": name, "address": address, "network": network, "carrier": True}


def test_addresses_that_are_not_meant_for_others_are_left_out() -> None:
    reports = cluster(3)
    for i, one in enumerate(reports, 1):
        one.facts["network"]["interfaces"] += [
            card("docker0", "172.17.0.1", "172.17.0.0/16"),  # the same on every host
            card("usb0", f"169.254.3.{i}", "169.254.0.0/16"),  # a management card
            card("cni0", f"10.244.{i}.1", f"10.244.{i}.0/24"),  # each host's own network
            card("ib0", f"192.168.9.{i}", "192.168.9.0/24"),
        ]
    found = {(place.host, place.interface) for place in places(reports)}
    assert found == {(f"host{i}", name) for i in (1, 2, 3) for name in ("eth0", "ib0")}


def test_the_address_of_the_name_comes_first_also_where_no_interface_has_it() -> None:
    reports = cluster(2)
    reports[1] = dataclasses.replace(reports[1], address="203.0.113.9")
    first = next(place for place in places(reports) if place.host == "host2")
    assert first == Place("host2", "203.0.113.9")
    assert listening_addresses(reports) == {"host1": ["10.0.0.1"], "host2": [""]}


def test_agents_listen_at_the_places_only() -> None:
    reports = cluster(3)
    reports[0].facts["network"]["interfaces"] += [card("docker0", "172.17.0.1", "172.17.0.0/16")]
    expected = {"host1": ["10.0.0.1"], "host2": ["10.0.0.2"], "host3": ["10.0.0.3"]}
    assert listening_addresses(reports) == expected


def test_a_lost_host_and_a_failed_job() -> None:
    (lost,) = findings(Network(lost={"host2": "Connection reset"}))
    assert lost.hosts == ("host2",) and "Connection reset" in lost.what
    (failed,) = of_trial(Trial(4, error="ImportError: libmpi.so.40"))
    assert failed.kind == "allreduce" and "over 4 ranks failed (ImportError: libmpi.so.40)" in failed.what


def test_the_slowest_link_is_named() -> None:
    assert slowest(measured({("host2", "host3"): 5e8})) == (("host2", "host3"), 5e8)
    assert slowest(Network()) is None


@pytest.mark.parametrize(
    ("bits", "text"),
    [
        (0, "nothing"),
        (56e3, "56 kbit/s"),
        (10.2e6, "10 Mbit/s"),
        (999e6, "999 Mbit/s"),
        (9.41e9, "9.4 Gbit/s"),
    ],
)
def test_speeds(bits: float, text: str) -> None:
    assert speed(bits) == text
