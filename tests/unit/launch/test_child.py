"""What a job that a call has started brings back to the caller. Its program is tiny, its launcher real."""

from __future__ import annotations

from pathlib import Path

import pytest

from horovod_yolo.launch.child import Ended, Job
from horovod_yolo.process.told import as_lines

RANK = """
import os, sys, time
if os.environ["HOROVOD_RANK"] == "1":
    time.sleep(0.5)
    sys.exit("error: rank 1: a mistake")
print(*sys.argv[1:], sep="\\n", flush=True)
print("warning", file=sys.stderr, flush=True)
"""


def test_lines_results_and_mistakes_come_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Here `sys.stdout` is no file, as in a notebook."""
    script = tmp_path / "rank.py"
    script.write_text(RANK)
    words = ["--hosts", "localhost:2", "--", str(script), "epoch 1", *as_lines({"n": 1})]
    ended = Job(words, "starting").run()
    assert ended == Ended(1, {"n": 1}, "rank 1: a mistake", 0)
    shown = capsys.readouterr()
    assert shown.out.startswith("starting\n") and "\nepoch 1\n" in shown.out and "\x1e" not in shown.out
    assert "warning\n" in shown.err and "error: " not in shown.err
