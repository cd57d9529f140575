"""Hosts on one machine: namespaces with their own network, name, processes, /dev/shm and sshd.

To ssh, Horovod, MPI and Slurm they are hosts. No namespace has a name and nothing is written to ``/etc``
or ``/run`` of the machine: when the processes of a cluster end, however they end, all of it is gone.
The rest of the file system is the machine's, as a shared one would be.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

import psutil

from tests.cluster.etc import BOOT, NETWORK, write_etc

PACKAGES = "iproute2 openssh-server openssh-client"
TOOLS = ("ip", "tc", "unshare", "nsenter", "setpriv", "ssh", "sshd", "ssh-keygen")
_OWN_TMP = """
[ ! -d /run/outer ] || exit 0
mkdir /run/outer && mount --bind /tmp /run/outer && mount -t tmpfs -o mode=1777 tmpfs /tmp
for path in /run/outer/*; do
  to=/tmp/${path##*/}
  case $to in /tmp/horovod_yolo-*) continue ;; esac
  if [ -d "$path" ]; then mkdir "$to" && mount --bind "$path" "$to"; fi
done
"""
_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"


def why_not() -> str | None:
    """Why hosts cannot be made here; None where they can."""
    missing = [tool for tool in TOOLS if shutil.which(tool, path=_PATH) is None]
    if os.geteuid() != 0:
        return "hosts in namespaces need root"
    if missing:
        return f"hosts in namespaces need {', '.join(missing)}: apt-get install {PACKAGES}"
    tried = subprocess.run(
        ["unshare", "--net", "--uts", "--ipc", "--pid", "--mount", "--fork", "true"],
        capture_output=True,
        text=True,
        check=False,
    )
    return f"namespaces are not allowed: {tried.stderr.strip()}" if tried.returncode else None


def _sh(*words: str | Path) -> str:
    """Run a command of the machine's; what it printed."""
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{shlex.join(map(str, words))}: {done.stdout}{done.stderr}")
    return done.stdout


def _hold(namespaces: Sequence[str], script: str, log: Path) -> tuple[subprocess.Popen[bytes], int]:
    """Start ``script`` as pid 1 of new namespaces; the process here and its child's pid, once it is ready.

    Both die with this process, and with pid 1 everything in its namespaces.
    """
    ready = log.with_suffix(".ready")
    ready.unlink(missing_ok=True)
    words = ["setpriv", "--pdeathsig", "KILL", "unshare", *namespaces, "--kill-child", "--fork"]
    with log.open("wb") as out:
        keeper = subprocess.Popen(
            [*words, "/bin/sh", "-ec", script, "sh", str(ready)],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            start_new_session=True,
        )
    deadline = time.monotonic() + 20
    while not ready.exists():
        if keeper.poll() is not None or time.monotonic() > deadline:
            keeper.kill()
            raise RuntimeError(f"a host did not start: {log.read_text()}")
        time.sleep(0.02)
    (child,) = psutil.Process(keeper.pid).children()
    return keeper, child.pid


class Host:
    """One host. Made by `Cluster`."""

    def __init__(self, cluster: Cluster, number: int) -> None:
        self._number = number
        self.name = f"host{number}"
        self.address = f"{NETWORK}.{10 + number}"
        self._mac = f"02:77:00:00:00:{number:02x}"
        self.port = f"port{number}"  # of the switch
        self._cluster = cluster
        self._folder = cluster.folder / self.name
        self._keeper: subprocess.Popen[bytes] | None = None
        self._started: list[subprocess.Popen[str]] = []
        self.pid = 0  # of the host's first process, sshd

    def boot(self) -> None:
        """Switch the host on, with its cable in."""
        cluster = self._cluster
        write_etc(self._folder, cluster.folder, self._number, cluster.own_address, cluster.sshd)
        self._keeper, self.pid = _hold(
            ("--net", "--uts", "--ipc", "--pid", "--mount", "--mount-proc"),
            BOOT.format(name=self.name, etc=shlex.quote(str(self._folder))),
            cluster.folder / f"{self.name}.log",
        )
        # Linux answers for any of its addresses on any card: of two on one switch, traffic would take either.
        self.network("sh", "-c", "echo 1 > /proc/sys/net/ipv4/conf/all/arp_ignore")
        self.plug_in()

    def plug_in(self) -> None:
        """The cable of the host's own card, as it is after `boot`."""
        self._plug_in("eth0", self.port, f"{self.address}/24", self._mac)
        self.network("ip", "route", "add", "default", "via", f"{NETWORK}.1")

    def pull_out(self) -> None:
        """Take the card and its cable away."""
        self._cluster.switch("ip", "link", "del", self.port)

    def put_in(self) -> None:
        """Use what somebody has made in their place: ``eth0`` here, ``port`` at the switch."""
        self._cluster.switch("ip", "link", "set", self.port, "master", "bridge", "up")
        self._address("eth0", f"{self.address}/24", self._mac)
        self.network("ip", "route", "add", "default", "via", f"{NETWORK}.1")

    def set_mtu(self, size: int) -> None:
        """The largest packet of the card and of its port."""
        self._cluster.switch("ip", "link", "set", self.port, "mtu", str(size))
        self.network("ip", "link", "set", "eth0", "mtu", str(size))

    def _plug_in(self, interface: str, port: str, address: str, mac: str) -> None:
        switch = self._cluster.switch
        switch("ip", "link", "add", port, "type", "veth", "peer", "name", interface, "netns", str(self.pid))
        switch("ip", "link", "set", port, "master", "bridge", "up")
        self._address(interface, address, mac)

    def _address(self, interface: str, address: str, mac: str) -> None:
        self.network("ip", "link", "set", "lo", "up")
        # A fixed address of the card: after a reboot the others must not hold an old one.
        self.network("ip", "link", "set", interface, "address", mac, "up")
        self.network("ip", "addr", "add", address, "dev", interface)

    def add_interface(self, name: str, address: str) -> None:
        """A second network card on the same switch."""
        mac = f"{self._mac[:-5]}{len(name):02x}:{self._mac[-2:]}"
        self._plug_in(name, f"{self.port}.{name}", address, mac)

    def cut_interface(self, name: str) -> None:
        """The cable of a card of `add_interface` out at the switch."""
        self._cluster.switch("ip", "link", "set", f"{self.port}.{name}", "down")

    def add_dead_interface(self, name: str, address: str) -> None:
        """A second network card with an address and without a cable, as Docker's bridge is."""
        self.network("ip", "link", "add", name, "type", "bridge")
        self.network("ip", "addr", "add", address, "dev", name)
        self.network("ip", "link", "set", name, "up")

    def network(self, *words: str) -> str:
        """Run a command of the machine's in the host's network."""
        return _sh("nsenter", f"--net=/proc/{self.pid}/ns/net", "--", *words)

    def _inside(self, argv: Sequence[str | Path], user: str | None, folder: Path | str | None) -> list[str]:
        own = ["--net", "--uts", "--ipc", "--pid", "--mount"]
        words = ["nsenter", "-t", str(self.pid), *own, f"--wdns={folder or Path.cwd()}", "--"]
        if user is not None:
            words += ["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups"]
        return [*words, *map(str, argv)]

    def start(
        self,
        argv: Sequence[str | Path],
        *,
        env: Mapping[str, str] | None = None,
        log: Path | None = None,
        user: str | None = None,
        cwd: Path | str | None = None,
    ) -> subprocess.Popen[str]:
        """Start a command on the host; what it prints goes to ``log``, if anywhere."""
        if log is None:
            return self._start(argv, subprocess.DEVNULL, env=env, user=user, cwd=cwd)
        with log.open("wb") as out:
            return self._start(argv, out, env=env, user=user, cwd=cwd)

    def _start(
        self,
        argv: Sequence[str | Path],
        out: int | IO[bytes],
        *,
        env: Mapping[str, str] | None,
        user: str | None,
        cwd: Path | str | None,
    ) -> subprocess.Popen[str]:
        home = f"/home/{user}" if user else "/root"
        variables = {"PATH": _PATH, "HOME": home, "LANG": "C.UTF-8", **(env or {})}
        process = subprocess.Popen(
            self._inside(argv, user, cwd),
            env=variables,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        self._started.append(process)
        return process

    def run(
        self,
        argv: Sequence[str | Path],
        *,
        timeout: float = 60,
        env: Mapping[str, str] | None = None,
        user: str | None = None,
        cwd: Path | str | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on the host; one that does not end in time is killed and fails the test."""
        process = self._start(argv, subprocess.PIPE, env=env, user=user, cwd=cwd)
        try:
            output, _ = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            output, _ = process.communicate()
            raise AssertionError(f"{self.name}: {argv[0]} did not end in {timeout} s:\n{output}") from None
        return subprocess.CompletedProcess(argv, process.returncode, output, "")

    def processes(self) -> list[psutil.Process]:
        """What runs on the host beside its sshd and that one's sessions."""
        mine = Path(f"/proc/{self.pid}/ns/pid").stat().st_ino
        found = []
        for process in psutil.process_iter():
            try:
                inside = Path(f"/proc/{process.pid}/ns/pid").stat().st_ino == mine
                if inside and process.name() != "sshd":
                    found.append(process)
            except (OSError, psutil.NoSuchProcess):
                continue  # ended meanwhile
        return found

    def ranks(self, script: str = "train.py") -> list[psutil.Process]:
        """The host's Python processes that themselves run ``script``, or ``train`` as launched."""
        found = []
        for process in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                words = process.cmdline()
                if len(words) > 1 and "python" in Path(words[0]).name:
                    launched = ["-m", "horovod_yolo.cli", "train"] in (words[1:4], words[2:5])
                    found += [process] if launched or words[1].endswith(script) else []
        return found

    def cut(self) -> None:
        """The cable out at the switch: the host sees its card without carrier."""
        self._cluster.switch("ip", "link", "set", self.port, "down")

    def heal(self) -> None:
        """The cable in again."""
        self._cluster.switch("ip", "link", "set", self.port, "up")

    def drop(self) -> None:
        """A silent black hole: the carrier stays, what is sent goes nowhere."""
        self._cluster.switch("ip", "link", "set", self.port, "nomaster")

    def undrop(self) -> None:
        """The end of `drop`."""
        self._cluster.switch("ip", "link", "set", self.port, "master", "bridge")

    def rate(self, bits: str | None) -> None:
        """Limit the link in both directions, such as ``10mbit``; None lifts the limit."""
        ends = ((self._cluster.switch, self.port), (self.network, "eth0"))
        for run, card in ends:
            if bits is None:
                run("tc", "qdisc", "del", "dev", card, "root")
            else:
                limit = ("rate", bits, "burst", "64kb", "latency", "50ms")
                run("tc", "qdisc", "replace", "dev", card, "root", "tbf", *limit)

    def kill(self) -> None:
        """Kill all processes of the host at once. Its network goes with them, without a farewell to peers."""
        if self._keeper is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
            self._keeper.wait(timeout=20)
            self._keeper = None
            for process in self._started:
                process.wait(timeout=20)
            self._started = []

    def power_off(self) -> None:
        """As `kill`, and not even the kernel tells the peers."""
        self.drop()
        self.kill()
        # The kernel takes a dead namespace's cards away some time later, and `boot` needs the port's name.
        with contextlib.suppress(RuntimeError):  # it has done so
            self.pull_out()

    def mount_tmpfs(self, path: Path | str, size: str) -> None:
        """A file system in memory over ``path``, on this host only."""
        self._mount("mount", "-t", "tmpfs", "-o", f"size={size},mode=1777", "tmpfs", str(path))

    def own_tmp(self) -> None:
        """A /tmp of the host's own, in which what the machine's holds by now is shown."""
        done = self.run(["sh", "-ec", _OWN_TMP])
        if done.returncode:
            raise RuntimeError(f"{self.name}: {done.stdout}")

    def bind(self, source: Path | str, target: Path | str) -> None:
        """Show ``source`` at ``target``, which must exist, on this host only."""
        self._mount("mount", "--bind", str(source), str(target))

    def unmount(self, path: Path | str) -> None:
        """Take away what was mounted last over ``path``."""
        self._mount("umount", str(path))

    def _mount(self, *words: str) -> None:
        done = self.run(words)
        if done.returncode:
            raise RuntimeError(f"{self.name}: {shlex.join(words)}: {done.stdout}")


class Cluster:
    """Hosts ``host1`` ... on a switch, with ssh between them as root and as ``trainer`` without a password.

    Args:
        count: hosts to start with.
        folder: for keys, logs and the hosts' own files; short enough for a socket's path.
        own_address: what a host's own name resolves to on itself; its real address by default.
        sshd: more lines of ``sshd_config`` for all hosts. `Host.boot` reads the attribute anew.
    """

    def __init__(self, count: int, folder: Path, *, own_address: str | None = None, sshd: str = "") -> None:
        self.folder = folder
        self.own_address = own_address
        self.sshd = sshd
        self._hosts = {f"host{i}": Host(self, i) for i in range(1, count + 1)}
        self._switch: subprocess.Popen[bytes] | None = None
        self._switch_pid = 0

    def __enter__(self) -> Cluster:
        self.folder.mkdir(parents=True, exist_ok=True)
        for name in ("user_key", "host_key"):
            if not (self.folder / name).exists():
                _sh("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", self.folder / name)
        self._switch, self._switch_pid = _hold(
            ("--net",), 'touch "$1"; exec sleep infinity', self.folder / "switch.log"
        )
        try:
            self.switch("ip", "link", "set", "lo", "up")
            self.switch(
                "ip", "link", "add", "bridge", "type", "bridge", "stp_state", "0", "forward_delay", "0"
            )
            self.switch("ip", "link", "set", "bridge", "up")
            self.switch("ip", "addr", "add", f"{NETWORK}.1/24", "dev", "bridge")
            for host in self:
                host.boot()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for host in self:
            host.kill()
        if self._switch is not None:
            os.kill(self._switch_pid, signal.SIGKILL)
            self._switch.wait(timeout=20)
            self._switch = None

    def __iter__(self) -> Iterator[Host]:
        return iter(list(self._hosts.values()))

    def __getitem__(self, name: str) -> Host:
        return self._hosts[name]

    def add_host(self) -> Host:
        """One more host, switched on."""
        host = Host(self, len(self._hosts) + 1)
        self._hosts[host.name] = host
        host.boot()
        return host

    @property
    def switch_namespace(self) -> str:
        """The file of the switch's network."""
        return f"/proc/{self._switch_pid}/ns/net"

    def switch(self, *words: str) -> str:
        """Run a command in the switch's network."""
        return _sh("nsenter", f"--net={self.switch_namespace}", "--", *words)
