"""A script that calls `YOLO` on several ranks has what ``train.py`` has: guard, logs, one end for all."""

from __future__ import annotations

import socket
import time
from pathlib import Path

import pytest

from tests.helpers import ranks

HOST = socket.gethostname()
SCRIPT = """
import logging, sys
import psutil
from horovod_yolo.api import YOLO, UserError
from horovod_yolo.distributed.launchers.found import launcher

data, project, end = sys.argv[1:]
model = YOLO("yolov5n")
flags = dict(imgsz=64, batch=14, max_steps=1, workers=0, device="cpu", noplots=True, project=project)
if end == "mistake":
    try:
        model.train(data=data, epochs=0, **flags)
    except UserError as error:
        print("caught", error, flush=True)
    model.train(data="none.yaml", **flags)
model.train(data=data, log_dir=f"{project}/logs", **flags)
print("guards", sum("heartbeat.py" in " ".join(c.cmdline()) for c in psutil.Process().children()), flush=True)
if launcher().rank == 1:
    if end == "fault":
        [][1]
    YOLO("none.pt").predict("none.jpg")  # for itself; train and val need rank 0's file only
model.val(workers=0, device="cpu")
"""


def run(tmp_path: Path, data: Path, end: str) -> str:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    start = time.monotonic()
    job = ranks.run([script, data, tmp_path, end], 2, timeout=120)
    assert job.code != 0 and time.monotonic() - start < 90, job.output
    return job.output


def test_a_mistake_that_nothing_catches_is_one_line(digits: Path, tmp_path: Path) -> None:
    output = run(tmp_path, digits, "mistake")
    assert output.count("caught --epochs is 0") == 2, output
    wrong = f"error: {ranks.REPOSITORY / 'none.yaml'}: cannot be read"
    assert output.count("error: ") == 1 and wrong in output, output
    assert "exit with status code 2" in output and '.py", line' not in output.split("horovodrun")[0], output


@pytest.mark.parametrize(
    ("end", "words", "code"),
    [
        ("fault", f"rank 1 on {HOST} failed: IndexError('list index out of range')", 1),
        pytest.param("alone", f"error: rank 1 on {HOST}: none.pt: No such file", 2, marks=pytest.mark.slow),
    ],
)
def test_a_rank_that_fails_in_the_scripts_own_lines_ends_the_job(
    digits: Path, tmp_path: Path, end: str, words: str, code: int
) -> None:
    output = run(tmp_path, digits, end)
    assert words in output and f"Process 1 exit with status code {code}" in output, output
    assert output.count("guards 1") == 2, output
    assert "train: 28 images" in (tmp_path / "logs" / f"rank-00-{HOST}.log").read_text()
    assert "started by horovodrun" in (tmp_path / "logs" / f"rank-01-{HOST}.log").read_text()
