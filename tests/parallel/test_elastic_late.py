"""A late rank of an elastic job is waited for; one that never comes is ended, and the others go on."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers import ranks
from tests.helpers.runs import steps
from tests.parallel.test_elastic_data import IMAGES, ONE, OTHER, ElasticJob, place

__all__ = ["place"]
PATIENCE = 40  # seconds of those that wait
# Training whose rank 1 stands still in the fourth step of a world of two, with little of Horovod's patience.
LATE = """
import os, sys, time
from horovod_yolo.cli import train_main
from horovod_yolo.training.step import Stepper
from horovod_yolo.assembly.ending import leave
import horovod.torch as hvd

os.environ["HOROVOD_STALL_CHECK_TIME_SECONDS"] = "2"
os.environ["HOROVOD_STALL_SHUTDOWN_TIME_SECONDS"] = "8"
whole, made = Stepper.step, []

def step(*arguments):
    made.append(None)
    if len(made) == 4 and (hvd.rank(), hvd.size()) == (1, 2):
        time.sleep({seconds})
    return whole(*arguments)

Stepper.step = step
if __name__ == "__main__":
    leave(train_main(sys.argv[1:]))
"""

# The only rank of a job, while a connection that has nothing to do with ranks ends.
ALONE = """
import os, socket, time
from horovod_yolo.distributed.elastic import Kept, join

os.environ["HOROVOD_STALL_CHECK_TIME_SECONDS"] = "1"
os.environ["HOROVOD_STALL_SHUTDOWN_TIME_SECONDS"] = "2"
join()
server = socket.create_server(("127.0.0.1", 0))
client = socket.create_connection(server.getsockname())
accepted, _ = server.accept()
with Kept(1, print, print, lambda seconds: os._exit(9)).not_left_behind():
    time.sleep(1)
    for end in (client, accepted, server):
        end.close()
    time.sleep(5)
print("left alone")
"""


def test_a_single_rank_has_no_others_to_miss() -> None:
    job = ranks.run(["-c", ALONE], 1)
    assert job.code == 0 and "left alone" in job.output, job.output


@pytest.mark.slow
@pytest.mark.parametrize(("seconds", "left"), [(13, 2), (600, 1)], ids=["comes", "never"])
def test_a_late_rank(place: tuple[Path, list[Path]], seconds: int, left: int) -> None:
    folder, _ = place
    (folder / "late.py").write_text(LATE.replace("{seconds}", str(seconds)))
    flags = f"--batch 8 --epochs 3 --commit-every 2 --elastic-wait {PATIENCE}"
    with ElasticJob(folder, [ONE, OTHER], flags, folder / "late.py") as job:
        assert job.wait() == 0, job.output
        assert "1!: [" in job.output  # Horovod named it, and gave up
        assert f"{left} ranks go on from step 2 of epoch" in job.output
        assert ("has not noticed for 8 s that the others left: it is stuck" in job.output) == (left == 1)
        assert sum(row["images"] for row in steps(job.run)) == 3 * IMAGES
