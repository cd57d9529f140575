"""A shaped link has the rate and the delay that it is given, and is an ordinary one afterwards."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.cluster.hosts import Cluster
from tests.cluster.links import shaped, why_not

SEND = """
import socket, sys, time
server = socket.create_server(("", 5000)) if sys.argv[1] == "take" else None
if server:
    there, _ = server.accept()
    begun, got = time.monotonic(), 0
    while data := there.recv(1 << 20):
        got += len(data)
    print("rate", got * 8 / (time.monotonic() - begun))
else:
    deadline = time.monotonic() + 20
    while True:
        try:
            begun = time.monotonic()
            with socket.create_connection((sys.argv[1], 5000)) as there:
                print("there and back", time.monotonic() - begun)
                there.sendall(bytes(2_000_000))
            break
        except OSError:
            assert time.monotonic() < deadline
            time.sleep(0.05)
"""


def rate_and_way(cluster: Cluster, folder: Path) -> tuple[float, float]:
    """Bits a second of a transfer, and seconds of the first packet's way there and back."""
    (folder / "send.py").write_text(SEND)
    taking = cluster["host1"].start(
        ["/usr/bin/env", "python3", folder / "send.py", "take"], log=folder / "log"
    )
    sent = cluster["host2"].run(["/usr/bin/env", "python3", folder / "send.py", cluster["host1"].address])
    assert sent.returncode == 0, sent.stdout
    assert taking.wait(20) == 0
    found = re.search(r"rate ([\d.]+)", (folder / "log").read_text())
    assert found, (folder / "log").read_text()
    way = re.search(r"there and back ([\d.]+)", sent.stdout)
    assert way, sent.stdout
    return float(found[1]), float(way[1])


@pytest.mark.skipif(why_not() is not None, reason=f"LOUD SKIP: {why_not()}")
def test_rate_and_delay_hold_while_they_are_asked_for(folder: Path) -> None:
    with Cluster(2, folder / "hosts") as cluster:
        with shaped(cluster, cluster["host2"], 20e6, 0.03):
            rate, way = rate_and_way(cluster, folder)
            assert rate < 21e6 and way > 0.06  # a busy machine may be slower, a link is never faster
        assert rate_and_way(cluster, folder)[0] > 21e6
