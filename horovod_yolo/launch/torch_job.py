"""A job whose ranks talk through torch: torchrun's agents on its hosts, started from here and watched over.

This process serves the store where the agents meet, at one address only; torchrun itself would at all. Agents
on other hosts are started over ssh. What they run, and with which variables, goes into their input, so that
nobody sees it in a command line.
"""

from __future__ import annotations

import json
import logging
import queue
import secrets
import shlex
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from horovod_yolo.core.errors import UserError
from horovod_yolo.launch import network
from horovod_yolo.launch.hostfile import Host
from horovod_yolo.launch.plan import module_command, of_other_hosts
from horovod_yolo.launch.torch_agent import STOP
from horovod_yolo.process.interfaces import address_of

log = logging.getLogger(__name__)
Write = Callable[[bytes, bool], None]
_CONNECT_SECONDS = 8
# A host that falls silent is given up after 15 s.
_SSH = ("-T", "-o", "BatchMode=yes", "-o", f"ConnectTimeout={_CONNECT_SECONDS}")
_SSH_WATCHES = ("-o", "ServerAliveInterval=5", "-o", "ServerAliveCountMax=3")
_SECONDS_FOR_OTHERS = 15.0  # to end by themselves when one host has failed
_TOLD_BY_RANKS = (2, 3)
_FAULT = 1
# Becomes the agent, with the variables and in the folder that its first line of input names. For any login
# shell: one line without a quote of its kind, and without a `!`.
_BOOT = (
    "import json, os, sys; told = json.loads(sys.stdin.buffer.raw.readline()); "
    'os.path.isdir(told["folder"]) or sys.exit("error: " + told["folder"] + " is not there"); '
    'os.chdir(told["folder"]); os.environ.update(told["environ"]); '
    'os.execv(told["argv"][0], told["argv"])'
)


def to_console(line: bytes, is_error: bool) -> None:
    """Print a line of a rank where it belongs."""
    stream = sys.stderr if is_error else sys.stdout
    stream.buffer.write(line)
    stream.buffer.flush()


class TorchJob:
    """Ranks on hosts, from the start of the context to its end, which leaves no process.

    Args:
        hosts: with a rank in each slot, in this order. Where all are this host, nothing leaves it and no ssh
            is needed.
        program: what each rank runs, at the same path on all hosts.
        environ: of the ranks, but for what their launcher tells them.
        interface: towards the other hosts; None for one host.
        folder: where the ranks run.
        restarts: how often all ranks are started anew when one is lost.
        write: takes each line that ranks print, and whether it is for standard error; called by threads.

    Raises:
        UserError: no address to meet at, or no ssh.
    """

    def __init__(
        self,
        hosts: Sequence[Host],
        program: Sequence[str],
        environ: Mapping[str, str],
        *,
        interface: str | None = None,
        folder: Path | None = None,
        restarts: int = 0,
        write: Write = to_console,
    ) -> None:
        self._hosts = list(hosts)
        self._away = [not network.is_here(host.name) for host in hosts]
        self._address = _meeting_address(interface) if any(self._away) else "127.0.0.1"
        self._environ = dict(environ)
        self._folder = str(folder or Path.cwd())
        self._told = {
            "job": secrets.token_hex(8),
            "hosts": len(self._hosts),
            "program": list(program),
            "restarts": restarts,
        }
        self._write = write
        self._lock = threading.Lock()  # of the output
        self._agents: list[subprocess.Popen[bytes]] = []
        self._readers: list[threading.Thread] = []
        self._ended: queue.SimpleQueue[tuple[int, int]] = queue.SimpleQueue()  # agents, their codes
        self._codes: dict[int, int] = {}
        self._store: Any = None

    def __enter__(self) -> TorchJob:
        with ExitStack() as unless_started:
            unless_started.callback(self.kill)
            self._store, port = _store(self._address)
            for number in range(len(self._hosts)):
                self._start(number, port)
            unless_started.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()
        for agent in self._agents:
            agent.wait()
        for reader in self._readers:
            reader.join()
        self._store = None

    def _start(self, number: int, port: int) -> None:
        host, away = self._hosts[number], self._away[number]
        boot = [sys.executable, "-c", _BOOT]
        words = ["ssh", *_SSH, *_SSH_WATCHES, host.name, f"exec {shlex.join(boot)}"] if away else boot
        pipe = subprocess.PIPE
        try:
            agent = subprocess.Popen(
                words, env=self._environ, stdin=pipe, stdout=pipe, stderr=pipe, start_new_session=True
            )
        except OSError as error:
            raise UserError(f"{words[0]} cannot be started ({error.strerror})", where=host.name) from None
        self._agents.append(agent)
        assert agent.stdout is not None and agent.stderr is not None
        readers = [
            threading.Thread(target=self._read, args=(stream, is_error), daemon=True)
            for stream, is_error in ((agent.stdout, False), (agent.stderr, True))
        ]
        waiter = threading.Thread(target=self._await, args=(number, readers), daemon=True)
        self._readers += [*readers, waiter]
        environ = of_other_hosts(self._environ) if away else self._environ
        argv = module_command("horovod_yolo.launch.torch_agent")
        self._tell(agent, json.dumps({"folder": self._folder, "environ": environ, "argv": argv}))
        self._tell(agent, json.dumps({**self._told, "ranks": host.slots, "meet": [self._address, port]}))
        for thread in (*readers, waiter):
            thread.start()

    def _tell(self, agent: subprocess.Popen[bytes], line: str) -> None:
        assert agent.stdin is not None
        with suppress(OSError):  # it has ended, and its code says how
            agent.stdin.write(line.encode() + b"\n")
            agent.stdin.flush()

    def _read(self, stream: IO[bytes], is_error: bool) -> None:
        with stream:
            for line in stream:
                with self._lock:
                    self._write(line, is_error)

    def _await(self, number: int, readers: Sequence[threading.Thread]) -> None:
        code = self._agents[number].wait()
        for reader in readers:  # what it said comes before its end
            reader.join()
        self._ended.put((number, code))

    def stop(self) -> None:
        """Ask all ranks to end with a checkpoint; `wait` tells when they have."""
        for agent in self._agents:
            self._tell(agent, STOP.decode().strip())

    def kill(self) -> None:
        """End all ranks at once."""
        for agent in self._agents:
            assert agent.stdin is not None
            with suppress(OSError):
                agent.stdin.close()

    def wait(self) -> int:
        """The job's exit code, when it has ended: 0; 2 or 3 where ranks ended so; else 1."""
        deadline = None
        while len(self._codes) < len(self._agents):
            left = None if deadline is None else max(deadline - time.monotonic(), 0)
            try:
                number, code = self._ended.get(timeout=left)
            except queue.Empty:
                deadline = None
                self.kill()
                continue
            self._codes[number] = code
            if code and deadline is None and len(set(self._codes.values()) - {0}) == 1:
                deadline = time.monotonic() + _SECONDS_FOR_OTHERS
                self._say_loss(number, code)
        first = next((code for code in self._codes.values() if code), 0)
        return first if first in (0, *_TOLD_BY_RANKS) else _FAULT

    def _say_loss(self, number: int, code: int) -> None:
        if self._away[number] and code == 255:  # ssh's own
            log.warning("%s cannot be reached: the job ends", self._hosts[number].name)


def _meeting_address(interface: str | None) -> str:
    """This host's address on the interface that leads to the others.

    Raises:
        UserError: no interface is known, or it has no address.
    """
    for name in (interface or "").split(","):
        if address := address_of(name):
            return address
    raise UserError(
        f"{interface or 'no interface'} has no IPv4 address where the other hosts could reach this one",
        where="--interface",
        fix="`ip -br addr` lists them",
    )


def _store(address: str) -> tuple[Any, int]:
    """The store where agents meet, and its port."""
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    with socket.socket() as listening:
        listening.bind((address, 0))
        listening.listen(socket.SOMAXCONN)
        port: int = listening.getsockname()[1]
        patience = timedelta(seconds=600)
        store = TCPStore(
            address, port, None, True, patience, wait_for_workers=False, master_listen_fd=listening.detach()
        )
    return store, port
