"""What this host knows about the way to the others. Looks, and changes nothing."""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
from collections.abc import Sequence

from horovod_yolo.core.errors import UserError
from horovod_yolo.launch.hostfile import Host

_HERE = "localhost"
_SECONDS = 5


def is_here(name: str) -> bool:
    """Whether ``name`` is this host's own: as it stands, short, or localhost."""
    own = socket.gethostname()
    return name in (_HERE, "127.0.0.1", own) or name.split(".")[0] == own.split(".")[0]


def check_own_name(hosts: Sequence[Host], bound: bool = False) -> None:
    """The name of this host must lead the other hosts to it, or Gloo crashes or is refused.

    Nothing is asked of one host alone, nor of a host that only launches. Where all traffic is ``bound`` to an
    interface, any address will do, such as the 127.0.1.1 of Debian's installer.

    Raises:
        UserError: the name is unknown, or is a loopback address.
    """
    takes_part = any(is_here(host.name) or re.fullmatch(r"[0-9.]+", host.name) for host in hosts)
    if len(hosts) < 2 or not takes_part:
        return
    own = socket.gethostname()
    try:
        address = socket.gethostbyname(own)
    except OSError:
        raise UserError(
            f"this host's own name {own!r} has no address", fix="add a line for it to /etc/hosts"
        ) from None
    if address.startswith("127.") and not bound:
        raise UserError(
            f"this host's own name {own!r} is {address}, where no other host reaches it",
            fix="give the name the address that the other hosts use, in /etc/hosts",
        )


def find_interface(hosts: Sequence[Host], needed: bool = False) -> tuple[str | None, str]:
    """(interface that leads to the first other host, why there is none).

    One host needs none, unless it is ``needed``, as by elastic jobs: without one horovodrun waits for a
    second host. Otherwise None comes with a reason for the user.
    """
    others = [host.name for host in hosts if not is_here(host.name)]
    if needed and not others:
        return "lo", ""
    if (len(hosts) < 2 and not needed) or not others:
        return None, ""
    ip = shutil.which("ip", path="/usr/sbin:/sbin:/usr/bin:/bin")
    if ip is None:
        return None, "no `ip` command (iproute2) to find the network interface with; name it with --interface"
    interface, why = _route(ip, others[0])
    if interface == "lo" and len(others) > 1:  # the first is this host by another name or by its address
        interface, why = _route(ip, others[1])
    if interface == "lo":
        return None, f"the way to {others[0]} stays on this host; name the interface with --interface"
    return interface, why


def _route(ip: str, name: str) -> tuple[str | None, str]:
    """(interface of the route to a host, why there is none)."""
    try:
        address = socket.gethostbyname(name)
        route = subprocess.run(
            [ip, "-o", "route", "get", address],
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            check=True,
        )
    except OSError:
        return None, f"{name} has no address here, so no interface is chosen; name it with --interface"
    except subprocess.SubprocessError:
        return None, f"no route to {name} ({address}) is known here; name the interface with --interface"
    found = re.search(r" dev (\S+)", route.stdout)
    return (
        (found[1], "") if found else (None, f"`ip route get {address}` names no interface; use --interface")
    )
