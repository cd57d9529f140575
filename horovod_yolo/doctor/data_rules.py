"""The data set on the hosts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from horovod_yolo.doctor.collect import Facts, Report
from horovod_yolo.doctor.findings import Finding, hosts_with, odd_ones, one


def data(reports: Sequence[Report]) -> Iterator[Finding]:
    """The data set is there, and its files are the same by name and size."""
    splits: dict[str, dict[str, Facts]] = {}
    for report, facts in hosts_with(reports, "data"):
        for split, found in facts.get("splits", {}).items():
            splits.setdefault(split, {})[report.host] = found
        if "error" in facts:
            yield one(report, "data-missing", facts["error"], "copy or mount the data set there too")
        elif "fault" in facts and report.facts["packages"]["horovod_yolo"] is not None:
            what = f"its data set could not be looked at ({facts['fault']})"
            yield one(report, "data-missing", what, f"mend the installation of {report.host} first")
    for split, found in splits.items():
        common, who, odd = odd_ones({host: (facts["images"], facts["key"]) for host, facts in found.items()})
        for host in odd:
            images = found[host]["images"]
            same = common is not None and images == common[0]
            what = f"{images} images, of other names or sizes" if same else f"{images} images"
            has = "as many" if same else f"{common[0] if common else 0}"
            fix = "copy the data set again (rsync --delete), or use one shared folder"
            yield Finding((host,), "data-differs", f"{split}: {what} where {who} {has}", fix)
