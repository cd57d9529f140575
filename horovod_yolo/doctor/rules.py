"""From what hosts said to what is wrong. Pure: reports in, findings out, nothing on a healthy cluster."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from horovod_yolo.doctor.collect import Facts, Report
from horovod_yolo.launch.plan import is_our_build

T = TypeVar("T")

# Free bytes that a job needs: for three checkpoints of a large model, an index and cached images, locks.
FREE = {"run": 2e9, "cache": 1e9, "tmp": 2e8}
FREE_FILES = 1000
SHM_BYTES = 1e9  # data workers pass batches through /dev/shm; a container's default is 64 MB
CLOCK_SECONDS = 2.0
FILES_OF_A_RANK, FILES_PER_PEER = 256, 4  # descriptors: files and workers; Gloo's connections


@dataclass(frozen=True)
class Finding:
    """Something wrong: on which hosts, what, and what to do.

    ``kind`` names the rule for scripts. ``blocks`` tells that no job over these hosts can start.
    """

    hosts: tuple[str, ...]
    kind: str
    what: str
    fix: str
    blocks: bool = False

    def __str__(self) -> str:
        return f"{', '.join(self.hosts)}: {self.what}. {self.fix}"


Rule = Callable[[Sequence[Report]], Iterable[Finding]]


def findings(reports: Sequence[Report]) -> list[Finding]:
    """What is wrong with the hosts themselves, the graver first; the same thing on several hosts is one."""
    found = [finding for rule in RULES for finding in rule(reports)]
    return merged(found)


def merged(found: Iterable[Finding]) -> list[Finding]:
    """Findings that differ in their hosts only become one."""
    hosts: dict[Finding, tuple[str, ...]] = {}
    for finding in found:
        key = dataclasses.replace(finding, hosts=())
        hosts[key] = (*hosts.get(key, ()), *finding.hosts)
    return [dataclasses.replace(key, hosts=names) for key, names in hosts.items()]


def _one(report: Report, kind: str, what: str, fix: str, *, blocks: bool = False) -> Finding:
    return Finding((report.host,), kind, what, fix, blocks)


# ---- does it answer ------------------------------------------------------------------------------

# ssh's own words, and what they mean.
_SSH = (
    (
        r"Permission denied",
        "ssh-key",
        "ssh refuses the key",
        "`ssh-copy-id {host}`; `ssh -v {host}` tells more",
    ),
    (
        r"Host key verification failed|IDENTIFICATION HAS CHANGED|No .* host key is known",
        "host-key",
        "its ssh host key is unknown here, or another than before",
        "compare it, then accept it once with `ssh {host}` (a changed one: `ssh-keygen -R {host}` first)",
    ),
    (
        r"Could not resolve hostname",
        "host-name",
        "its name has no address here",
        "correct the name, or add it to DNS, /etc/hosts or ~/.ssh/config",
    ),
    (
        r"",
        "host-down",
        "ssh does not get there",
        "switch it on, and look at its cable, its address and its sshd",
    ),
)


def answers(reports: Sequence[Report]) -> Iterator[Finding]:
    """Reached over ssh, with a Python that answers to the end."""
    for report in reports:
        if report.complete:
            continue
        last = report.errors.splitlines()[-1] if report.errors else ""
        reached = ", ".join(report.facts) or "nothing"
        if report.timed_out:
            what = f"no answer in time; it got as far as: {reached}"
            fix = "look for a network file system or a driver that hangs there, or raise --timeout"
            yield _one(report, "no-answer", what, fix, blocks=True)
        elif report.code == 255:
            yield _from_ssh(report, last)
        elif report.code in (126, 127):
            fix = "make the same environment there, or run `horovod-yolo` of one that all hosts have"
            yield _one(report, "python-missing", f"this Python is not there ({last})", fix, blocks=True)
        else:
            what = f"its answer broke off after: {reached} ({last or f'exit code {report.code}'})"
            fix = f"see `ssh {report.host}`; is its Python 3.10 or newer?"
            yield _one(report, "no-answer", what, fix, blocks=True)


def _from_ssh(report: Report, last: str) -> Finding:
    kind, what, fix = next(row[1:] for row in _SSH if re.search(row[0], report.errors))
    reason = last.rpartition(": ")[2].rstrip(".") or f"exit code {report.code}"
    return _one(report, kind, f"{what} ({reason})", fix.format(host=report.host), blocks=True)


def folder(reports: Sequence[Report]) -> Iterator[Finding]:
    """The folder that the job starts in."""
    for report, facts in _with(reports, "python"):
        if not facts["folder"]:
            fix = "have the checkout at the same path on all hosts"
            yield _one(report, "folder", f"the folder {facts['cwd']} is not there", fix, blocks=True)


# ---- the same software ---------------------------------------------------------------------------


def _with(reports: Sequence[Report], section: str) -> Iterator[tuple[Report, Facts]]:
    return ((report, report.facts[section]) for report in reports if section in report.facts)


def _odd(values: Mapping[str, T]) -> tuple[T | None, str, list[str]]:
    """(most frequent value, who has it, hosts that have another); among equals the first host's counts."""
    if not values:
        return None, "", []
    common = Counter(values.values()).most_common(1)[0][0]
    having = [host for host, value in values.items() if value == common]
    who = f"{having[0]} has" if len(having) == 1 else f"{len(having)} hosts have"
    return common, who, [host for host, value in values.items() if value != common]


def _differ(
    values: Mapping[str, str], kind: str, what: str, fix: str, *, blocks: bool = True
) -> Iterator[Finding]:
    common, who, odd = _odd(values)
    for host in odd:
        yield Finding((host,), kind, f"{what} {values[host]} where {who} {common}", fix, blocks)


def _packages(reports: Sequence[Report], name: str) -> dict[str, Facts]:
    """What hosts say of a package, of those that have it."""
    return {r.host: facts[name] for r, facts in _with(reports, "packages") if facts[name] is not None}


def python(reports: Sequence[Report]) -> Iterator[Finding]:
    """The same Python, but for the last number."""
    versions = {r.host: ".".join(f["version"].split(".")[:2]) for r, f in _with(reports, "python")}
    yield from _differ(versions, "python", "Python", "make the environments of one Python")


def missing(reports: Sequence[Report]) -> Iterator[Finding]:
    """Packages that are not there at all."""
    cures = {
        "torch": "install the torch of the other hosts there",
        "horovod": "launch/install_horovod.sh builds it there",
        "horovod_yolo": "`pip install -e .` in the checkout there, or set PYTHONPATH",
    }
    for report, facts in _with(reports, "packages"):
        for name, fix in cures.items():
            if facts[name] is None:
                yield _one(report, f"{name}-missing", f"{name} is not installed", fix, blocks=True)


def torch(reports: Sequence[Report]) -> Iterator[Finding]:
    """The same torch."""
    versions = {host: facts["version"] for host, facts in _packages(reports, "torch").items()}
    yield from _differ(versions, "torch", "torch", "install the same one, then build Horovod for it")


def horovod(reports: Sequence[Report]) -> Iterator[Finding]:
    """Horovod built for the torch beside it, and everywhere the same."""
    torches = {host: facts["version"] for host, facts in _packages(reports, "torch").items()}
    built = _packages(reports, "horovod")
    common = _odd(torches)[0]
    rebuild = "build it again there: launch/install_horovod.sh"
    for host, facts in built.items():
        here, wanted = torches.get(host), facts["built_for"]
        if not facts["extension"] or wanted is None:
            what = "Horovod is there, but not built for torch and this Python"
            yield Finding((host,), "horovod-missing", what, rebuild, True)
        elif here is not None and here != wanted and (here == common or wanted != common):
            # Otherwise torch is the odd one, and that has been said.
            what = f"Horovod is built for torch {wanted}, and {here} is installed"
            yield Finding((host,), "horovod-torch", what, rebuild, True)
    yield from _differ({h: str(f["version"]) for h, f in built.items()}, "horovod", "Horovod", rebuild)
    backends = {h: " + ".join(f["backends"]) or "nothing" for h, f in built.items() if f["extension"]}
    yield from _differ(backends, "horovod", "Horovod has", rebuild)


def code(reports: Sequence[Report]) -> Iterator[Finding]:
    """The same code of ours, to the byte, and the same packages that change results."""
    ours = _packages(reports, "horovod_yolo")
    versions = {host: f"{facts['version']} ({facts['digest']})" for host, facts in ours.items()}
    fix = "bring the checkouts to the same commit, without local changes"
    yield from _differ(versions, "code", "horovod_yolo is", fix)
    others = {r.host: facts["others"] for r, facts in _with(reports, "packages")}
    for name in sorted({name for versions in others.values() for name in versions}):
        versions = {host: str(found.get(name)) for host, found in others.items()}
        pip = "`pip install -c constraints.txt -e .` on all hosts"
        yield from _differ(versions, "packages", f"{name} is", pip, blocks=False)


# ---- the machine ---------------------------------------------------------------------------------


def gpus(reports: Sequence[Report]) -> Iterator[Finding]:
    """Drivers that answer, one version, on all hosts or none; software that can use the GPUs."""
    counts = {report.host: len(facts["gpus"]) for report, facts in _with(reports, "gpus")}
    for report, facts in _with(reports, "gpus"):
        if facts["error"]:
            fix = "reload the driver or reboot; after an update driver and library differ until then"
            yield _one(report, "gpu", f"nvidia-smi fails ({facts['error']})", fix)
        elif not facts["gpus"] and any(counts.values()):
            yield _one(report, "gpu", "no GPU, and other hosts have some", "leave the host out, or mend it")
        elif facts["gpus"]:
            yield from _with_gpus(report, len(facts["gpus"]))
    drivers = {r.host: f["gpus"][0]["driver"] for r, f in _with(reports, "gpus") if f["gpus"]}
    yield from _differ(
        drivers, "driver", "NVIDIA driver", "install the same driver on all hosts", blocks=False
    )


def _with_gpus(report: Report, count: int) -> Iterator[Finding]:
    if report.slots > count:
        what = f"{report.slots} slots for {count} GPU{'s' if count > 1 else ''}"
        yield _one(report, "slots", what, f"a rank takes a GPU: give it {count} slots", blocks=False)
    packages = report.facts.get("packages", {})
    if packages.get("torch") and packages["torch"]["cuda"] is None:
        yield _one(report, "cuda", "torch is built without CUDA", "install a CUDA build of torch")
    elif packages.get("horovod") and "NCCL" not in packages["horovod"]["backends"]:
        fix = "launch/install_horovod.sh --cuda builds it with NCCL"
        yield _one(report, "nccl", "Horovod is built without NCCL: gradients go through the CPU", fix)


def infiniband(reports: Sequence[Report]) -> Iterator[Finding]:
    """Memory that an InfiniBand card can pin."""
    for report, facts in _with(reports, "gpus"):
        soft = report.facts["limits"]["memlock"][0]
        if soft is not None and any(port.endswith("ACTIVE") for port in facts["infiniband"]):
            fix = "`* - memlock unlimited` in /etc/security/limits.conf; docker run --ulimit memlock=-1"
            yield _one(report, "memlock", f"locked memory is limited to {size(soft)}, with InfiniBand", fix)


def limits(reports: Sequence[Report]) -> Iterator[Finding]:
    """Open files and /dev/shm."""
    need = FILES_OF_A_RANK + FILES_PER_PEER * sum(report.slots for report in reports)
    for report, facts in _with(reports, "limits"):
        soft = facts["nofile"][0]
        if soft is not None and soft < need:
            fix = f"`* - nofile {max(need, 65536)}` in /etc/security/limits.conf, or docker run --ulimit"
            yield _one(report, "nofile", f"{soft} open files are allowed, a rank may need {need}", fix)
        shm = facts["shm"]
        if shm is None or shm["total"] < SHM_BYTES:
            has = "is not there" if shm is None else f"has {size(shm['total'])}"
            need_it = f"data workers need {size(SHM_BYTES)} or more"
            fix = f"{need_it}: docker run --shm-size=8g, a larger tmpfs, or train with --workers 0"
            yield _one(report, "shm", f"/dev/shm {has}", fix)


def disks(reports: Sequence[Report]) -> Iterator[Finding]:
    """Room where a job writes."""
    for report, facts in _with(reports, "disks"):
        full: dict[Any, list[tuple[str, Facts]]] = {}
        for what, space in facts.items():
            if space is None or not space["writable"]:
                path = what if space is None else space["path"]
                yield _one(
                    report,
                    "disk",
                    f"{path} cannot be written to",
                    "change its permissions or mount, or choose another folder",
                )
            elif space["free"] < FREE[what] or _out_of_files(space):
                full.setdefault(space["device"], []).append((what, space))
        for found in full.values():
            yield _full(report, found)


def _out_of_files(space: Facts) -> bool:
    return space["files"] is not None and space["files"] < FREE_FILES


def _full(report: Report, found: Sequence[tuple[str, Facts]]) -> Finding:
    space = found[0][1]
    need = max(FREE[what] for what, _ in found)
    flags = {"run": "another --project", "cache": "another --cache-dir", "tmp": "another TMPDIR"}
    files = f" and for {space['files']} files" if _out_of_files(space) else ""
    what = f"{size(space['free'])} free{files} for {' and '.join(s['path'] for _, s in found)}"
    fix = f"{size(need)} are needed: make room, or choose {flags[found[0][0]]}"
    return _one(report, "disk", what, fix)


def clock(reports: Sequence[Report]) -> Iterator[Finding]:
    """Clocks that agree, as far as the time of an answer can tell."""
    clocks = {report.host: report.clock for report in reports if report.clock is not None}

    def distance(host: str, time: float) -> float:
        least, most = clocks[host]
        return least - time if least > time else min(most - time, 0.0)

    # The majority is right, not this host: its own clock may be the wrong one.
    usual = max(
        [0.0, *(least for least, _ in clocks.values())],
        key=lambda time: sum(abs(distance(host, time)) <= CLOCK_SECONDS for host in clocks),
    )
    for host in clocks:
        off = distance(host, usual)
        if abs(off) > CLOCK_SECONDS:
            what = f"its clock is {abs(off):.0f} s {'ahead' if off > 0 else 'behind'}"
            yield Finding(
                (host,), "clock", what, "let chrony or ntpd set it, as `chronyc makestep` does at once"
            )


def own_name(reports: Sequence[Report]) -> Iterator[Finding]:
    """A host's own name must have an address, and lead the other hosts to it where stock Horovod asks it."""
    for report, facts in _with(reports, "network") if len(reports) > 1 else ():
        address, name = facts["own_address"], report.facts["hello"]["hostname"]
        fix = f"give {name} the address that the other hosts use, in its /etc/hosts"
        if address is None:
            yield _one(report, "own-name", f"its own name {name} has no address there", fix, blocks=True)
        elif address.startswith("127.") and not _keeps_to_interface(report):
            what = f"its own name {name} is {address} there, where no other host reaches it"
            yield _one(report, "own-name", what, fix, blocks=True)


def _keeps_to_interface(report: Report) -> bool:
    """Whether the host's Gloo keeps to the interface that is named, as in `plan.keeps_to_interface`."""
    horovod = report.facts.get("packages", {}).get("horovod")
    return horovod is not None and is_our_build(str(horovod["version"]))


# ---- the data ------------------------------------------------------------------------------------


def data(reports: Sequence[Report]) -> Iterator[Finding]:
    """The data set is there, and its files are the same by name and size."""
    splits: dict[str, dict[str, Facts]] = {}
    for report, facts in _with(reports, "data"):
        for split, found in facts.get("splits", {}).items():
            splits.setdefault(split, {})[report.host] = found
        if "error" in facts:
            yield _one(report, "data-missing", facts["error"], "copy or mount the data set there too")
        elif "fault" in facts and report.facts["packages"]["horovod_yolo"] is not None:
            what = f"its data set could not be looked at ({facts['fault']})"
            yield _one(report, "data-missing", what, f"mend the installation of {report.host} first")
    for split, found in splits.items():
        common, who, odd = _odd({host: (facts["images"], facts["key"]) for host, facts in found.items()})
        for host in odd:
            images = found[host]["images"]
            same = common is not None and images == common[0]
            what = f"{images} images, of other names or sizes" if same else f"{images} images"
            has = "as many" if same else f"{common[0] if common else 0}"
            fix = "copy the data set again (rsync --delete), or use one shared folder"
            yield Finding((host,), "data-differs", f"{split}: {what} where {who} {has}", fix)


def size(count: float) -> str:
    """Bytes for people, in powers of 1000."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if count >= 10 or unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


RULES: tuple[Rule, ...] = (
    answers,
    folder,
    python,
    missing,
    torch,
    horovod,
    code,
    own_name,
    gpus,
    infiniband,
    limits,
    disks,
    clock,
    data,
)
