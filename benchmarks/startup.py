"""Start-up at scale: when do all ranks have the annotations of 50,000 images, with and without a cache?

    python benchmarks/startup.py [--before CHECKOUT]
    python benchmarks/startup.py --index
    python benchmarks/startup.py --process [--before CHECKOUT]

Claim: with a cache four ranks of a host are ready as soon as one, because one of them looks at the files for
all. ``--before`` measures another checkout in the same run. Two CPU cores take about three minutes.

``--index`` measures what the annotations of 118,000 and of 1.7 million images cost instead: see
`annotations_at_scale.py`. That takes about ten minutes, 4 GB of memory, and room for 3.6 million names.

``--process`` measures a training's start, and what is between its epochs: see `startup_process.py`. Five
minutes, ten with --before.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import annotations_at_scale
import startup_process
from common import ROOT, described, environment, horovodrun, machine, parsed, parser, publish
from many_images import make_images

RUNS_WITH_CACHE = 3
RANK = """
import sys, time
from pathlib import Path
from horovod_yolo.data.spec import load_data_yaml
from horovod_yolo.distributed.backends import connect
from horovod_yolo.assembly.shared_annotations import shared_annotations
comm = connect()
spec = load_data_yaml(Path(sys.argv[1]))
for _ in range(int(sys.argv[3])):
    comm.allgather_object(None)
    begun = time.perf_counter()
    shared_annotations(spec, "train", comm, Path(sys.argv[2]))
    times = comm.allgather_object(time.perf_counter() - begun)
    if comm.rank == 0:
        print("seconds", max(times), flush=True)
comm.close()
"""


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--before", type=Path, help="another checkout to compare with")
    options.add_argument("--index", action="store_true", help="what 118,000 and 1.7 million images cost")
    options.add_argument("--process", action="store_true", help="first step, and between epochs")
    options.add_argument("--images", type=int, default=50_000, help="without --index (50,000)")
    given = parsed(options, images=500)
    with tempfile.TemporaryDirectory() as name:
        if given.index:
            annotations_at_scale.measure(Path(name), 100 if given.quick else 1)
        elif given.process:
            startup_process.measure(Path(name), given.before, quick=given.quick)
        else:
            measure(Path(name), given.images, given.before)


def measure(folder: Path, images: int, before: Path | None) -> None:
    """Start one and four ranks, and publish how long they take."""
    versions = {"now": ROOT} if before is None else {"before": before, "now": ROOT}
    found: dict[str, dict[str, list[float]]] = {}
    data = make_images(folder, images)
    for ranks in (1, 4):
        for version, checkout in versions.items():
            cache = folder / f"cache-{version}-{ranks}"
            found.setdefault(f"{ranks}", {})[version] = times_of(checkout, data, cache, ranks)
    facts = machine()
    publish("startup", {"machine": facts, "images": images, "seconds": found}, table_of(found, images, facts))


def times_of(checkout: Path, data: Path, cache: Path, ranks: int) -> list[float]:
    """Seconds of the slowest rank: without a cache, and the best of some with it."""
    command = [*horovodrun(ranks), sys.executable, "-c", RANK, data, cache, 1 + RUNS_WITH_CACHE]
    done = subprocess.run(
        [str(word) for word in command],
        env=environment(checkout),
        cwd=checkout,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    cold, *warm = [float(line.split()[-1]) for line in done.stdout.splitlines() if "seconds" in line]
    return [cold, min(warm)]


def table_of(found: dict[str, dict[str, list[float]]], images: int, facts: dict[str, Any]) -> str:
    lines = ["| ranks on the host | | first start | with a cached index |", "|---|---|---|---|"]
    for ranks, versions in found.items():
        for version, (cold, warm) in versions.items():
            lines.append(f"| {ranks} | {version} | {cold:.1f} s | {warm:.1f} s |")
        if "before" in versions:
            shares = [f"{b / n:.1f} times" for b, n in zip(versions["before"], versions["now"], strict=True)]
            lines.append(f"| {ranks} | before / now | {shares[0]} | {shares[1]} |")
    note = f"{images} images of 16 x 16 pixels, files in the page cache; the slowest rank counts."
    return "\n".join(lines) + f"\n\n{note} {described(facts)}\n"


if __name__ == "__main__":
    main()
