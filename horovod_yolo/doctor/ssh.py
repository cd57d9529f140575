"""A Python program on a host: over ssh, or directly where the host is this one. No shell on this side."""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import IO

from horovod_yolo.core.errors import UserError
from horovod_yolo.launch import network

CONNECT_SECONDS = 8
# Reads as many characters as the argument says and runs them; the rest of the input is the program's own.
_FROM_INPUT = "import sys; exec(compile(sys.stdin.read(int(sys.argv[1])), 'sent', 'exec'))"


def address_of(name: str) -> str | None:
    """The IPv4 address that others reach a host by; None where it has none, or a loopback one."""
    address = network.address_of(name)
    return None if address is None or address.startswith("127.") else address


def program(argument: str) -> list[str]:
    """This Python, running what comes as its whole input, with one argument."""
    return [sys.executable, "-", argument]


def talking_program(source: str) -> list[str]:
    """This Python, running the source that its input begins with."""
    return [sys.executable, "-c", _FROM_INPUT, str(len(source))]


@contextmanager
def running(host: str, words: Sequence[str], errors: IO[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    """``words`` on a host, with pipes for input and output; killed at the end of the block.

    ssh's remote shell gets the words quoted. What runs on the other host must end when its input does.

    Raises:
        UserError: there is no ssh here.
    """
    options = ["-T", "-o", "BatchMode=yes", "-o", f"ConnectTimeout={CONNECT_SECONDS}"]
    argv = list(words) if network.is_here(host) else ["ssh", *options, host, shlex.join(words)]
    try:
        process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors)
    except FileNotFoundError:
        raise UserError(
            f"{argv[0]} is not there", fix="install OpenSSH's client: other hosts are reached with it"
        ) from None
    try:
        yield process
    finally:
        process.kill()
        for pipe in (process.stdin, process.stdout):
            with suppress(BrokenPipeError):  # what was not sent any more
                if pipe is not None:
                    pipe.close()
        process.wait()
