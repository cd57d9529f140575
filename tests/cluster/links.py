"""Links with a rate and a delay between test hosts, also where the kernel has no netem."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from tests.cluster.hosts import Cluster, Host

SOURCE = Path(__file__).with_name("relay.c")
JUMBO = 9000  # bytes of a packet: fewer of them leave the processor to the ranks
_KEEP_WINDOWS = "echo 0 > /proc/sys/net/ipv4/tcp_slow_start_after_idle"


def why_not() -> str | None:
    """Why links cannot be shaped here; None where they can."""
    if shutil.which("cc") is None:
        return "links are shaped by a program in C, and there is no cc"
    return None if Path("/dev/net/tun").exists() else "there is no /dev/net/tun"


def built(folder: Path) -> Path:
    """The relay, compiled."""
    program = folder / "relay"
    if not program.exists():
        subprocess.run(["cc", "-O2", "-Wall", "-o", program, SOURCE], check=True)
    return program


@contextlib.contextmanager
def shaped(cluster: Cluster, host: Host, bits_per_s: float, delay_s: float) -> Iterator[None]:
    """Inside, the host's cable has this rate in each direction, and this delay one way.

    Windows of TCP stay open while a link is idle, as on hosts that are set up for training.
    """
    program = built(cluster.folder)
    for other in cluster:
        other.set_mtu(JUMBO)
        other.network("sh", "-c", _KEEP_WINDOWS)
    host.pull_out()
    ends = (f"/proc/{host.pid}/ns/net", "eth0", cluster.switch_namespace, host.port)
    relay = subprocess.Popen(
        ["setpriv", "--pdeathsig", "KILL", program, *ends, str(bits_per_s), str(delay_s * 1e6)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
    )
    try:
        assert relay.stdout is not None
        if relay.stdout.readline() != b"ready\n":
            raise RuntimeError("the relay did not start")
        host.put_in()
        host.set_mtu(JUMBO)
        yield
    finally:
        relay.kill()
        relay.wait()
        if relay.stdout is not None:
            relay.stdout.close()
        host.plug_in()
