"""Images in a shared folder behind a slow link, seen by four hosts: loose files, packs, and ``--stage``.

    PYTHONPATH=. python benchmarks/staging.py [--turns 3] [--only reading|training]

Claims: packed images are read at several times the rate of loose ones, of which each has to be looked up,
opened and closed; with ``--stage`` an epoch waits for the link no longer once the images are copied, and
copying does not slow the epoch beside it. Four test hosts see a folder of a fifth, whose link has a rate and
a delay: by sshfs without a cache of contents, as of a data set larger than their memory; and by HTTP, which
is how `fsspec` reads a pack. It stands for a busy parallel file system. What is opened and read is counted
by the fifth host's own sftp-server. Needs root, cc, and Debian's sshfs. About twenty minutes on two cores.
"""

from __future__ import annotations

import contextlib
import csv
import json
import re
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import Any

from common import ROOT, described, machine, parsed, parser, publish
from shaped import environment, some_hosts

from horovod_yolo.assembly.packing import PackOptions, pack_data
from horovod_yolo.data.digits import make_digits
from horovod_yolo.distributed.local import LocalCommunicator
from tests.cluster.hosts import Cluster, Host
from tests.cluster.links import shaped

HOSTS = 4
RATE, DELAY_S = 100e6, 0.010  # bit/s in each direction, one way
PORT = 8080
SFTP = Path("/usr/lib/openssh/sftp-server")
LOOSE, PACKED, WEB = "loose files", "packed", "packed, by HTTP"
STAGED = {LOOSE: "loose files, `--stage`", PACKED: "packed, `--stage`"}
TRAIN = "--cfg yolov5n --img 64 --batch 32 --noval --noplots --workers 1 --compression none --device cpu"
SERVE = (
    "import sys; from pathlib import Path; from tests.helpers.object_store import Server; "
    f"Server(Path(sys.argv[1]), ('0.0.0.0', {PORT})).serve_forever()"
)
Figures = dict[str, list[dict[str, Any]]]


def main() -> None:
    p = parser(__doc__)
    p.add_argument("--turns", type=int, default=3)
    p.add_argument("--images", type=int, default=400, help="a fifth is for validation")
    p.add_argument("--epochs", type=int, default=3)
    p.add_argument("--only", choices=("reading", "training"))
    args = parsed(p, turns=1, images=100, epochs=2)
    if not SFTP.exists() or not shutil.which("sshfs"):
        sys.exit(
            "error: a folder of another host is shown by sshfs: apt-get install sshfs openssh-sftp-server"
        )
    with some_hosts(HOSTS + 1) as cluster, shared(cluster, args.images) as folder:
        if args.only != "training":
            publish_reading(by_turns([LOOSE, PACKED, WEB], folder.reading, args.turns), args.turns)
        if args.only != "reading":
            ways = [LOOSE, STAGED[LOOSE], PACKED, STAGED[PACKED]]
            ways = ways[::3] if args.quick else ways
            found = by_turns(ways, lambda way: folder.training(way, args.epochs), args.turns)
            publish_training(found, args.turns)


def by_turns(ways: list[str], measure: Callable[[str], dict[str, Any]], turns: int) -> Figures:
    found: Figures = {way: [] for way in ways}
    for _ in range(turns):
        for way in ways:
            found[way].append(measure(way))
            print(way, found[way][-1], flush=True)
    return found


@dataclass(frozen=True)
class SharedFolder:
    """A folder of the last host, which the others see."""

    cluster: Cluster
    images: int  # to train with
    place: Path  # where they see it
    urls: Path  # of a data.yaml here for the pack there

    @property
    def hosts(self) -> list[Host]:
        """Those that train."""
        return list(self.cluster)[:HOSTS]

    def data(self, way: str) -> Path:
        """The data.yaml."""
        if way == WEB:
            return self.urls
        return self.place / ("packed" if "packed" in way else "loose") / "data.yaml"

    def asked(self) -> dict[str, int]:
        """What sftp-servers were asked for until now, by all hosts."""
        said = "".join(path.read_text() for path in self.cluster.folder.glob("sftp-*.log"))
        opened = len(re.findall(r'^open "', said, re.MULTILINE))
        looked_up = len(re.findall(r'^l?stat name "', said, re.MULTILINE))
        return {
            "opened": opened,
            "looked_up": looked_up,
            "bytes": sum(map(int, re.findall(r"bytes read (\d+)", said))),
        }

    @contextlib.contextmanager
    def counted(self, found: dict[str, Any]) -> Iterator[None]:
        """Add what is asked for inside."""
        before = self.asked()
        yield
        time.sleep(1)  # files are closed after those who read them have ended
        found |= {name: count - before[name] for name, count in self.asked().items()}

    def reading(self, way: str) -> dict[str, Any]:
        """All training images once on each host at the same time, by a process."""
        meeting = self.cluster.folder / f"meeting-{time.monotonic_ns()}"
        meeting.mkdir()
        program = str(ROOT / "benchmarks" / "staging_rank.py")
        command = [sys.executable, program, str(self.data(way)), str(meeting), str(HOSTS)]
        logs = [meeting / f"{host.name}.log" for host in self.hosts]
        found: dict[str, Any] = {}
        with self.counted(found):
            running = [
                host.start(command, env=environment(), log=log, cwd=ROOT)
                for host, log in zip(self.hosts, logs, strict=True)
            ]
            codes = [process.wait(600) for process in running]
        if any(codes):
            raise RuntimeError("".join(log.read_text() for log in logs))
        each = [json.loads(log.read_text().splitlines()[-1]) for log in logs]
        seconds = max(one["read_s"] for one in each)
        found["start_s"] = max(one["start_s"] for one in each)
        found["images_per_s"] = sum(one["images"] for one in each) / seconds
        found["bytes_per_s"] = sum(one["bytes"] for one in each) / seconds
        return found

    def training(self, way: str, epochs: int) -> dict[str, Any]:
        """A rank on each host, started as a user would; a first start, without caches."""
        name = f"run-{time.monotonic_ns()}"
        local, runs = Path("/run/local") / name, self.cluster.folder / "runs"
        hosts = ["--hosts", ",".join(f"{host.name}:1" for host in self.hosts), "--interface", "eth0"]
        launch = [sys.executable, "-m", "horovod_yolo.cli", "launch", "--torch", *hosts, "--", "train"]
        where = ["--data", self.data(way), "--project", runs, "--name", name, "--cache-dir", local / "cache"]
        stage = ["--stage", local / "stage"] if way in STAGED.values() else []
        words = [*launch, *TRAIN.split(), "--epochs", epochs, *where, *stage]
        found: dict[str, Any] = {}
        with self.counted(found):
            job = self.hosts[0].run([*map(str, words)], env=environment(), cwd=ROOT, timeout=1200)
        if job.returncode:
            raise RuntimeError(job.stdout)
        with (runs / name / "results.csv").open(newline="") as file:
            rows = [(float(row["images_per_s"]), float(row["data_wait_s"])) for row in csv.DictReader(file)]
        found["images_per_s"] = [rate for rate, _ in rows]
        found["waited"] = [wait / (self.images / rate) for rate, wait in rows]
        found["copied_s"] = [int(seconds) for seconds in re.findall(r"copied in (\d+) s", job.stdout)]
        for host in self.hosts:
            host.run(["rm", "-r", str(local)])
        return found


@contextlib.contextmanager
def shared(cluster: Cluster, images: int) -> Iterator[SharedFolder]:
    """Inside, the hosts see the data set, loose and packed, over the last host's link."""
    *hosts, storage = cluster
    disk, place = cluster.folder / "disk", cluster.folder / "shared"
    place.mkdir()
    make_digits(disk / "loose", images=images)
    pack_data(PackOptions(data=str(disk / "loose" / "data.yaml"), to=disk / "packed"), LocalCommunicator())
    urls = cluster.folder / "web.yaml"
    packed = (disk / "packed" / "data.yaml").read_text()
    urls.write_text(f"path: http://{storage.address}:{PORT}/packed\n{packed}")
    storage.start([sys.executable, "-c", SERVE, disk], env=environment(), cwd=ROOT)
    with shaped(cluster, storage, RATE, DELAY_S), contextlib.ExitStack() as mounts:
        for host in hosts:
            mounts.enter_context(mounted(cluster.folder, host, f"{storage.name}:{disk}", place))
        training = len(list((disk / "loose" / "images" / "train").iterdir()))
        yield SharedFolder(cluster, training, place, urls)


@contextlib.contextmanager
def mounted(folder: Path, host: Host, source: str, place: Path) -> Iterator[None]:
    """Inside, a host sees another one's folder; the other's sftp-server writes down what is asked of it."""
    server = f"{SFTP} -e -l VERBOSE 2>>{folder}/sftp-{host.name}.log"
    options = ["-o", "ro,direct_io", "-o", f"sftp_server={server}"]
    log = folder / f"sshfs-{host.name}.log"
    process = host.start(["sshfs", "-f", *options, source, place], log=log)
    deadline = time.monotonic() + 30
    while host.run(["mountpoint", "-q", place]).returncode:
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"sshfs does not show the folder: {log.read_text()}")
        time.sleep(0.1)
    try:
        yield
    finally:
        host.unmount(place)
        process.wait(30)


def publish_reading(found: Figures, turns: int) -> None:
    lines = [
        "| | first start | images/s of all | MB/s | of loose files | of the turns | opened | looked up |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for way, each in found.items():
        rates, ratio, span = compared(each, found[LOOSE], itemgetter("images_per_s"))
        start, speed = (statistics.median(one[key] for one in each) for key in ("start_s", "bytes_per_s"))
        counts = "|  |" if way == WEB else f"| {each[-1]['opened']:,} | {each[-1]['looked_up']:,} |"
        lines.append(f"| {way} | {start:.1f} s | {rates:.0f} | {speed / 1e6:.1f} | {ratio} | {span} {counts}")
    facts = machine()
    about = f"All training images once on each of {HOSTS} hosts at the same time; {over_link(turns)}"
    table = "\n".join([*lines, "", f"{about} {described(facts)}"])
    publish("staging-reading", {"machine": facts, "turns": turns, "found": found}, table)


def publish_training(found: Figures, turns: int) -> None:
    lines = [
        "| | epoch 1, images/s | of it waiting | last epoch, images/s | of it waiting | of loose files "
        "| of the turns | opened | MB read | copied after |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for way, each in found.items():
        first = statistics.median(one["images_per_s"][0] for one in each)
        waits = [f"{statistics.median(one['waited'][epoch] for one in each):.0%}" for epoch in (0, -1)]
        last, ratio, span = compared(each, found[LOOSE], lambda one: one["images_per_s"][-1])
        opened, read = (statistics.median(one[key] for one in each) for key in ("opened", "bytes"))
        copied = max((seconds for one in each for seconds in one["copied_s"]), default=None)
        counts = [f"{opened:,.0f}", f"{read / 1e6:.1f}"]
        cells = [f"{first:.0f}", waits[0], f"{last:.0f}", waits[1], ratio, span, *counts]
        lines.append(f"| {way} | {' | '.join(cells)} | {'' if copied is None else f'{copied} s'} |")
    facts = machine()
    about = f"A rank with a data worker on each of {HOSTS} hosts, `{TRAIN}`; {over_link(turns)}"
    table = "\n".join([*lines, "", f"{about} {described(facts)}"])
    publish("staging-training", {"machine": facts, "turns": turns, "found": found}, table)


def compared(each: list[Any], others: list[Any], rate: Callable[[Any], float]) -> tuple[float, str, str]:
    """The median, the median ratio to another way in the same turn, and the span of the ratios."""
    ratios = [rate(one) / rate(other) for one, other in zip(each, others, strict=True)]
    span = f"{min(ratios):.2f} to {max(ratios):.2f}"
    return statistics.median(map(rate, each)), f"{statistics.median(ratios):.2f}", span


def over_link(turns: int) -> str:
    link = f"{RATE / 1e6:.0f} Mbit/s and {1e3 * DELAY_S:.0f} ms one way"
    return f"the folder's link has {link}; counts are of all hosts together, medians of {turns} turns."


if __name__ == "__main__":
    main()
