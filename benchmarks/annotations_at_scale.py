"""Annotations at scale, for ``startup.py --index``: what do those of 118,000 and of 1.7 million images cost?

Claims: a data worker spends less than 0.3 s of CPU on those of 118,000 images. Those of 1.7 million with 12
million objects are open 3 s after their files are listed and looked at; no thread of a rank is held up for a
second meanwhile; 4 ranks with 4 workers each need less than 40 bytes an object, together.

The smaller set is scanned. The files of the larger one are there, a thousand names to a file, but nobody
waits for their scan: its objects are made up, and written as a scan's are.
"""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from common import BIN, ROOT, described, horovodrun, machine, publish
from many_images import make_images

from horovod_yolo.assembly.shared_annotations import shared_annotations
from horovod_yolo.data.annotations import Annotations
from horovod_yolo.data.spec import load_data_yaml
from horovod_yolo.data.workers import forkserver_context
from horovod_yolo.distributed.local import LocalCommunicator

SCANNED = 118_000
OBJECTS_OF_A_SCANNED_IMAGE = 7
MADE_UP, MADE_UP_OBJECTS = 1_700_000, 12_000_000
RANKS = 4


def measure(folder: Path, part: int) -> None:
    """Make both sets below a folder, or one ``part``-th of them, measure, and publish."""
    results: dict[str, Any] = {
        "scanned": of_a_scanned_set(folder / "scanned", folder / "cache-1", SCANNED // part)
    }
    print(results, flush=True)
    results["made_up"] = of_a_made_up_set(folder / "made-up", folder / "cache-2", part)
    facts = machine()
    publish("annotations", {"machine": facts, **results}, table_of(**results, facts=facts))


def of_a_scanned_set(folder: Path, cache: Path, images: int) -> dict[str, float]:
    data = make_images(folder, images, OBJECTS_OF_A_SCANNED_IMAGE)
    seconds = []
    for _ in range(2):
        begun = time.perf_counter()
        annotations = shared_annotations(load_data_yaml(data), "train", LocalCommunicator(), cache)
        seconds.append(time.perf_counter() - begun)
    assert len(annotations) == images
    return {
        "images": images,
        "objects": len(annotations.classes),
        "scan_s": seconds[0],
        "from_cache_s": seconds[1],
        "worker_cpu_s": worker_cpu_s(annotations),
    }


def worker_cpu_s(annotations: Annotations) -> float:
    """CPU seconds in which a data worker gets at annotations, those of its first record included."""
    context = forkserver_context(["horovod_yolo.data.loader"])
    receiver, sender = context.Pipe(duplex=False)
    worker = context.Process(target=_get_at, args=(pickle.dumps(annotations), sender))  # type: ignore[attr-defined]
    worker.start()
    seconds = float(receiver.recv())
    worker.join()
    return seconds


def _get_at(pickled: bytes, sender: Connection) -> None:
    begun = time.process_time()
    annotations: Annotations = pickle.loads(pickled)
    annotations.records[len(annotations) // 2]
    sender.send(time.process_time() - begun)


def of_a_made_up_set(folder: Path, cache: Path, part: int) -> dict[str, Any]:
    data = folder / "data.yaml"
    if not data.exists():
        make_images(folder, MADE_UP // part)
    writing = "import sys; from pathlib import Path; from many_images import pretend_scan; "
    writing += "pretend_scan(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))"
    # In a process of its own: millions of entries would still be in this one.
    run([sys.executable, "-c", writing, data, cache, MADE_UP_OBJECTS // part])
    printed = run(
        [*horovodrun(RANKS), sys.executable, ROOT / "benchmarks" / "annotations_rank.py", data, cache]
    )
    (line,) = (line for line in printed.splitlines() if "facts {" in line)
    found: dict[str, Any] = json.loads(line[line.index("{") :])
    return found


def run(command: list[object]) -> str:
    """What a command prints."""
    environment = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = f"{ROOT}:{ROOT / 'benchmarks'}"
    done = subprocess.run(
        [str(word) for word in command], env=environment, stdout=subprocess.PIPE, check=True
    )
    return done.stdout.decode()


def table_of(scanned: dict[str, float], made_up: dict[str, Any], facts: dict[str, Any]) -> str:
    many, listing, stat = made_up, made_up["listing"], made_up["stat"]
    share = many["shared_bytes"] / many["boxes"]
    silences = {name: value for name, value in many.items() if name.endswith("_silence")}
    longest = max(silences, key=lambda name: silences[name])
    rows = [
        ("118,000 images: scan, one rank", f"{scanned['scan_s']:.1f} s"),
        ("with a cache", f"{scanned['from_cache_s']:.1f} s"),
        ("CPU of a data worker for the annotations", f"{scanned['worker_cpu_s'] * 1000:.1f} ms"),
        ("1.7 million images: listed, and the list hashed", f"{listing:.1f} s"),
        ("their files and labels looked at", f"{stat:.1f} s"),
        (
            "annotations in the cache found, checked and open on all ranks",
            f"{many['start'] - listing - stat:.1f} s",
        ),
        ("what checkpoints say of two such splits", f"{many['data_state']:.2f} s"),
        ("permutation of an epoch", f"{many['permutation']:.2f} s"),
        ("first batch, workers started", f"{many['first_batch']:.1f} s"),
        ("first batch after a resume in the middle of an epoch", f"{many['resume']:.2f} s"),
        (
            f"hand-over of {many['file_bytes'] / 1e6:.0f} MB to another host's ranks",
            f"{many['hand_over']:.1f} s",
        ),
        (
            "longest silence of a thread beside all that",
            f"{silences[longest]:.2f} s ({longest.split('_sil')[0]})",
        ),
        (
            f"memory of {many['processes']} processes for the annotations, shared",
            f"{many['shared_bytes'] / 1e6:.0f} MB, {share:.1f} bytes an object",
        ),
    ]
    lines = ["| what | |", "|---|---|", *(f"| {what} | {value} |" for what, value in rows)]
    note = f"{RANKS} ranks with 4 data workers each on one host, {many['boxes']:,} objects in the larger set."
    return "\n".join(lines) + f"\n\n{note} {described(facts)}\n"
