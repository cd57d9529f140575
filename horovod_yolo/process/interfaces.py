"""The network interfaces of this host."""

from __future__ import annotations

import socket

import psutil

_ANY_PORT = 9


def interface_with(address: str) -> str | None:
    """The interface of this host that has an IPv4 address."""
    for name, entries in psutil.net_if_addrs().items():
        if any(entry.family == socket.AF_INET and entry.address == address for entry in entries):
            return name
    return None


def address_of(interface: str) -> str | None:
    """The first IPv4 address of an interface of this host; None where it has none, or there is no such."""
    entries = psutil.net_if_addrs().get(interface, [])
    return next((entry.address for entry in entries if entry.family == socket.AF_INET), None)


def route_interface(address: str) -> str | None:
    """The interface that leads to an IPv4 address or name. The kernel is asked; nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            sock.connect((address, _ANY_PORT))
        except OSError:
            return None
        return interface_with(sock.getsockname()[0])
