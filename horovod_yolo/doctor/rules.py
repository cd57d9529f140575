"""From what hosts said to what is wrong. Pure: reports in, findings out, nothing on a healthy cluster."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from horovod_yolo.doctor import access_rules, data_rules, machine_rules, software_rules
from horovod_yolo.doctor.collect import Report
from horovod_yolo.doctor.findings import Finding, merged

Rule = Callable[[Sequence[Report]], Iterable[Finding]]


def findings(reports: Sequence[Report], *, over_torch: bool = False) -> list[Finding]:
    """What is wrong with the hosts themselves, the graver first; the same thing on several hosts is one.

    Args:
        reports: of the hosts.
        over_torch: for jobs that do without Horovod, and may start lost ranks anew on any host.
    """
    rules = (*RULES, machine_rules.run_folder) if over_torch else RULES
    found = [finding for rule in rules for finding in rule(reports)]
    return merged(one for one in found if not (over_torch and one.kind in OF_HOROVOD))


# The last: Gloo asks for a host's own name where it is not told a card.
OF_HOROVOD = {"horovod", "horovod-missing", "horovod-torch", "nccl", "own-name"}


RULES: tuple[Rule, ...] = (
    access_rules.answers,
    access_rules.folder,
    software_rules.python,
    software_rules.missing,
    software_rules.torch,
    software_rules.torchvision,
    software_rules.horovod,
    software_rules.code,
    access_rules.own_name,
    machine_rules.gpus,
    machine_rules.infiniband,
    machine_rules.limits,
    machine_rules.disks,
    machine_rules.clock,
    data_rules.data,
)
