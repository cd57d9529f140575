"""Servers on this machine that give files: over HTTP, as Google's store does, and as S3 does."""

from __future__ import annotations

import importlib
import json
import re
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from horovod_yolo.io import remote

_GOOGLE = re.compile(r"/(download/)?storage/v1/b/[^/]+/o/(.+)")


class Server(ThreadingHTTPServer):
    """The files of a folder, by ranges.

    Attributes:
        asked: the requests: method, name and range.
        fault: gives the status that a request is answered with instead; 0 for none. May take its time.
        gives_ranges: whether it knows them; else it sends whole files.
    """

    daemon_threads = True

    def __init__(self, folder: Path, address: tuple[str, int] = ("127.0.0.1", 0)) -> None:
        super().__init__(address, _Handler)
        self.folder = folder
        self.asked: list[tuple[str, str, str]] = []
        self.fault: Callable[[str], int] = lambda _: 0
        self.gives_ranges = True

    @property
    def url(self) -> str:
        """Of the folder."""
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is nobody's fault."""

    def __enter__(self) -> Server:
        self._thread = threading.Thread(target=self.serve_forever, args=(0.02,))
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self._thread.join()
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # as web servers do: headers and content are sent one after the other
    server: Server

    def do_HEAD(self) -> None:
        """As GET, without the content."""
        self.do_GET()

    def do_GET(self) -> None:
        """A file, a range of it, or what Google's store says of it."""
        path = unquote(urlsplit(self.path).path)
        google = _GOOGLE.fullmatch(path)
        name = google[2] if google else path.lstrip("/")
        wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        self.server.asked.append((self.command, name, self.headers.get("Range", "")))
        status = self.server.fault(name)
        file = self.server.folder / name
        if status or not file.is_file():
            self._send(status or 404, b"no")
            return
        size = file.stat().st_size
        if google and not google[1]:
            self._send(200, json.dumps({"name": name, "bucket": "bucket", "size": str(size)}).encode())
        elif wanted and self.server.gives_ranges:
            first, last = int(wanted[1]), min(int(wanted[2]), size - 1)
            with file.open("rb") as stream:
                stream.seek(first)
                content = stream.read(last - first + 1)
            self._send(206, content, ("Content-Range", f"bytes {first}-{last}/{size}"))
        else:
            self._send(200, file.read_bytes())

    def _send(self, status: int, content: bytes, *headers: tuple[str, str]) -> None:
        self.send_response(status)
        for header in (("Content-Length", str(len(content))), *headers):
            self.send_header(*header)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Say nothing."""


@contextmanager
def moto() -> Iterator[str]:
    """The URL of moto's store, with S3's own protocol."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                with socket.create_connection(("127.0.0.1", port), 1):
                    break
            except OSError:
                assert server.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.05)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.kill()
        server.wait()


def put(url: str, content: bytes = b"") -> None:
    """Make a bucket or an object of a store that asks for no credentials."""
    headers = {"Content-Type": "application/octet-stream"}
    request = urllib.request.Request(url, content, headers, method="PUT")
    with urllib.request.urlopen(request, timeout=10):
        return


@contextmanager
def connections() -> Iterator[None]:
    """Inside, remote files are read; after it, no connection is left and nothing is remembered."""
    asyn = importlib.import_module("fsspec.asyn")
    fsspec = importlib.import_module("fsspec")
    with ThreadPoolExecutor() as threads:  # those that ask for addresses
        asyn.get_loop().set_default_executor(threads)
        try:
            yield
        finally:
            for scheme in remote.NEEDS:
                kind = fsspec.get_filesystem_class(scheme)
                for system in list(kind._cache.values()):
                    asyn.sync(system.loop, _close, system)
                kind.clear_instance_cache()
            remote._system.cache_clear()
            remote._gone.clear()


async def _close(system: Any) -> None:
    if getattr(system, "_s3creator", None) is not None:
        await system._s3creator.__aexit__(None, None, None)
        system._s3creator = system._s3 = None
    elif getattr(system, "_session", None) is not None:
        await system._session.close()


@contextmanager
def loop() -> Iterator[None]:
    """The thread of fsspec, from before to after the tests of a module."""
    asyn = importlib.import_module("fsspec.asyn")
    running, thread = asyn.get_loop(), asyn.iothread[0]
    try:
        yield
    finally:
        running.call_soon_threadsafe(running.stop)
        thread.join()
        running.close()
        asyn.loop[0] = asyn.iothread[0] = None
