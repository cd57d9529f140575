"""What runs on each host while links are tried out. Sent over ssh like the probe: the standard library only.

It listens on the addresses that it is told, takes orders as lines of JSON from its standard input and answers
each with a line. It ends when its input does, so nothing is left behind when the other side goes away.
Connections must begin with the token of this examination; others are closed.
"""

from __future__ import annotations

import hmac
import json
import select
import socket
import struct
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

BLOCK = 1 << 18  # bytes
HEAD = 128  # bytes that every connection starts with: token and what is wanted
GO = b"+"
SECONDS = 5.0  # that a connection may take, and a peer may be silent
MOST_AT_ONCE = 32


def measured(peer: socket.socket, seconds: float) -> tuple[int, float]:
    """(bytes, seconds) received after the sender was told to go.

    The receiver measures: what a sender has handed over may still lie in its own buffers. And nothing may
    have come in before the clock starts, or a receiver that is kept waiting for a core finds too much.
    """
    buffer = bytearray(BLOCK)
    received, start = 0, time.monotonic()
    peer.sendall(GO)
    while time.monotonic() - start < seconds:
        count = peer.recv_into(buffer)
        if count == 0:
            break
        received += count
    return received, time.monotonic() - start


def _serve(peer: socket.socket, token: str, name: str) -> None:
    with peer:
        try:
            peer.settimeout(SECONDS)
            head = peer.recv(HEAD, socket.MSG_WAITALL).decode().split()
            if not head or not hmac.compare_digest(head[0].encode(), token.encode()):
                return
            if head[1] == "who":
                peer.sendall(name.encode())
                return
            peer.sendall(json.dumps(measured(peer, float(head[1]))).encode())
            while peer.recv(BLOCK):  # until the sender has read the answer and closes
                continue
        except (OSError, ValueError):
            return


def _accept(listener: socket.socket, token: str, name: str) -> None:
    while True:
        peer, _ = listener.accept()
        threading.Thread(target=_serve, args=(peer, token, name), daemon=True).start()


def _call(address: str, port: int, token: str, what: str) -> socket.socket:
    peer = socket.create_connection((address, port), timeout=SECONDS)
    peer.sendall(f"{token} {what}".ljust(HEAD).encode())
    return peer


def _reach(address: str, port: int, token: str, expected: str) -> str:
    """Empty where the address leads to the expected host, else why not."""
    try:
        with _call(address, port, token, "who") as peer:
            found = peer.recv(256).decode()
    except OSError as error:
        return error.strerror or str(error)
    return "" if found == expected else f"another host answers: {found}"


def reach(targets: list[list[Any]], token: str) -> list[str]:
    """For each (address, port, name): empty where it answers by that name, else why not."""
    with ThreadPoolExecutor(MOST_AT_ONCE) as pool:
        return list(pool.map(lambda target: _reach(target[0], target[1], token, target[2]), targets))


def send(address: str, port: int, token: str, seconds: float) -> float:
    """Bits a second that the host at the address receives from here.

    Raises:
        OSError: the connection fails or stalls.
    """
    block = bytes(BLOCK)
    with _call(address, port, token, str(seconds)) as peer:
        if peer.recv(1) != GO:
            raise ConnectionError("the other side hung up")
        peer.setblocking(False)
        # What has not left when the answer is here is thrown away.
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        deadline = time.monotonic() + seconds + SECONDS
        while True:
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError(f"no answer within {seconds + SECONDS:.0f} s")
            readable, writable, _ = select.select([peer], [peer], [], left)
            if readable:
                received, elapsed = json.loads(peer.recv(256))
                return float(received * 8 / elapsed)
            if writable:
                peer.send(block)


def obey(order: dict[str, Any], token: str) -> dict[str, Any]:
    """The answer to an order."""
    if order["do"] == "reach":
        return {"reach": reach(order["targets"], token)}
    try:
        return {"bits": send(order["address"], order["port"], token, order["seconds"])}
    except (OSError, ValueError) as error:
        return {"error": str(error)}


def main() -> None:
    """Listen, and obey until the input ends. The first line is the token, this host's name and addresses."""
    token, name, addresses = json.loads(sys.stdin.readline())
    with ExitStack() as stack:
        answer: dict[str, Any] = {"ports": {}}
        for address in addresses:
            listener = stack.enter_context(socket.create_server((address, 0), backlog=256))
            threading.Thread(target=_accept, args=(listener, token, name), daemon=True).start()
            answer["ports"][address] = listener.getsockname()[1]
        while True:
            sys.stdout.write(json.dumps(answer) + "\n")
            sys.stdout.flush()
            line = sys.stdin.readline()
            if not line:
                return
            answer = obey(json.loads(line), token)


if __name__ == "__main__":
    main()
