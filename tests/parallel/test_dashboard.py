"""``--dashboard`` of real ranks: seen while they train, gone with them."""

from __future__ import annotations

import json
import re
import socket
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import ranks


def flags(data: Path, folder: Path, dashboard: str) -> list[str]:
    sizes = ["--cfg", "yolov5n", "--imgsz", "64", "--batch-size", "14", "--workers", "0", "--epochs", "100"]
    more = ["--noplots", "--noval", "--noautoanchor", "--device", "cpu", "--dashboard", dashboard]
    return ["train.py", "--data", str(data), "--project", str(folder), *sizes, *more]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port: int = taken.getsockname()[1]
    return port


def seen(url: str, steps: int) -> dict[str, Any]:
    """The run, when it has made so many steps."""
    deadline = time.monotonic() + 120
    while True:
        try:
            with urllib.request.urlopen(url + "api/now", timeout=10) as answer:
                now: dict[str, Any] = json.load(answer)
            if now["step"] >= steps:
                return now
        except (OSError, urllib.error.URLError):
            assert time.monotonic() < deadline, "no page"
        assert time.monotonic() < deadline, "no steps"
        time.sleep(0.1)


@pytest.mark.parametrize("launcher", ["gloo", "torchrun"])
def test_ranks_are_seen_while_they_train(digits: Path, tmp_path: Path, launcher: str) -> None:
    url = f"http://127.0.0.1:{free_port()}/"
    port = re.findall(r"\d+", url)[-1]
    job = ranks.start(flags(digits, tmp_path, port), 2, launcher)
    try:
        now = seen(url, 5)
        trained = ranks.rank_processes(job)
    finally:
        ranks.kill(job)
        said = ranks.finish(job, 60).output
    assert f"dashboard: {url}" in said
    assert len(now["ranks"]) == now["facts"]["ranks"] == 2
    assert all(0 < rank["images_per_s"] < 1e6 for rank in now["ranks"])
    ranks.wait_until_gone(trained)
    with pytest.raises(urllib.error.URLError, match="refused"):
        urllib.request.urlopen(url, timeout=10)


def test_a_taken_port_is_one_line_and_exit_code_2(digits: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        job = ranks.run(flags(digits, tmp_path / "runs", str(port)), 2, "mpirun")
    assert job.code == 2, job.output
    (line,) = [line for line in job.output.splitlines() if "error: " in line]
    assert f"--dashboard {port} cannot be opened (Address already in use)" in line
    assert "Traceback" not in job.output and list((tmp_path / "runs").iterdir()) == []
