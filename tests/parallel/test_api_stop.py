"""A script that trains with `YOLO` hears real signals meanwhile; its own handlers do before and after."""

from __future__ import annotations

import os
import re
import signal
import threading
from pathlib import Path

import pytest

from horovod_yolo.api import YOLO
from tests.helpers import ranks
from tests.helpers.runs import checkpoint, steps
from tests.parallel.test_preemption import wait_until

SCRIPT = """
import os, signal, sys
from horovod_yolo.api import YOLO
from horovod_yolo.core.errors import StoppedError

own = lambda number, frame: print("own handler", number, flush=True)
for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
    signal.signal(number, own)
data, project, epochs, noplots = sys.argv[1:]
model = YOLO("yolov5n")
flags = dict(imgsz=64, batch=7, epochs=int(epochs), workers=0, device="cpu", noplots=noplots == "noplots")
try:
    model.train(data=data, project=project, name="run", **flags)
except StoppedError as error:
    print("stopped:", error.saved, error, "weights", model.weights, flush=True)
for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
    os.kill(os.getpid(), number)
print("slow imports:", sorted({"matplotlib", "torch._dynamo"} & set(sys.modules)), flush=True)
"""
OWN = [f"own handler {number:d}" for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)]


@pytest.mark.parametrize(
    ("world_size", "number"), [(1, signal.SIGINT), pytest.param(2, signal.SIGTERM, marks=pytest.mark.slow)]
)
def test_a_script_is_stopped_after_the_step_in_hand(
    digits: Path, tmp_path: Path, world_size: int, number: signal.Signals
) -> None:
    run = tmp_path / "run"
    (tmp_path / "train.py").write_text(SCRIPT)
    launcher = "plain" if world_size == 1 else "gloo"
    job = ranks.start([tmp_path / "train.py", digits, tmp_path, "1000", "noplots"], world_size, launcher)
    wait_until(job, lambda: (run / "steps.csv").exists() and len(steps(run)) >= 2, "step 2")
    heard = ranks.rank_processes(job)[-1]  # of several ranks one only
    os.kill(heard, number)
    finished = ranks.finish(job, 60)
    assert finished.code == 0, finished.output
    lines = re.findall(r"stopped: True after step (\d+), checkpoint (\S+); go on with", finished.output)
    assert len(lines) == world_size and len(set(lines)) == 1, finished.output
    assert (int(lines[0][0]), lines[0][1]) == (checkpoint(run)["step"], str(run / "weights" / "last.pt"))
    assert [line for line in OWN if finished.output.count(line) == world_size] == OWN, finished.output
    assert finished.output.count("slow imports: []") == world_size, finished.output


@pytest.mark.slow
def test_a_request_after_the_last_step_reaches_the_script_too(digits: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    (tmp_path / "train.py").write_text(SCRIPT)
    job = ranks.start([tmp_path / "train.py", digits, tmp_path, "1", "plots"], 1, "plain")
    wait_until(job, (run / "results.json").exists, "the results")
    job.send_signal(signal.SIGUSR1)  # while the curves are drawn
    finished = ranks.finish(job, 60)
    assert finished.code == 0, finished.output
    weights = run / "weights" / "best.pt"
    complete = f"stopped: True after the last step; the run is complete: {run} weights {weights}"
    assert complete in finished.output
    assert (run / "report.html").exists()
    assert [line for line in OWN if finished.output.count(line) == 1] == OWN, finished.output


def test_in_another_thread_signals_are_left_alone(digits: Path, tmp_path: Path) -> None:
    before, steps_done = signal.getsignal(signal.SIGTERM), list[float]()

    def train() -> None:
        flags = {"imgsz": 64, "batch": 14, "max_steps": 1, "workers": 0, "device": "cpu", "noplots": True}
        steps_done.append(YOLO("yolov5n").train(data=digits, project=tmp_path, **flags)["steps"])

    thread = threading.Thread(target=train)
    thread.start()
    while thread.is_alive():
        assert signal.getsignal(signal.SIGTERM) is before
        thread.join(0.05)
    assert steps_done == [1]
