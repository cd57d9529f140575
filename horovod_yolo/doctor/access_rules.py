"""Whether hosts answer over ssh, from the folder that the job starts in, by names that lead to them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from horovod_yolo.doctor.collect import Report
from horovod_yolo.doctor.findings import Finding, hosts_with, one
from horovod_yolo.launch.plan import is_our_build

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
            yield one(report, "no-answer", what, fix, blocks=True)
        elif report.code == 255:
            yield _from_ssh(report, last)
        elif report.code in (126, 127):
            fix = "make the same environment there, or run `horovod-yolo` of one that all hosts have"
            yield one(report, "python-missing", f"this Python is not there ({last})", fix, blocks=True)
        else:
            what = f"its answer broke off after: {reached} ({last or f'exit code {report.code}'})"
            fix = f"see `ssh {report.host}`; is its Python 3.10 or newer?"
            yield one(report, "no-answer", what, fix, blocks=True)


def _from_ssh(report: Report, last: str) -> Finding:
    kind, what, fix = next(row[1:] for row in _SSH if re.search(row[0], report.errors))
    reason = last.rpartition(": ")[2].rstrip(".") or f"exit code {report.code}"
    return one(report, kind, f"{what} ({reason})", fix.format(host=report.host), blocks=True)


def folder(reports: Sequence[Report]) -> Iterator[Finding]:
    """The folder that the job starts in."""
    for report, facts in hosts_with(reports, "python"):
        if not facts["folder"]:
            fix = "have the checkout at the same path on all hosts"
            yield one(report, "folder", f"the folder {facts['cwd']} is not there", fix, blocks=True)


def own_name(reports: Sequence[Report]) -> Iterator[Finding]:
    """A host's own name must have an address, and lead the other hosts to it where stock Horovod asks it."""
    for report, facts in hosts_with(reports, "network") if len(reports) > 1 else ():
        address, name = facts["own_address"], report.facts["hello"]["hostname"]
        fix = f"give {name} the address that the other hosts use, in its /etc/hosts"
        if address is None:
            yield one(report, "own-name", f"its own name {name} has no address there", fix, blocks=True)
        elif address.startswith("127.") and not _keeps_to_interface(report):
            what = f"its own name {name} is {address} there, where no other host reaches it"
            yield one(report, "own-name", what, fix, blocks=True)


def _keeps_to_interface(report: Report) -> bool:
    """Whether the host's Gloo keeps to the interface that is named, as in `plan.keeps_to_interface`."""
    horovod = report.facts.get("packages", {}).get("horovod")
    return horovod is not None and is_our_build(str(horovod["version"]))
