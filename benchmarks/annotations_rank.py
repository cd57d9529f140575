"""One of four ranks with four data workers each, over annotations of very many images: what does it wait for?

    horovodrun --gloo -np 4 python benchmarks/annotations_rank.py DATA.yaml CACHE

Rank 0 prints JSON. A part of `annotations_at_scale.py`.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import psutil

from horovod_yolo.assembly import hand_on as handing
from horovod_yolo.assembly import shared_annotations as sharing
from horovod_yolo.assembly.data import Data
from horovod_yolo.assembly.data_state import data_state
from horovod_yolo.core.types import Letterbox, SampleKey
from horovod_yolo.data import listing
from horovod_yolo.data.annotations import Annotations
from horovod_yolo.data.augment import Sample
from horovod_yolo.data.loader import Loader
from horovod_yolo.data.sampler import StepSampler, epoch_order
from horovod_yolo.data.spec import load_data_yaml
from horovod_yolo.distributed.backends import connect
from horovod_yolo.distributed.communicator import Communicator

WORKERS = 4
GLOBAL_BATCH = 64
SECONDS_BETWEEN_TICKS = 0.01
READ_IN_TRAINING = ("folder", "name", "name_end", "height", "width", "object_end", "class_id", "box_xyxy")
READ_IN_VALIDATION = ("crowd", "area", "image_id")
T = TypeVar("T")


class Rank:
    """Seconds of what a rank does, and how long a thread beside it was silent meanwhile."""

    def __init__(self, comm: Communicator) -> None:
        self.facts: dict[str, Any] = {}
        self._comm = comm
        self._silence = 0.0
        threading.Thread(target=self._tick, daemon=True).start()

    def _tick(self) -> None:
        last = time.perf_counter()
        while True:
            time.sleep(SECONDS_BETWEEN_TICKS)
            now = time.perf_counter()
            self._silence, last = max(self._silence, now - last), now

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Begin together, and note the slowest rank's time and the longest silence. *Collective.*"""
        self._comm.allgather_object(None)
        self._silence, begun = 0.0, time.perf_counter()
        yield
        mine = time.perf_counter() - begun
        time.sleep(5 * SECONDS_BETWEEN_TICKS)
        everyone = self._comm.allgather_object((mine, self._silence))
        self.facts[name], self.facts[f"{name}_silence"] = map(max, zip(*everyone, strict=True))


class Reading:
    """Makes samples without looking at images: the first reads all that training reads of annotations."""

    def __init__(self, annotations: Annotations) -> None:
        self._annotations = annotations
        self._has_read = False

    def __call__(self, key: SampleKey) -> Sample:
        """A grey image with the objects of its record."""
        if not self._has_read:
            read_all(self._annotations)
            self._has_read = True
        record = self._annotations.record(key.index)
        image = np.zeros((key.height, key.width, 3), np.uint8)
        whole = Letterbox(key.height, key.width, 1.0, 1.0, 0.0, 0.0)
        return Sample(image, record.classes, record.boxes_xyxy, whole, key.index)


def read_all(annotations: Annotations) -> None:
    """Have every page in this process that an epoch and a validation read."""
    for name in (*READ_IN_TRAINING, *READ_IN_VALIDATION):
        annotations.file[name].max()


def shared_bytes() -> int:
    """This rank's and its workers' share of the mapped annotations: a page of n processes counts 1 / n."""
    me, kib = psutil.Process(), 0
    for process in [me, *me.children(recursive=True)]:
        is_file = False
        for line in Path(f"/proc/{process.pid}/smaps").read_text().splitlines():
            words = line.split()
            if not words[0].endswith(":"):
                is_file = ".columns" in line or "memfd:columns" in line
            elif is_file and words[0] == "Pss:":
                kib += int(words[1])
    return kib << 10


def own_bytes() -> int:
    """Memory of this process that no file backs."""
    rollup = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in rollup if line.startswith("Pss_Anon"))


def count_time(module: Any, name: str, seconds: dict[str, float]) -> None:
    """Let a function of a module note how long it takes."""
    function: Callable[..., Any] = getattr(module, name)

    def counted(*args: Any) -> Any:
        begun = time.perf_counter()
        result = function(*args)
        seconds[name] = time.perf_counter() - begun
        return result

    setattr(module, name, counted)


def main() -> None:
    comm = connect()
    rank, spec, cache = Rank(comm), load_data_yaml(Path(sys.argv[1])), Path(sys.argv[2])
    seconds: dict[str, float] = {}
    for module, name in ((sharing, "list_entries"), (sharing, "survey"), (listing, "listing_of")):
        count_time(module, name, seconds)
    own = own_bytes()
    with rank.timed("start"):
        annotations = sharing.shared_annotations(spec, "train", comm, cache)
    rank.facts["grown_bytes"] = comm.allgather_object(own_bytes() - own)
    if comm.rank == 0:
        rank.facts["listing"] = seconds["list_entries"] + seconds["listing_of"]
        rank.facts["stat"] = seconds["survey"] - seconds["listing_of"]
    rank.facts |= {"images": len(annotations), "boxes": len(annotations.classes)}
    with rank.timed("data_state"):
        data_state(Data(spec, annotations, annotations))
    work_through(rank, comm, annotations)
    hand_over(rank, comm, annotations, cache)
    if comm.rank == 0:
        print("facts", json.dumps(rank.facts), flush=True)
    comm.close()


def work_through(rank: Rank, comm: Communicator, annotations: Annotations) -> None:
    """Begin an epoch, and resume in the middle of a later one; then look at the memory. *Collective.*"""
    count = len(annotations)
    sampler = StepSampler(count, GLOBAL_BATCH, comm.rank, comm.size, seed=0, shuffle=True, shape=(32, 32))
    with rank.timed("permutation"):
        epoch_order(count, 0, 1, True)
    loader = Loader(Reading(annotations), sampler, workers=WORKERS, pin_memory=False)
    with rank.timed("first_batch"):
        batches = loader.epoch(0)
        next(batches)
    for _ in range(WORKERS):  # the workers take turns: now each has read
        next(batches)
    read_all(annotations)
    with rank.timed("resume"):
        batches = loader.epoch(2, sampler.batches_per_epoch // 2)
        next(batches)
    rank.facts["shared_bytes"] = sum(comm.allgather_object(shared_bytes()))
    rank.facts["processes"] = sum(comm.allgather_object(1 + WORKERS))
    loader.close()


def hand_over(rank: Rank, comm: Communicator, annotations: Annotations, cache: Path) -> None:
    """Give the file to a host that has just come: the latter half of the ranks is told to be on it."""
    here, newcomer = handing.host_id(), comm.rank >= comm.size // 2
    handing.host_id = lambda: f"{here} {newcomer}"
    with rank.timed("hand_over"):
        got = handing.hand_on(None if newcomer else annotations.file, comm, cache)
    assert got is not None and got.key == annotations.file.key, "the newcomer has the file"
    rank.facts["file_bytes"] = got.size


if __name__ == "__main__":
    main()
