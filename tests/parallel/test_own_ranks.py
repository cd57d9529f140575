"""Ranks that a script, or a command without a launcher, starts itself; none of them outlives it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest

from tests.helpers import ranks
from tests.helpers.runs import checkpoint, steps
from tests.parallel.test_preemption import wait_until

# Without `if __name__ == "__main__"`: what the ranks run is not this script.
SCRIPT = """
import sys
from horovod_yolo.api import YOLO, StoppedError, UserError

print("the script runs", flush=True)
data, project, engine, end = sys.argv[1:]
model = YOLO("yolov5n")
flags = dict(np=2, engine=engine, imgsz=64, batch=14, workers=1, device="cpu", noplots=True, project=project)
if end == "stop":
    try:
        model.train(data="none.yaml", **flags)
    except UserError as error:
        print("caught:", error, flush=True)
    try:
        model.train(data=data, name="run", **flags)
    except StoppedError as error:
        print("stopped:", error.saved, error, flush=True)
else:
    results = model.train(data=data, name="run", max_steps=2, **flags)
    import json
    from pathlib import Path
    assert json.loads(Path(project, "run", "results.json").read_text()) == results
    assert results["world_size"] == 2 and model.weights == Path(project, "run", "weights", "best.pt")
    scored = model.val(np=2, engine=engine, workers=1, device="cpu", batch=28)
    assert scored["val_loss"].keys() == results["metrics"]["val_loss"].keys()
    print("results are equal", flush=True)
"""


def start(tmp_path: Path, data: Path, engine: str, end: str) -> subprocess.Popen[str]:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    return ranks.start([script, data, tmp_path, engine, end], 1, "plain")


@pytest.mark.parametrize("engine", ["torch", pytest.param("horovod", marks=pytest.mark.slow)])
def test_a_mistake_and_an_interrupt_come_back_to_the_script(
    digits: Path, tmp_path: Path, engine: str
) -> None:
    run = tmp_path / "run"
    job = start(tmp_path, digits, engine, "stop")
    wait_until(job, lambda: (run / "steps.csv").exists() and len(steps(run)) >= 2, "step 2", 240)
    everyone = ranks.processes(job)
    os.kill(job.pid, signal.SIGINT)
    finished = ranks.finish(job, 90)
    ranks.wait_until_gone(everyone)
    said = finished.output
    assert finished.code == 0, said
    assert said.count("the script runs") == 1 and said.count("starting 2 ranks on localhost") == 2, said
    assert f"caught: {ranks.REPOSITORY / 'none.yaml'}: cannot be read" in said, said
    assert "\ntrain: 28 images" in said and said.index("train: 28") < said.index("stopped:"), said
    at = f"stopped: True after step {checkpoint(run)['step']}, checkpoint {run / 'weights' / 'last.pt'}"
    assert at in said, said
    assert "error: " not in said and "Traceback" not in said, said


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["torch", "horovod"])
def test_a_call_returns_what_it_does_in_one_process(digits: Path, tmp_path: Path, engine: str) -> None:
    finished = ranks.finish(start(tmp_path, digits, engine, "return"), 240)
    assert finished.code == 0 and "results are equal" in finished.output, finished.output


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["torch", "horovod"])
def test_the_flag_does_as_much_and_keeps_the_exit_code(digits: Path, tmp_path: Path, engine: str) -> None:
    flags = ["--cfg", "yolov5n", "--np", "2", "--engine", engine, "--img", "64", "--batch", "14", "--noplots"]
    few = ["--max-steps", "1", "--workers", "0", "--device", "cpu", "--project", tmp_path, "--name", "run"]
    done = ranks.run(["train.py", "--data", digits, *flags, *few], 1, "plain")
    assert done.code == 0 and "starting 2 ranks on localhost" in done.output, done.output
    assert json.loads((tmp_path / "run" / "results.json").read_text())["world_size"] == 2
    wrong = ranks.run(["train.py", "--data", tmp_path / "none.yaml", *flags, *few], 1, "plain")
    assert wrong.code == 2 and wrong.output.count("error: ") == 1, wrong.output
