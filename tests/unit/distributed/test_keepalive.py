"""Connections that were made by others get the options that let them notice silence."""

from __future__ import annotations

import gc
import socket

import psutil

from horovod_yolo.distributed.keepalive import SECONDS_OF_SILENCE, watch_connections


def test_connections_and_nothing_else_are_watched() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        client = socket.create_connection(server.getsockname())
        accepted, _ = server.accept()
        pair = socket.socketpair()
        with client, accepted, pair[0], pair[1]:
            gc.collect()  # of what earlier tests left, nothing closes a file in between
            before = psutil.Process().num_fds()
            assert watch_connections() >= 2
            assert psutil.Process().num_fds() == before
            for connection in (client, accepted):
                assert connection.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
                idle, interval, probes = (
                    connection.getsockopt(socket.IPPROTO_TCP, option)
                    for option in (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
                )
                assert idle + interval * probes == SECONDS_OF_SILENCE
                timeout_ms = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)
                assert timeout_ms == SECONDS_OF_SILENCE * 1000
        assert not server.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
