"""Doctor finds each fault where it is, and says nothing on healthy hosts. The faults are real."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.cluster.hosts import Cluster, Host
from tests.cluster.test_listening import listening

REPOSITORY = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
SECONDS = 20  # the bound that the issue states, for four hosts
BUSY = 20  # per cent of the machine's cores that others may use while that is measured
FAKETIME = next(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"), None)
HOSTS = "host1:2,host2:2,host3:2,host4:2"


@dataclass
class Patient:
    """The host that gets a fault, and what the faults need."""

    cluster: Cluster
    host: Host
    folder: Path  # holds runs/ and cache/
    data: Path  # data.yaml

    def replace(self, file: Path, old: str, new: str) -> None:
        """Another content of a file, on this host only."""
        text = file.read_text()
        assert old in text
        changed = self.folder / f"{self.host.name}.{file.name}"
        changed.write_text(text.replace(old, new))
        self.host.bind(changed, file)

    def empty(self) -> Path:
        made = self.folder / f"{self.host.name}.empty"
        made.mkdir()
        return made


def package(name: str) -> Path:
    spec = importlib.util.find_spec(name)
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).parent


def wrong_key(on: Patient) -> None:
    other = on.folder / "other.pub"
    shutil.copy(on.cluster.folder / "host_key.pub", other)  # a key, but not that of any user
    on.host.bind(other, "/etc/ssh/authorized_keys")


def another_torch(on: Patient) -> None:
    file = package("torch") / "version.py"
    version = next(line for line in file.read_text().splitlines() if line.startswith("__version__"))
    on.replace(file, version, "__version__ = '2.1.0+cpu'")


def horovod_for_another_torch(on: Patient) -> None:
    file = package("horovod") / "metadata.json"
    on.replace(file, json.loads(file.read_text())["pytorch"], "2.1.0+cpu")


def other_data(on: Patient) -> None:
    copy = on.folder / f"{on.host.name}.data"
    shutil.copytree(on.data.parent, copy)
    with sorted((copy / "labels" / "train").glob("*.txt"))[-1].open("a") as label:
        label.write("0 0.5 0.5 0.1 0.1\n")
    on.host.bind(copy, on.data.parent)


def full_disk(on: Patient) -> None:
    runs = on.folder / "runs"
    on.host.mount_tmpfs(runs, "64m")
    assert "No space left" in on.host.run(["dd", "if=/dev/zero", f"of={runs}/old", "bs=1M"]).stdout


def wrong_clock(on: Patient) -> None:
    if FAKETIME is None:
        pytest.skip("LOUD SKIP: no other clock can be made: apt-get install faketime")
    on.cluster.sshd = f"SetEnv LD_PRELOAD={FAKETIME} FAKETIME=+60s\n"
    on.host.kill()
    on.host.boot()
    on.cluster.sshd = ""


def dead_interface(on: Patient) -> None:
    for i, host in enumerate(on.cluster, 1):
        host.add_interface("eth1", f"10.78.0.{i}/24")
    on.host.cut_interface("eth1")


# What is broken: how, and the kind of the finding that must name it.
FAULTS: dict[str, tuple[Callable[[Patient], None], str]] = {
    "host down": (lambda on: on.host.power_off(), "host-down"),
    "wrong key": (wrong_key, "ssh-key"),
    "python missing": (lambda on: on.host.bind(on.empty(), BIN), "python-missing"),
    "another torch": (another_torch, "torch"),
    "horovod for another torch": (horovod_for_another_torch, "horovod-torch"),
    "data missing": (lambda on: on.host.bind(on.empty(), on.data.parent), "data-missing"),
    "data different": (other_data, "data-differs"),
    "disk full": (full_disk, "disk"),
    "/dev/shm of 64 MB": (lambda on: on.host.mount_tmpfs("/dev/shm", "64m"), "shm"),
    "clock off by a minute": (wrong_clock, "clock"),
    "slow link": (lambda on: on.host.rate("10mbit"), "link"),
    "interface that does not reach": (dead_interface, "interface"),
}
# Four runs find all of them: each host its own.
TOGETHER = [
    {"host2": "host down", "host3": "wrong key", "host4": "python missing"},
    {"host1": "/dev/shm of 64 MB", "host2": "another torch", "host3": "horovod for another torch"},
    {"host2": "data missing", "host3": "data different", "host4": "clock off by a minute"},
    {"host2": "slow link", "host3": "interface that does not reach", "host4": "disk full"},
]


def doctor(
    host: Host, folder: Path, data: Path, *more: str, user: str | None = None, cwd: Path = REPOSITORY
) -> tuple[int, str]:
    """Its exit code and what it printed."""
    for name in ("runs", "cache"):
        (folder / name).mkdir(exist_ok=True)
        (folder / name).chmod(0o777)
    words = [sys.executable, "-m", "horovod_yolo.cli", "doctor", "--data", str(data)]
    words += ["--project", str(folder / "runs"), "--cache-dir", str(folder / "cache"), *more]
    variables = {"PATH": f"{BIN}:/usr/bin:/bin", "PYTHONPATH": str(REPOSITORY), "COLUMNS": "100"}
    done = host.run(words, env=variables, timeout=150, user=user, cwd=cwd)
    return done.returncode, done.stdout


def examine(host: Host, folder: Path, data: Path) -> tuple[int, dict[str, Any]]:
    code, printed = doctor(host, folder, data, "--hosts", HOSTS, "--json")
    assert printed.startswith("{"), printed
    found: dict[str, Any] = json.loads(printed)
    return code, found


def expect(cluster: Cluster, folder: Path, data: Path, faults: dict[str, str]) -> dict[str, Any]:
    """Break hosts; doctor names exactly these faults, each with a remedy."""
    for name in ("runs", "cache"):
        (folder / name).mkdir(exist_ok=True)
    for name, fault in faults.items():
        FAULTS[fault][0](Patient(cluster, cluster[name], folder, data))
    code, found = examine(cluster["host1"], folder, data)
    named = sorted((host, finding["kind"]) for finding in found["findings"] for host in finding["hosts"])
    assert named == sorted((name, FAULTS[fault][1]) for name, fault in faults.items()), found["findings"]
    assert all(finding["what"] and finding["fix"] for finding in found["findings"])
    assert code == 2 and not found["healthy"]
    return found


@pytest.fixture
def cluster(folder: Path) -> Iterator[Cluster]:
    with Cluster(4, folder / "hosts") as made:
        yield made


@pytest.mark.parametrize("faults", TOGETHER, ids=lambda faults: ", ".join(faults.values()))
def test_each_fault_is_found_on_its_host(
    cluster: Cluster, folder: Path, digits: Path, faults: dict[str, str]
) -> None:
    found = expect(cluster, folder, digits, faults)
    if "slow link" in faults.values():
        bits = found["bits_per_s"]
        assert all(bits[a][b] < 50e6 for a in bits for b in bits[a] if "host2" in (a, b)), bits
        assert min(bits[a][b] for a in bits for b in bits[a] if "host2" not in (a, b)) > 200e6
        assert found["allreduce"]["error"] == ""  # slow, but it works


def test_all_faults_are_tried() -> None:
    assert sorted(fault for faults in TOGETHER for fault in faults.values()) == sorted(FAULTS)


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_a_single_fault(cluster: Cluster, folder: Path, digits: Path, fault: str) -> None:
    expect(cluster, folder, digits, {"host3": fault})


def test_nothing_is_said_of_healthy_hosts(four_hosts: Cluster, folder: Path, digits: Path) -> None:
    """Meanwhile all that listens does so at the address by which the hosts reach each other."""
    opened: set[tuple[str, int]] = set()
    over = threading.Event()

    def look() -> None:
        while not over.is_set():
            opened.update(*(listening(host) for host in four_hosts))

    watcher = threading.Thread(target=look)
    watcher.start()
    code, found = examine(four_hosts["host1"], folder, digits)
    over.set()
    watcher.join()
    assert found["findings"] == [] and found["healthy"] and code == 0
    assert opened and {address for address, _ in opened} <= {host.address for host in four_hosts}
    assert found["allreduce"]["ranks"] == 4 and found["allreduce"]["seconds"] > 0
    assert {len(rates) for rates in found["bits_per_s"].values()} == {3}
    time.sleep(0.5)
    left = [process.cmdline() for host in four_hosts for process in host.processes()]
    assert not [words for words in left if "python" in " ".join(words)]


def test_this_host_alone(four_hosts: Cluster, folder: Path, digits: Path) -> None:
    code, printed = doctor(four_hosts["host2"], folder, digits)
    assert code == 0, printed
    assert "localhost" in printed and "over 2 ranks" in printed and printed.splitlines()[-1] == "healthy"


def test_hosts_by_address_from_one_that_takes_no_part(folder: Path, digits: Path) -> None:
    """Without root, in a folder whose name a shell would split, and each host's own name is 127.0.1.1.

    Debian's installer writes it so; our Horovod keeps to the interface, and so does torch as it is launched.
    """
    place = folder / "a b"
    data = place / "data"
    shutil.copytree(digits.parent, data)
    with Cluster(3, folder / "hosts", own_address="127.0.1.1") as cluster:
        hosts = [cluster[name].address for name in ("host2", "host3")]
        named = ",".join(f"{address}:1" for address in hosts)
        code, printed = doctor(
            cluster["host1"], folder, data / "data.yaml", "--hosts", named, user="trainer", cwd=place
        )
        over_torch = doctor(
            cluster["host1"],
            folder,
            data / "data.yaml",
            *("--hosts", named, "--torch"),
            user="trainer",
            cwd=place,
        )
    assert code == 0, printed
    assert over_torch[0] == 0 and "losing it ends the job" in over_torch[1], over_torch[1]
    assert f"slowest link: {hosts[0]} and" in printed
    assert "over 2 ranks" in printed


@pytest.mark.slow
def test_four_hosts_take_less_than_20_seconds(four_hosts: Cluster, folder: Path, digits: Path) -> None:
    """Where others use the machine meanwhile, nothing is said about the time."""
    taken = []
    for _ in range(3):
        before = psutil.cpu_percent(interval=1)
        start = time.monotonic()
        assert doctor(four_hosts["host1"], folder, digits, "--hosts", HOSTS)[0] == 0
        taken.append(time.monotonic() - start)
        if taken[-1] < SECONDS:
            return
        if max(before, psutil.cpu_percent(interval=1)) > BUSY:
            pytest.skip(f"LOUD SKIP: the machine is busy, doctor took {taken[-1]:.0f} s")
    pytest.fail(f"four hosts took {taken} s on an idle machine")
