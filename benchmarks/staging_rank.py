"""Read a data set's training images as a new run's data worker does: one of several hosts at once.

    python benchmarks/staging_rank.py DATA.yaml FOLDER HOSTS

Prints JSON. A part of `staging.py`. The hosts meet by files in a folder that all of them see.
"""

from __future__ import annotations

import json
import socket
import sys
import time
from pathlib import Path

import numpy as np

from horovod_yolo.assembly.shared_annotations import shared_annotations
from horovod_yolo.data.read import read_content
from horovod_yolo.data.spec import load_data_yaml
from horovod_yolo.distributed.local import LocalCommunicator

SECONDS_TO_MEET = 120.0


def main() -> None:
    data, folder, hosts = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    meet(folder, "start", hosts)
    begun = time.perf_counter()
    annotations = shared_annotations(load_data_yaml(data), "train", LocalCommunicator(), None)
    start_s = time.perf_counter() - begun
    meet(folder, "read", hosts)
    order = np.random.default_rng(sum(socket.gethostname().encode())).permutation(len(annotations))
    begun, size = time.perf_counter(), 0
    for i in order:
        size += len(read_content(annotations.nearest_file(int(i))))
    seconds = time.perf_counter() - begun
    meet(folder, "end", hosts)
    print(json.dumps({"start_s": start_s, "images": len(order), "bytes": size, "read_s": seconds}))


def meet(folder: Path, what: str, hosts: int) -> None:
    """Wait until all hosts are here."""
    (folder / f"{what}-{socket.gethostname()}").touch()
    deadline = time.monotonic() + SECONDS_TO_MEET
    while len(list(folder.glob(f"{what}-*"))) < hosts:
        if time.monotonic() > deadline:
            raise TimeoutError(f"not all of {hosts} hosts have come to {what}")
        time.sleep(0.01)


if __name__ == "__main__":
    main()
