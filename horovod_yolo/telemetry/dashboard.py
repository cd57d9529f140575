"""The page of a run while it goes: a small server that can only be read, in threads beside the training."""

from __future__ import annotations

import ipaddress
import json
import logging
import re
import socket
import threading
from collections.abc import Callable, Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from horovod_yolo.core.address import Address
from horovod_yolo.core.plain_json import plain
from horovod_yolo.core.results import SCORES
from horovod_yolo.report.live import live_page
from horovod_yolo.telemetry.exposition import CONTENT_TYPE, exposition
from horovod_yolo.telemetry.live import LiveRun, Now, Rank

log = logging.getLogger(__name__)
SECONDS_OF_SILENCE = 5.0  # after which a connection is closed
MOST_CONNECTIONS = 16  # at once; more are closed without an answer
_SAFE = {
    "Cache-Control": "no-store",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
_HOST = re.compile(r"(?:\[([^\]]+)\]|([^:\[\]]+))(?::\d+)?")  # and a port
Answer = tuple[str, bytes, Mapping[str, str]]  # its type, its content, more headers


class Dashboard:
    """Serves a run until it is closed.

    Raises:
        OSError: the address cannot be listened on.
    """

    def __init__(self, address: Address, run: LiveRun) -> None:
        page, policy = live_page()
        pages: Mapping[str, Callable[[], Answer]] = {
            "/": lambda: ("text/html; charset=utf-8", page, {"Content-Security-Policy": policy}),
            "/api/now": lambda: _json(as_json(run.now(), run.tail.lines())),
            "/api/curves": lambda: _json(run.curves()),
            "/metrics": lambda: (CONTENT_TYPE, exposition(run.now()).encode(errors="replace"), {}),
        }
        self._server = _Server(address, pages)
        self.address = Address(address.host, self._server.server_address[1])
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.2,), name="dashboard", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """Answer nobody any more."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True  # they keep no process from ending
    allow_reuse_address = True

    def __init__(self, address: Address, pages: Mapping[str, Callable[[], Answer]]) -> None:
        self.pages = pages
        self.address = address
        self._free = threading.BoundedSemaphore(MOST_CONNECTIONS)
        self._connections: set[socket.socket] = set()
        family, *_, where = socket.getaddrinfo(
            address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        self.address_family = family
        super().__init__((str(where[0]), int(where[1])), _Handler)

    def server_bind(self) -> None:
        """Bind, without the question for a name that ``HTTPServer`` asks, which may take seconds."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer in a thread, where there are not too many."""
        if not self._free.acquire(blocking=False):
            self.shutdown_request(request)
            return
        self._connections.add(request)
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """The same, in that thread."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._connections.discard(request)
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that left or says nonsense is no news."""
        log.debug("dashboard: %s", client_address, exc_info=True)

    def server_close(self) -> None:
        """Leave no connection open."""
        super().server_close()
        for connection in list(self._connections):
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError as error:
                log.debug("dashboard: %s", error)

    def knows(self, host: str | None) -> bool:
        """Whether a request means this server: a page elsewhere may let its own name lead here.

        It cannot have another's address for a name, nor the names of this host.
        """
        found = _HOST.fullmatch(host or "")
        name = (found[1] or found[2]) if found else ""
        here = socket.gethostname().lower()
        if name.lower() in {"localhost", here, here.partition(".")[0], self.address.host.lower()}:
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    server_version, sys_version = "horovod_yolo", ""
    timeout = SECONDS_OF_SILENCE

    def do_GET(self) -> None:
        """Answer."""
        if not self.server.knows(self.headers.get("Host")):
            words = "this server has another name: ask by its address, or start it with --dashboard NAME:PORT"
            self.send_error(HTTPStatus.FORBIDDEN, explain=words)
            return
        answer = self.server.pages.get(self.path.partition("?")[0])
        if answer is None:
            self.send_error(HTTPStatus.NOT_FOUND)
            return
        kind, content, headers = answer()
        self._send(HTTPStatus.OK, kind, content, headers)

    do_HEAD = do_GET  # the content is left out

    def _refuse(self) -> None:
        self.send_error(HTTPStatus.METHOD_NOT_ALLOWED)

    do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = do_TRACE = do_CONNECT = _refuse

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """A line of text; of what was asked nothing is repeated."""
        status = HTTPStatus(code)
        headers = {"Allow": "GET, HEAD"} if status == HTTPStatus.METHOD_NOT_ALLOWED else {}
        words = f"{status.value} {status.phrase}" + (f": {explain}" if explain else "")
        self._send(status, "text/plain; charset=utf-8", f"{words}\n".encode(), headers)

    def _send(self, status: HTTPStatus, kind: str, content: bytes, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        length = {"Content-Type": kind, "Content-Length": str(len(content))}
        for name, value in {**length, **_SAFE, **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: the log is the training's."""


def as_json(now: Now, lines: list[dict[str, Any]]) -> dict[str, Any]:
    """A moment of a run for the page."""
    last, scores = now.last, now.scores
    return {
        "facts": dict(now.facts),
        "phase": now.phase,
        "epoch": now.epoch,
        "epochs": now.epochs,
        "batches": list(now.batches),
        "step": now.step,
        "images": now.images,
        "skipped": now.skipped,
        "replaced": now.replaced,
        "images_per_s": now.images_per_s,
        "loss": dict(last.result.losses) if last else {},
        "scores": {name: scores[name] for name in SCORES} if scores else {},
        "ranks": [_rank(host, rank) for host, rank in zip(now.facts["hosts"], now.ranks, strict=False)],
        "checkpoint_at": now.checkpoint_at,
        "started_at": now.started_at,
        "log": lines,
    }


def _rank(host: str, rank: Rank) -> dict[str, Any]:
    total = sum(spent.seconds for spent in rank.recent) or 1.0
    data = sum(spent.data_wait_s for spent in rank.recent) / total
    ranks = sum(spent.rank_wait_s for spent in rank.recent) / total
    return {"host": host, "images_per_s": rank.images_per_s, "data": data, "ranks": ranks}


def _json(value: Any) -> Answer:
    text = json.dumps(plain(value), allow_nan=False, separators=(",", ":"))
    return "application/json", text.encode(errors="replace"), {}
