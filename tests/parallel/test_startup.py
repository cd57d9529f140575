"""A rank whose disk is slow makes the others wait at the start, not fail."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers import ranks

TIME_OUT = 30  # Gloo's; shorter ones end jobs while torch is imported
RANK = """
import sys, time
from pathlib import Path
from horovod_yolo.data.spec import load_data_yaml
from horovod_yolo.distributed.backends import connect
from horovod_yolo.assembly.shared_annotations import shared_annotations
comm = connect()
spec = load_data_yaml(Path(sys.argv[1]))
if comm.rank == int(sys.argv[3]):
    time.sleep(float(sys.argv[4]))
annotations = shared_annotations(spec, "train", comm, Path(sys.argv[2]))
print("images", len(annotations), annotations.digest, flush=True)
comm.close()
"""


def starts(data: Path, cache: Path, slow_rank: int, seconds: float) -> list[str]:
    job = ranks.run(
        ["-c", RANK, data, cache, str(slow_rank), str(seconds)], 2, HOROVOD_GLOO_TIMEOUT_SECONDS=str(TIME_OUT)
    )
    assert job.code == 0, job.output
    return [line.split("images ")[1] for line in job.output.splitlines() if "images " in line]


def test_ranks_of_a_host_share_one_look_at_the_files(digits: Path, tmp_path: Path) -> None:
    scanned = starts(digits, tmp_path, 0, 0)
    assert len(scanned) == 2 and len(set(scanned)) == 1
    (cached,) = tmp_path.glob("*.columns")
    written = cached.stat().st_ino
    assert starts(digits, tmp_path, 0, 0) == scanned
    assert cached.stat().st_ino == written, "not scanned a second time"


@pytest.mark.slow
@pytest.mark.parametrize("slow_rank", [0, 1])
def test_a_disk_slower_than_the_time_out_is_waited_for(digits: Path, tmp_path: Path, slow_rank: int) -> None:
    assert len(set(starts(digits, tmp_path, slow_rank, TIME_OUT + 15))) == 1
