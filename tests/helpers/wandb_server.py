"""As much of a Weights & Biases server as wandb's client asks for, on loopback: theirs is not to be had here.

It keeps what the client sends, and tells a client that goes on with a run what it has of it.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psutil
import pytest

KEY = "k3y" * 14
ENTITY = {"id": "E", "name": "team"}


@dataclass
class StoredRun:
    """A run as the server has it."""

    config: str = "{}"
    lines: list[str] = field(default_factory=list)  # of its history
    summary: dict[str, Any] = field(default_factory=dict)
    exit_codes: list[int] = field(default_factory=list)  # one for each time that it ended
    is_preempted: bool = False

    @property
    def rows(self) -> list[dict[str, Any]]:
        """Its history."""
        return [json.loads(line) for line in self.lines]

    def add(self, sent: dict[str, Any]) -> None:
        """Keep a part of it: lines take the place of those that begin at the same one."""
        files = sent.get("files", {})
        if history := files.get("wandb-history.jsonl"):
            first = history["offset"]
            self.lines[first : first + len(history["content"])] = history["content"]
        if summary := files.get("wandb-summary.json"):
            self.summary = json.loads(summary["content"][-1])
        self.is_preempted |= bool(sent.get("preempting"))
        if sent.get("complete"):
            self.exit_codes.append(sent["exitcode"])


def forget_the_user(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Let wandb find nothing that the user of this machine has set; his home is in a folder."""
    for variable in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(variable)
    monkeypatch.setenv("HOME", str(folder / "home"))
    monkeypatch.setenv("NETRC", str(folder / "netrc"))


def clients(process: psutil.Process) -> list[psutil.Process]:
    """Of a process: those in which wandb's client runs, and the programs that they run."""
    found = []
    for child in process.children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):  # it has ended meanwhile
            words = child.cmdline()
            is_program = "".join(words[:1]).endswith("wandb-core") or words[1:3] == ["-m", "wandb"]
            if is_program or "wandb_process" in "".join(words[2:3]):
                found.append(child)
    return found


class WandbServer(ThreadingHTTPServer):
    """``refuses``: the status that all requests get, 0 for none; ``hangs``: they get no answer."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Request)
        self.runs: dict[str, StoredRun] = {}
        self.refuses = 0
        self.refused = 0  # requests
        self.hangs = False
        self.over = threading.Event()
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def end(self) -> None:
        """Let go of the port, and of those that wait."""
        self.over.set()
        self.shutdown()
        self.server_close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that is killed breaks off; any other error fails the test by what it does not get."""

    def answer(self, query: str, asked: dict[str, Any]) -> dict[str, Any]:
        """What GraphQL's request of this name gets."""
        project = {"id": "P", "name": asked.get("project"), "entity": ENTITY}
        if query == "Viewer":
            viewer = {"id": "V", "entity": "team", "username": "me", "email": "", "flags": "{}"}
            return {"viewer": {**viewer, "teams": {"edges": []}}}
        if query == "RunResumeStatus":
            return {"model": {**project, "bucket": self._status(asked["name"])}}
        if query == "UpsertBucket":
            run = self.runs.setdefault(asked["name"], StoredRun())
            run.config = asked.get("config") or run.config
            bucket = {"id": asked["name"], "name": asked["name"], "project": project, "config": run.config}
            bucket |= {"displayName": asked.get("displayName"), "historyLineCount": len(run.lines)}
            return {"upsertBucket": {"bucket": bucket, "inserted": True}}
        if query == "CreateRunFiles":
            files = [{"name": name, "uploadUrl": f"{self.url}/upload/{name}"} for name in asked["files"]]
            return {"createRunFiles": {"runID": asked["run"], "uploadHeaders": [], "files": files}}
        raise AssertionError(f"the client asks for {query}")

    def _status(self, name: str) -> dict[str, Any] | None:
        run = self.runs.get(name)
        if run is None:
            return None
        counts = {"historyLineCount": len(run.lines), "eventsLineCount": 0, "logLineCount": 0}
        tails = {"historyTail": json.dumps(run.lines[-1:]), "eventsTail": "[]"}
        about = {"id": name, "name": name, "config": run.config, "wandbConfig": '{"t": 1}', "tags": []}
        return {**about, **counts, **tails, "summaryMetrics": json.dumps(run.summary)}


class _Request(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: WandbServer

    def do_POST(self) -> None:
        """A request of GraphQL's, or a part of a run."""
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        if self.headers.get("content-encoding") == "gzip":
            body = gzip.decompress(body)
        if self.server.hangs:
            self.server.over.wait()
        elif self.server.refuses:
            self.server.refused += 1
            self._reply({"errors": [{"message": "refused"}]}, self.server.refuses)
        elif self.path == "/graphql":
            asked = json.loads(body)
            self._reply({"data": self.server.answer(asked["operationName"], asked.get("variables") or {})})
        elif self.path.endswith("/file_stream"):
            self.server.runs[self.path.split("/")[-2]].add(json.loads(body))
            self._reply({})
        else:
            self._reply({})

    do_PUT = do_POST

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing."""

    def _reply(self, content: dict[str, Any], status: int = 200) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@contextlib.contextmanager
def serving(monkeypatch: pytest.MonkeyPatch) -> Iterator[WandbServer]:
    """A server that wandb's client is told of."""
    made = WandbServer()
    monkeypatch.setenv("WANDB_BASE_URL", made.url)
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    try:
        yield made
    finally:
        made.end()
