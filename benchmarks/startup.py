"""Start-up at scale: how long until all ranks hold the index of 50,000 images, without and with a cache?

    python benchmarks/startup.py [--before CHECKOUT]

Claim: with a cached index four ranks of a host are ready as soon as one, because one of them looks at the
files for all. ``--before`` measures another checkout in the same run. Two CPU cores take about three minutes.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
from common import BIN, ROOT, described, machine, publish

IMAGES = 50_000
LINKS = 1000  # names that share one file: file systems limit them
RUNS_WITH_CACHE = 3
RANK = """
import sys, time
from pathlib import Path
from horovod_yolo.data.spec import load_data_yaml
from horovod_yolo.distributed.backends import connect
from horovod_yolo.assembly.datasets import shared_index
comm = connect()
spec = load_data_yaml(Path(sys.argv[1]))
for _ in range(int(sys.argv[3])):
    comm.allgather_object(None)
    begun = time.perf_counter()
    shared_index(spec, "train", comm, Path(sys.argv[2]))
    times = comm.allgather_object(time.perf_counter() - begun)
    if comm.rank == 0:
        print("seconds", max(times), flush=True)
comm.close()
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--before", type=Path, help="another checkout to compare with")
    before = parser.parse_args().before
    versions = {"now": ROOT} if before is None else {"before": before, "now": ROOT}
    found: dict[str, dict[str, list[float]]] = {}
    with tempfile.TemporaryDirectory() as name:
        data = make_data(Path(name))
        for ranks in (1, 4):
            for version, checkout in versions.items():
                cache = Path(name, f"cache-{version}-{ranks}")
                found.setdefault(f"{ranks}", {})[version] = times_of(checkout, data, cache, ranks)
    facts = machine()
    publish("startup", {"machine": facts, "images": IMAGES, "seconds": found}, table_of(found, facts))


def make_data(folder: Path) -> Path:
    """50,000 tiny images, a thousand names to a file."""
    for kind in ("images", "labels"):
        (folder / kind / "train").mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 255, (16, 16, 3), dtype=np.uint8)
    for i in range(IMAGES):
        image, label = (
            folder / f"{kind}/train/{i:05}{end}" for kind, end in (("images", ".jpg"), ("labels", ".txt"))
        )
        first = i - i % LINKS
        if i == first:
            PIL.Image.fromarray(pixels).save(image)
            label.write_text("0 .5 .5 .2 .2\n")
        else:
            os.link(image.with_name(f"{first:05}.jpg"), image)
            os.link(label.with_name(f"{first:05}.txt"), label)
    (folder / "data.yaml").write_text("train: images/train\nval: images/train\nnames: [a]\n")
    return folder / "data.yaml"


def times_of(checkout: Path, data: Path, cache: Path, ranks: int) -> list[float]:
    """Seconds of the slowest rank: without a cache, and the best of some with it."""
    launcher = [str(BIN / "horovodrun"), "--gloo", "-np", str(ranks), "-H", f"localhost:{ranks}"]
    command = [*(launcher if ranks > 1 else []), sys.executable, "-c", RANK, data, cache, 1 + RUNS_WITH_CACHE]
    environment = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}", "PYTHONPATH": str(checkout)}
    done = subprocess.run(
        [str(word) for word in command],
        env={**environment, "OMP_NUM_THREADS": "1"},
        cwd=checkout,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    cold, *warm = [float(line.split()[-1]) for line in done.stdout.splitlines() if "seconds" in line]
    return [cold, min(warm)]


def table_of(found: dict[str, dict[str, list[float]]], facts: dict[str, Any]) -> str:
    lines = ["| ranks on the host | | first start | with a cached index |", "|---|---|---|---|"]
    for ranks, versions in found.items():
        for version, (cold, warm) in versions.items():
            lines.append(f"| {ranks} | {version} | {cold:.1f} s | {warm:.1f} s |")
        if "before" in versions:
            shares = [f"{b / n:.1f} times" for b, n in zip(versions["before"], versions["now"], strict=True)]
            lines.append(f"| {ranks} | before / now | {shares[0]} | {shares[1]} |")
    note = f"{IMAGES} images of 16 x 16 pixels, files in the page cache; the slowest rank counts."
    return "\n".join(lines) + f"\n\n{note} {described(facts)}\n"


if __name__ == "__main__":
    main()
