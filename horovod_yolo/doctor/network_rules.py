"""What is wrong between hosts: interfaces that do not reach, slow links, a job that fails. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Sequence

from horovod_yolo.doctor.findings import Finding, merged
from horovod_yolo.doctor.links import Network, Pair, Place, by_pair, slow
from horovod_yolo.doctor.trial import Trial


def findings(network: Network) -> list[Finding]:
    """What is wrong between the hosts; nothing where all is well."""
    return merged([*_lost(network), *_reach(network), *_links(network)])


def of_trial(trial: Trial) -> list[Finding]:
    """What is wrong where the shortest job fails."""
    if not trial.error:
        return []
    what = f"an allreduce over {trial.ranks} ranks failed ({trial.error})"
    return [Finding((), "allreduce", what, "--json shows what the job printed")]


def blame(failed: Collection[Pair]) -> tuple[list[str], list[Pair]]:
    """(hosts that explain the failed pairs, pairs that no single host explains).

    A host is to blame where several pairs with it failed; the one with the most goes first.
    """
    left, blamed = {frozenset(pair) for pair in failed}, []
    while left:
        host, count = max(sorted(Counter(name for pair in left for name in pair).items()), key=lambda x: x[1])
        if count < 2:
            break
        blamed.append(host)
        left = {pair for pair in left if host not in pair}
    return blamed, sorted((min(pair), max(pair)) for pair in left)


def _lost(network: Network) -> Iterator[Finding]:
    for host, why in network.lost.items():
        yield Finding(
            (host,), "no-answer", f"it stopped answering while links were tried ({why})", "look at it"
        )


def _reach(network: Network) -> Iterator[Finding]:
    """A network at a time: hosts that others do not reach there."""
    by_network: dict[str, dict[Pair, str]] = {}
    all_places: dict[tuple[str, str], Place] = {}
    for reach in network.reaches:
        place = reach.place
        all_places[place.network, place.host] = place
        by_network.setdefault(place.network, {})[reach.source, place.host] = reach.why
    working = {
        place.interface
        for (name, _), place in all_places.items()
        if place.interface and not any(by_network[name].values())
    }
    fix = "look at its cable, address, routes and firewall"
    if working:
        fix += f"; until then name one that works: --interface {sorted(working)[0]}"
    for name, found in by_network.items():
        here = {host: place for (network_name, host), place in all_places.items() if network_name == name}
        # Hosts that are not on a network may have no way there, and need none.
        failed = {pair: why for pair, why in found.items() if why and (not name or pair[0] in here)}
        yield from _on_network(name, here, failed, fix)


def _on_network(name: str, here: dict[str, Place], failed: dict[Pair, str], fix: str) -> Iterator[Finding]:
    if not failed:
        return
    blocks = not name
    pairs = {frozenset(pair) for pair in failed}
    why = next(iter(failed.values()))
    if len(here) > 2 and len(pairs) == len(here) * (len(here) - 1) // 2:
        what = f"{_at(next(iter(here.values())), whole=True)} reaches no other host ({why})"
        yield Finding(tuple(sorted(here)), "interface", what, fix, blocks)
        return
    hosts, left = blame(list(failed))
    for host in hosts:
        own = next(reason for pair, reason in failed.items() if host in pair)
        what = f"{_at(here[host])} and the other hosts do not reach each other ({own})"
        yield Finding((host,), "interface", what, fix, blocks)
    for a, b in left:
        reason = failed.get((a, b)) or failed[b, a]
        what = f"{_at(here[a])} and {_at(here[b])} do not reach each other ({reason})"
        yield Finding((a, b), "interface", what, fix, blocks)


def _at(place: Place, *, whole: bool = False) -> str:
    where = place.network if whole else place.address
    return f"{place.interface} ({where})" if place.interface else place.address


def _links(network: Network) -> Iterator[Finding]:
    pairs = by_pair(network.bits)
    slow_pairs = slow(network.bits)
    hosts, left = blame(slow_pairs)
    others = [rate for pair, rate in pairs.items() if pair not in slow_pairs]
    usual = f" where others do {speed(sorted(others)[len(others) // 2])}" if others else ""
    fix = "look at its cable, its port of the switch and `ethtool` (speed, duplex); training goes at its pace"
    for host in hosts:
        rates = [pairs[pair] for pair in slow_pairs if host in pair]
        yield Finding((host,), "link", f"its links do {speed(min(rates))}{usual}", fix)
    for pair in left:
        rate = pairs.get(pair, pairs.get((pair[1], pair[0]), 0.0))
        yield Finding(pair, "link", f"the link between them does {speed(rate)}{usual}", fix)


def slowest(network: Network) -> tuple[Pair, float] | None:
    """The slowest pair and its bits a second; None where fewer than two hosts were measured."""
    pairs = by_pair(network.bits)
    return min(pairs.items(), key=lambda item: item[1]) if pairs else None


def speed(bits: float) -> str:
    """Bits a second for people."""
    if bits <= 0:
        return "nothing"
    if bits >= 1e9:
        return f"{bits / 1e9:.1f} Gbit/s"
    return f"{bits / 1e6:.0f} Mbit/s" if bits >= 1e6 else f"{bits / 1e3:.0f} kbit/s"


def rates(network: Network, names: Sequence[str]) -> list[list[float | None]]:
    """Bits a second by sender (row) and receiver; None where nothing was measured."""
    return [[network.bits.get((source, target)) for target in names] for source in names]
