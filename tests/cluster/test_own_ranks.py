"""A script trains on other hosts, which it names; what rank 0 returns comes back over the job's output."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.cluster import jobs
from tests.cluster.hosts import Cluster
from tests.helpers.ranks import results

SCRIPT = """
import sys
from horovod_yolo.api import YOLO, UserError

data, project, engine = sys.argv[1:]
flags = dict(hosts="host2:1,host3:1", engine=engine, imgsz=64, batch=14, max_steps=1, workers=0, noplots=True)
try:
    YOLO("yolov5n").train(data="none.yaml", project=project, **flags)
except UserError as error:
    print("caught:", error, flush=True)
model = YOLO("yolov5n")
returned = model.train(data=data, project=project, name="run", **flags)
print("returned", returned["world_size"], model.weights, flush=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["torch", "horovod"])
def test_hosts_named_in_a_call(four_hosts: Cluster, digits: Path, tmp_path: Path, engine: str) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    done = jobs.run(four_hosts["host1"], [sys.executable, script, digits, tmp_path, engine], timeout=400)
    assert done.code == 0, done.output
    assert "none.yaml: cannot be read" in done.output.split("caught:")[1], done.output
    assert "0 on host2; 1 on host3" in done.output, done.output
    assert f"returned 2 {tmp_path / 'run' / 'weights' / 'best.pt'}" in done.output, done.output
    assert results(tmp_path / "run")["world_size"] == 2
