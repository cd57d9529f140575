"""GPUs, limits, disks and clocks of the hosts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from horovod_yolo.doctor.collect import Facts, Report
from horovod_yolo.doctor.findings import Finding, differing, hosts_with, one, size

# Free bytes that a job needs: for three checkpoints of a large model, an index and cached images, locks.
FREE = {"run": 2e9, "cache": 1e9, "tmp": 2e8}
FREE_FILES = 1000
SHM_BYTES = 1e9  # data workers pass batches through /dev/shm; a container's default is 64 MB
CLOCK_SECONDS = 2.0
FILES_OF_A_RANK, FILES_PER_PEER = 256, 4  # descriptors: files and workers; Gloo's connections


def gpus(reports: Sequence[Report]) -> Iterator[Finding]:
    """Drivers that answer, one version, on all hosts or none; software that can use the GPUs."""
    counts = {report.host: len(facts["gpus"]) for report, facts in hosts_with(reports, "gpus")}
    for report, facts in hosts_with(reports, "gpus"):
        if facts["error"]:
            fix = "reload the driver or reboot; after an update driver and library differ until then"
            yield one(report, "gpu", f"nvidia-smi fails ({facts['error']})", fix)
        elif not facts["gpus"] and any(counts.values()):
            yield one(report, "gpu", "no GPU, and other hosts have some", "leave the host out, or mend it")
        elif facts["gpus"]:
            yield from _with_gpus(report, len(facts["gpus"]))
    drivers = {r.host: f["gpus"][0]["driver"] for r, f in hosts_with(reports, "gpus") if f["gpus"]}
    yield from differing(
        drivers, "driver", "NVIDIA driver", "install the same driver on all hosts", blocks=False
    )


def _with_gpus(report: Report, count: int) -> Iterator[Finding]:
    if report.slots > count:
        what = f"{report.slots} slots for {count} GPU{'s' if count > 1 else ''}"
        yield one(report, "slots", what, f"a rank takes a GPU: give it {count} slots", blocks=False)
    packages = report.facts.get("packages", {})
    if packages.get("torch") and packages["torch"]["cuda"] is None:
        yield one(report, "cuda", "torch is built without CUDA", "install a CUDA build of torch")
    elif packages.get("horovod") and "NCCL" not in packages["horovod"]["backends"]:
        fix = "horovod-yolo install-horovod --cuda builds it with NCCL"
        yield one(report, "nccl", "Horovod is built without NCCL: gradients go through the CPU", fix)


def infiniband(reports: Sequence[Report]) -> Iterator[Finding]:
    """Memory that an InfiniBand card can pin."""
    for report, facts in hosts_with(reports, "gpus"):
        soft = report.facts["limits"]["memlock"][0]
        if soft is not None and any(port.endswith("ACTIVE") for port in facts["infiniband"]):
            fix = "`* - memlock unlimited` in /etc/security/limits.conf; docker run --ulimit memlock=-1"
            yield one(report, "memlock", f"locked memory is limited to {size(soft)}, with InfiniBand", fix)


def limits(reports: Sequence[Report]) -> Iterator[Finding]:
    """Open files and /dev/shm."""
    need = FILES_OF_A_RANK + FILES_PER_PEER * sum(report.slots for report in reports)
    for report, facts in hosts_with(reports, "limits"):
        soft = facts["nofile"][0]
        if soft is not None and soft < need:
            fix = f"`* - nofile {max(need, 65536)}` in /etc/security/limits.conf, or docker run --ulimit"
            yield one(report, "nofile", f"{soft} open files are allowed, a rank may need {need}", fix)
        shm = facts["shm"]
        if shm is None or shm["total"] < SHM_BYTES:
            has = "is not there" if shm is None else f"has {size(shm['total'])}"
            need_it = f"data workers need {size(SHM_BYTES)} or more"
            fix = f"{need_it}: docker run --shm-size=8g, a larger tmpfs, or train with --workers 0"
            yield one(report, "shm", f"/dev/shm {has}", fix)


def disks(reports: Sequence[Report]) -> Iterator[Finding]:
    """Room where a job writes."""
    for report, facts in hosts_with(reports, "disks"):
        full: dict[Any, list[tuple[str, Facts]]] = {}
        for what, space in facts.items():
            if space is None or not space["writable"]:
                path = what if space is None else space["path"]
                yield one(
                    report,
                    "disk",
                    f"{path} cannot be written to",
                    "change its permissions or mount, or choose another folder",
                )
            elif space["free"] < FREE[what] or _out_of_files(space):
                full.setdefault(space["device"], []).append((what, space))
        for found in full.values():
            yield _full(report, found)


def run_folder(reports: Sequence[Report]) -> Iterator[Finding]:
    """One folder for the runs, which all hosts see: after the loss of a rank any of them may be rank 0's."""
    seen = {r.host: f["run"]["identity"] for r, f in hosts_with(reports, "disks") if f["run"] is not None}
    if len(set(seen.values())) > 1:
        what = "the folder for runs is not one that all hosts share"
        fix = "name one with --project: a run that lost a rank goes on from its checkpoint"
        yield Finding(tuple(seen), "run-folder", what, fix)


def _out_of_files(space: Facts) -> bool:
    return space["files"] is not None and space["files"] < FREE_FILES


def _full(report: Report, found: Sequence[tuple[str, Facts]]) -> Finding:
    space = found[0][1]
    need = max(FREE[what] for what, _ in found)
    flags = {"run": "another --project", "cache": "another --cache-dir", "tmp": "another TMPDIR"}
    files = f" and for {space['files']} files" if _out_of_files(space) else ""
    what = f"{size(space['free'])} free{files} for {' and '.join(s['path'] for _, s in found)}"
    fix = f"{size(need)} are needed: make room, or choose {flags[found[0][0]]}"
    return one(report, "disk", what, fix)


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
