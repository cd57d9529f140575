"""What this host knows about the way to the others. Looks, and changes nothing.

Names are compared whole, then by what they lead to, and never in part: a host may well be called 10.77.0.11.
"""

from __future__ import annotations

import re
import socket
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from horovod_yolo.core.errors import UserError
from horovod_yolo.launch.hostfile import Host
from horovod_yolo.process.interfaces import interface_with, route_interface

_SECONDS = 5
_SETTING = re.compile(r"^(hostname|port) (\S+)$", re.MULTILINE)


@dataclass(frozen=True)
class SshTarget:
    """Where ssh goes for a host: the name or address it asks for, and the port."""

    name: str
    port: int


@lru_cache(maxsize=4096)
def ssh_target(name: str) -> SshTarget:
    """Where ssh would go, by its own configuration; port 22 of ``name`` where there is no ssh to ask."""
    try:
        done = subprocess.run(
            ["ssh", "-G", name],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return SshTarget(name, 22)
    found = dict(_SETTING.findall(done.stdout))
    return SshTarget(found.get("hostname", name), int(found.get("port", 22)))


def resolve(name: str) -> str | None:
    """The IPv4 address of a name, as this host's resolver and Horovod see it; None where it has none."""
    try:
        return socket.gethostbyname(name)
    except (OSError, UnicodeError):
        return None


def address_of(name: str) -> str | None:
    """The IPv4 address of a host: that of its name, else of what ssh's configuration says it stands for."""
    return resolve(name) or resolve(ssh_target(name).name)


def is_here(name: str) -> bool:
    """Whether ``name`` is this host: by its whole name, or because its address is one of this host's.

    ssh's configuration does not count: a port forwarded from here may lead to another host.
    """
    if name in ("localhost", socket.gethostname()):
        return True
    address = resolve(name)
    return address is not None and (address.startswith("127.") or interface_with(address) is not None)


def merged(hosts: Sequence[Host]) -> tuple[tuple[Host, ...], list[str]]:
    """``hosts``, where those that are one under several names are one, and a note for each of them.

    Ranks of one host must know of each other: they share its GPUs and cores.
    """
    slots: dict[str, int] = {}
    first: dict[object, str] = {}
    notes = []
    for host in hosts:
        name = first.setdefault(_identity(host.name) if len(hosts) > 1 else None, host.name)
        slots[name] = slots.get(name, 0) + host.slots
        if name != host.name:
            notes.append(f"{name} and {host.name} are one host: it gets {slots[name]} ranks, as {name}")
    return tuple(Host(name, count) for name, count in slots.items()), notes


def _identity(name: str) -> object:
    """Equal for equal hosts. Behind two ports of one address there may be two containers."""
    if is_here(name):
        return "here"
    target = ssh_target(name)
    return (resolve(target.name) or target.name, target.port)


def check_own_name(hosts: Sequence[Host], bound: bool = False) -> None:
    """The name of this host must lead the other hosts to it, or Gloo crashes or is refused.

    Nothing is asked of one host alone, nor of a host that only launches. Where all traffic is ``bound`` to an
    interface, any address will do, such as the 127.0.1.1 of Debian's installer.

    Raises:
        UserError: the name is unknown, or is a loopback address.
    """
    if len(hosts) < 2 or not any(is_here(host.name) for host in hosts):
        return
    own = socket.gethostname()
    address = resolve(own)
    if address is None:
        raise UserError(f"this host's own name {own!r} has no address", fix="add a line for it to /etc/hosts")
    if address.startswith("127.") and not bound:
        raise UserError(
            f"this host's own name {own!r} is {address}, where no other host reaches it",
            fix="give the name the address that the other hosts use, in /etc/hosts",
        )


def find_interface(hosts: Sequence[Host], needed: bool = False) -> tuple[str | None, str]:
    """(interface that leads to the first other host, why there is none).

    Where all ranks are on this host there is none, and no reason, unless it is ``needed``, as by elastic
    jobs: without one horovodrun waits for a second host. Otherwise None comes with a reason for the user.
    """
    others = [host.name for host in hosts if not is_here(host.name)]
    if not others:
        return ("lo" if needed else None), ""
    address = address_of(others[0])
    if address is None:
        return None, f"{others[0]} has no address here, so no interface is chosen; name it with --interface"
    interface = route_interface(address)
    if interface is None:
        return None, f"no route to {others[0]} ({address}) is known here; name the interface with --interface"
    if interface == "lo":
        return None, f"the way to {others[0]} stays on this host; name the interface with --interface"
    return interface, ""
