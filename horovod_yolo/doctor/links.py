"""Which addresses the hosts reach each other by, and how fast each pair of hosts is."""

from __future__ import annotations

import ipaddress
import json
import secrets
import statistics
import subprocess
import tempfile
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from horovod_yolo.doctor import ssh
from horovod_yolo.doctor.collect import MOST_AT_ONCE, Report

AGENT = Path(__file__).with_name("agent.py")
WINDOW_S = 0.25  # for which a link is measured, in each direction
SLOW_SHARE = 0.2  # of what the hosts' best links do
SLOW_BITS = 50e6  # a second, and slow for training whatever the others do
TRIES = 3  # a link is slow when it is so in each of them

Pair = tuple[str, str]


@dataclass(frozen=True)
class Place:
    """An address of a host; ``network`` and ``interface`` are "" where it is on none of its interfaces."""

    host: str
    address: str
    network: str = ""
    interface: str = ""


@dataclass(frozen=True)
class Reach:
    """Whether one host got an answer from a place of another; ``why`` is empty where it did."""

    source: str
    place: Place
    why: str


@dataclass(frozen=True)
class Network:
    """What was found between the hosts.

    ``bits`` is by (sender, receiver), in bits a second, 0 where the transfer failed. ``lost`` are hosts that
    stopped answering while links were tried out, with the reason.
    """

    reaches: tuple[Reach, ...] = ()
    bits: Mapping[Pair, float] = field(default_factory=dict)
    lost: Mapping[str, str] = field(default_factory=dict)


def places(reports: Sequence[Report]) -> list[Place]:
    """Addresses by which hosts should reach each other, the one that a host's name stands for first.

    Beside that one they are those of networks in which several hosts have an address each. An address that
    is the same on several hosts (a bridge for containers) or link-local is not meant for others.
    """
    found = []
    for report in reports:
        own = [
            Place(report.host, card["address"], card["network"], card["name"])
            for card in report.facts["network"]["interfaces"]
        ]
        named = [place for place in own if place.address == report.address]
        if not named and report.address is not None:
            named = [Place(report.host, report.address)]
        found += [*named, *(place for place in own if place not in named and _is_shared(place, reports))]
    return found


def _is_shared(place: Place, reports: Sequence[Report]) -> bool:
    network = ipaddress.ip_network(place.network)
    if network.is_link_local:
        return False
    others = [
        card["address"]
        for report in reports
        if report.host != place.host
        for card in report.facts["network"]["interfaces"]
        if card["network"] == place.network
    ]
    return bool(others) and place.address not in others


def rounds(names: Sequence[str]) -> list[list[Pair]]:
    """All pairs, in rounds in each of which a name stands at most once (the circle method)."""
    ring: list[str | None] = [*names, *([None] if len(names) % 2 else [])]
    found = []
    for _ in range(len(ring) - 1):
        ends = ((ring[i], ring[-1 - i]) for i in range(len(ring) // 2))
        found.append([(a, b) for a, b in ends if a is not None and b is not None])
        ring = [ring[0], ring[-1], *ring[1:-1]]
    return found


def slow(bits: Mapping[Pair, float]) -> list[Pair]:
    """Pairs, once each, whose slower direction is far below what hosts can do, slowest first.

    The measure is the median of the hosts' best links: where one host of three is slow, so are most links.
    """
    pairs = by_pair(bits)
    names = sorted({name for pair in pairs for name in pair})
    best = [max(rate for pair, rate in pairs.items() if name in pair) for name in names]
    limit = max(SLOW_BITS, SLOW_SHARE * statistics.median_high(best)) if best else 0.0
    return sorted((pair for pair, rate in pairs.items() if rate < limit), key=pairs.__getitem__)


def by_pair(bits: Mapping[Pair, float]) -> dict[Pair, float]:
    """The slower direction of each pair, the pair as it first stands there."""
    pairs: dict[Pair, float] = {}
    for (source, target), rate in bits.items():
        pair = (target, source) if (target, source) in pairs else (source, target)
        pairs[pair] = min(rate, pairs.get(pair, rate))
    return pairs


def try_out(reports: Sequence[Report], seconds: float) -> Network:
    """Let all hosts call each other at all places, then measure each pair. ``seconds`` bounds an answer."""
    if len(reports) < 2:
        return Network()
    with _agents(listening_addresses(reports), seconds) as agents:
        answering = [report for report in reports if agents[report.host].lost is None]
        reaches = _reaches(places(answering), agents)
        ways: dict[Pair, str] = {}
        for found in reaches:
            if not found.why:
                ways.setdefault((found.source, found.place.host), found.place.address)
        bits = _measure([report.host for report in answering], ways, agents)
        lost = {name: agent.lost for name, agent in agents.items() if agent.lost is not None}
    return Network(tuple(reaches), bits, lost)


def listening_addresses(reports: Sequence[Report]) -> dict[str, list[str]]:
    """Where each host's agent listens: at its places, and nowhere else.

    A name may stand for an address that none of its interfaces has, as behind a router that translates
    addresses: then it is all of them, which "" stands for.
    """
    found: dict[str, list[str]] = {report.host: [] for report in reports}
    for place in places(reports):
        found[place.host].append(place.address if place.interface else "")
    return {host: [""] if "" in addresses else addresses for host, addresses in found.items()}


class _Agent:
    """The program of ``agent.py`` on a host."""

    def __init__(
        self, host: str, token: str, process: subprocess.Popen[bytes], errors: IO[bytes], seconds: float
    ) -> None:
        self.host = host
        self._ports: dict[str, int] = {}  # by the address that it listens at
        self.lost: str | None = None  # why it answers no more
        self._token = token
        self._process = process
        self._errors = errors
        self._seconds = seconds

    def greet(self, source: str, addresses: Sequence[str]) -> None:
        """Send the program, and learn its ports."""
        self._ports = self._ask(source + json.dumps([self._token, self.host, addresses])).get("ports", {})

    def port(self, address: str) -> int:
        """Where it listens for calls to an address."""
        return self._ports.get(address) or self._ports.get("", 0)

    def ask(self, **order: object) -> dict[str, Any]:
        """Its answer to an order; nothing where it answers no more."""
        return self._ask(json.dumps(order))

    def _ask(self, text: str) -> dict[str, Any]:
        assert self._process.stdin is not None and self._process.stdout is not None
        timer = threading.Timer(self._seconds, self._process.kill)
        timer.start()
        try:
            self._process.stdin.write(f"{text}\n".encode())
            self._process.stdin.flush()
            for answer in self._process.stdout:
                if answer.startswith(b"{"):  # else a greeting of the login shell
                    found: dict[str, Any] = json.loads(answer)
                    return found
        except (OSError, ValueError) as error:
            self.lost = str(error)
        finally:
            timer.cancel()
        self.lost = self._complaint() or self.lost or f"no answer within {self._seconds:.0f} s"
        return {}

    def _complaint(self) -> str:
        self._errors.seek(0)
        lines = self._errors.read(1 << 16).decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else ""


@contextmanager
def _agents(addresses: Mapping[str, Sequence[str]], seconds: float) -> Iterator[dict[str, _Agent]]:
    """An agent on each host, which listens at these addresses; they end with the block."""
    token = secrets.token_hex(16)
    source = AGENT.read_text(encoding="utf-8")
    words = ssh.talking_program(source)
    with ExitStack() as stack:
        agents = {}
        for name in addresses:
            errors = stack.enter_context(tempfile.TemporaryFile())
            process = stack.enter_context(ssh.running(name, words, errors))
            agents[name] = _Agent(name, token, process, errors, seconds)
        _at_once(lambda agent: agent.greet(source, addresses[agent.host]), agents.values())
        yield agents


def _at_once(work: Callable[[Any], Any], items: Collection[Any]) -> list[Any]:
    with ThreadPoolExecutor(min(max(len(items), 1), MOST_AT_ONCE)) as pool:
        return list(pool.map(work, items))


def _reaches(targets: Sequence[Place], agents: Mapping[str, _Agent]) -> list[Reach]:
    def all_from(agent: _Agent) -> list[Reach]:
        others = [place for place in targets if place.host != agent.host]
        calls = [[place.address, agents[place.host].port(place.address), place.host] for place in others]
        answers = agent.ask(do="reach", targets=calls).get("reach", [])
        return [Reach(agent.host, place, why) for place, why in zip(others, answers, strict=False)]

    calling = [agent for agent in agents.values() if agent.lost is None]
    return [reach for found in _at_once(all_from, calling) for reach in found]


def _measure(
    names: Sequence[str], ways: Mapping[Pair, str], agents: Mapping[str, _Agent]
) -> dict[Pair, float]:
    """Bits a second by (sender, receiver). What looks slow is measured again, and the best counts."""
    bits: dict[Pair, float] = {}

    def one_way(source: str, target: str) -> None:
        if (source, target) not in ways or agents[source].lost is not None:
            return
        address = ways[source, target]
        order = {"address": address, "port": agents[target].port(address), "seconds": WINDOW_S}
        rate = agents[source].ask(do="send", **order).get("bits", 0.0)
        bits[source, target] = max(rate, bits.get((source, target), 0.0))

    def both_ways(pair: Pair) -> None:
        one_way(*pair)
        one_way(*reversed(pair))

    suspects: Iterable[Pair] | None = None
    for _ in range(TRIES):
        for pairs in rounds(names):
            chosen = [p for p in pairs if suspects is None or p in suspects or p[::-1] in suspects]
            if chosen:
                _at_once(both_ways, chosen)
        suspects = slow(bits)
    return bits
