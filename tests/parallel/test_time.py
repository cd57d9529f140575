"""A job with ``--time`` that is over, by rank 0's clock, after one epoch; the rest is in the unit tests."""

from __future__ import annotations

from pathlib import Path

from tests.helpers import ranks
from tests.helpers.runs import checkpoint

FLAGS = "--cfg yolov5n --img 64 --batch 14 --noplots --workers 0"


def test_two_ranks_end_together_when_the_time_is_over(digits: Path, tmp_path: Path) -> None:
    given = ["--data", digits, "--project", tmp_path, "--name", "run", *FLAGS.split()]
    words = [
        "-m",
        "horovod_yolo.cli",
        "launch",
        "-H",
        "localhost:2",
        "--",
        "train",
        *given,
        "--time",
        "0.000001",
    ]
    job = ranks.run(words, 1, "plain")
    assert job.code == 0, job.output
    assert job.output.count("--time: as many epochs as fit into") == 1, job.output
    assert "--time: after 1 epochs it is 1 in all (the time is over)" in job.output
    results = ranks.results(tmp_path / "run")
    assert (results["epochs"], results["steps"], results["exit"]) == (1, 2, 0)
    assert results["epochs_decided"] == [[1, 1]] and results["time_used_s"] > results["time_limit_s"]
    assert "mAP50" in results["metrics"] and checkpoint(tmp_path / "run")["time_plan"]["after"] == 1
