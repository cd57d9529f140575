"""The order of an examination: ask all hosts, try their links, run a job over them, draw conclusions."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from horovod_yolo.doctor import network_rules, rules, software_rules
from horovod_yolo.doctor.collect import Questions, Report, ask
from horovod_yolo.doctor.findings import Finding
from horovod_yolo.doctor.links import Network, try_out
from horovod_yolo.doctor.trial import Trial, try_allreduce
from horovod_yolo.launch.hostfile import Host


@dataclass(frozen=True)
class Examination:
    """All that was seen, and what is wrong. ``trial`` is None where a job could not have started."""

    reports: tuple[Report, ...]
    network: Network
    trial: Trial | None
    findings: tuple[Finding, ...]
    notes: tuple[str, ...] = ()  # what cannot work, though nothing is wrong

    @property
    def healthy(self) -> bool:
        """Whether nothing is wrong."""
        return not self.findings

    def as_json(self) -> dict[str, Any]:
        """For scripts: bits a second by sender and receiver, everything else as it was found."""
        return {
            "healthy": self.healthy,
            "findings": [dataclasses.asdict(finding) for finding in self.findings],
            "notes": list(self.notes),
            "hosts": {report.host: _without_name(report) for report in self.reports},
            "reaches": [dataclasses.asdict(reach) for reach in self.network.reaches],
            "bits_per_s": _nested(self.network.bits),
            "allreduce": None if self.trial is None else dataclasses.asdict(self.trial),
        }


def examine(
    hosts: Sequence[Host],
    questions: Questions,
    interface: str | None = None,
    tell: Callable[[str], None] = lambda _: None,
    *,
    over_torch: bool = False,
) -> Examination:
    """Look at hosts from here, for jobs over Horovod or torch; ``tell`` is told what is being done.

    Raises:
        UserError: there is no ssh here.
    """
    tell(f"asking {len(hosts)} host{'s' if len(hosts) > 1 else ''}")
    reports = ask(hosts, questions)
    found = rules.findings(reports, over_torch=over_torch)
    tell("trying the links")
    network = try_out([report for report in reports if report.complete], questions.seconds)
    found += network_rules.findings(network)
    trial = None
    if not any(finding.blocks for finding in found):
        tell("running an allreduce")
        trial = try_allreduce(hosts, interface, questions.seconds, over_torch=over_torch)
        found += network_rules.of_trial(trial)
    return Examination(tuple(reports), network, trial, tuple(found), tuple(software_rules.notes(reports)))


def _without_name(report: Report) -> dict[str, Any]:
    return {key: value for key, value in dataclasses.asdict(report).items() if key != "host"}


def _nested(bits: Mapping[tuple[str, str], float]) -> dict[str, dict[str, float]]:
    nested: dict[str, dict[str, float]] = {}
    for (source, target), rate in bits.items():
        nested.setdefault(source, {})[target] = rate
    return nested
