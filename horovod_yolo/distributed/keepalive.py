"""Connections between ranks that notice a host which fell silent, long before Gloo's time-out.

A host that loses its power or its cable closes no connection: who waits for its data would wait until Gloo's
time-out, which has to be long, because it also bounds how much later than others a rank may start.
"""

from __future__ import annotations

import os
import socket
from typing import Any

import psutil

SECONDS_OF_SILENCE = 15
_IDLE, _INTERVAL, _PROBES = 5, 5, 2  # ask after 5 s without data, again after 5 s, give up after 5 s more
_OPTIONS = (
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _IDLE),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _INTERVAL),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, _PROBES),
    # Nothing is asked while data that was sent is not acknowledged; that has a limit of its own (RFC 5482).
    (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, SECONDS_OF_SILENCE * 1000),
)


def watch_connections() -> int:
    """Let the TCP connections that this process has break after 15 s of silence; how many there are.

    Horovod makes them and has no setting for it. For a process that is stopped its host answers.
    """
    count = 0
    for found in _established():
        try:
            with socket.socket(fileno=os.dup(found.fd)) as connection:
                let_break(connection)
        except OSError:  # a thread of Horovod's has closed it meanwhile
            continue
        count += 1
    return count


def let_break(connection: socket.socket) -> None:
    """Let a TCP connection break after 15 s of silence."""
    for level, option, value in _OPTIONS:
        connection.setsockopt(level, option, value)


def connections() -> set[tuple[object, object]]:
    """(address here, address there) of each TCP connection that this process has."""
    return {(found.laddr, found.raddr) for found in _established()}


def _established() -> list[Any]:
    found = psutil.Process().net_connections("tcp")
    return [connection for connection in found if connection.status == psutil.CONN_ESTABLISHED]
