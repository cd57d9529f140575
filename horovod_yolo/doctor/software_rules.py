"""The same Python, packages and code on all hosts, and Horovod built for the torch beside it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from horovod_yolo.doctor.collect import Report
from horovod_yolo.doctor.findings import Finding, differing, hosts_with, odd_ones, one, package_facts
from horovod_yolo.launch.transport import lacks


def python(reports: Sequence[Report]) -> Iterator[Finding]:
    """The same Python, but for the last number."""
    versions = {r.host: ".".join(f["version"].split(".")[:2]) for r, f in hosts_with(reports, "python")}
    yield from differing(versions, "python", "Python", "make the environments of one Python")


def missing(reports: Sequence[Report]) -> Iterator[Finding]:
    """Packages that are not there at all."""
    cures = {
        "torch": "install the torch of the other hosts there",
        "horovod": "horovod-yolo install-horovod builds it there",
        "horovod_yolo": "`pip install -e .` in the checkout there, or set PYTHONPATH",
    }
    for report, facts in hosts_with(reports, "packages"):
        for name, fix in cures.items():
            if facts[name] is None:
                yield one(report, f"{name}-missing", f"{name} is not installed", fix, blocks=True)


def torch(reports: Sequence[Report]) -> Iterator[Finding]:
    """The same torch."""
    versions = {host: facts["version"] for host, facts in package_facts(reports, "torch").items()}
    yield from differing(versions, "torch", "torch", "install the same one, then build Horovod for it")


def torchvision(reports: Sequence[Report]) -> Iterator[Finding]:
    """One that is imported, where there is one, and for this torch: another may stop what tries to use it."""
    failed = {r.host: facts.get("torchvision") for r, facts in hosts_with(reports, "imports")}
    torches = {host: facts["version"] for host, facts in package_facts(reports, "torch").items()}
    for host, facts in package_facts(reports, "torchvision").items():
        wanted, here = facts["built_for"], str(torches.get(host)).partition("+")[0]
        why, name = failed.get(host), f"torchvision {facts['version']}"
        if wanted is not None and here not in (wanted, "None"):
            what = f"{name} is for torch {wanted}, and {here} is installed" + f" ({why})" * bool(why)
            fix = "it may not load; nothing here needs it: uninstall it, or install the one for this torch"
            yield Finding((host,), "torchvision", what, fix, blocks=False)
        elif why:
            fix = "nothing here needs it: uninstall it, or take it from where torch is from (CPUs, CUDA)"
            yield Finding((host,), "torchvision", f"{name} cannot be imported ({why})", fix, blocks=False)


def horovod(reports: Sequence[Report]) -> Iterator[Finding]:
    """Horovod built for the torch beside it, and everywhere the same."""
    torches = {host: facts["version"] for host, facts in package_facts(reports, "torch").items()}
    built = package_facts(reports, "horovod")
    common = odd_ones(torches)[0]
    rebuild = "build it again there: horovod-yolo install-horovod"
    for host, facts in built.items():
        here, wanted = torches.get(host), facts["built_for"]
        if not facts["extension"] or wanted is None:
            what = "Horovod is there, but not built for torch and this Python"
            yield Finding((host,), "horovod-missing", what, rebuild, True)
        elif here is not None and here != wanted and (here == common or wanted != common):
            # Otherwise torch is the odd one, and that has been said.
            what = f"Horovod is built for torch {wanted}, and {here} is installed"
            yield Finding((host,), "horovod-torch", what, rebuild, True)
    yield from differing({h: str(f["version"]) for h, f in built.items()}, "horovod", "Horovod", rebuild)
    backends = {h: " + ".join(f["backends"]) or "nothing" for h, f in built.items() if f["extension"]}
    yield from differing(backends, "horovod", "Horovod has", rebuild)


def notes(reports: Sequence[Report]) -> Iterator[str]:
    """What the hosts' Horovod cannot do, as it was built; where they differ, that is a finding."""
    built = {tuple(f["backends"]) for f in package_facts(reports, "horovod").values() if f["extension"]}
    if len(built) == 1 and (why := lacks(*built)):
        yield why
    yield from unlike_processors(reports)
    yield from without_compiler(reports)


def unlike_processors(reports: Sequence[Report]) -> Iterator[str]:
    """Hosts that compute the same step to other bits, with which nothing is wrong."""
    having: dict[str, list[str]] = {}
    for report, facts in hosts_with(reports, "processor"):
        having.setdefault(f"{facts['name']} ({facts['instructions']})", []).append(report.host)
    if len(having) > 1:
        listed = "; ".join(f"{kind} on {', '.join(hosts)}" for kind, hosts in having.items())
        yield (
            f"the processors are unlike: {listed}. Jobs work, but what one computes is not to the bit what "
            "another does; train with --portable-bits where that matters"
        )


def without_compiler(reports: Sequence[Report]) -> Iterator[str]:
    """Hosts where ``--compile`` ends a job before its first step."""
    lacking: dict[str, list[str]] = {}
    for report, facts in hosts_with(reports, "compilers"):
        on_gpu = bool(report.facts.get("gpus", {}).get("gpus"))
        needed = {
            "the package triton": facts["triton"] or not on_gpu,
            "a C compiler" if on_gpu else "g++": facts["cc" if on_gpu else "cxx"],
            "Python.h": facts["headers"],
        }
        if missing := [name for name, there in needed.items() if not there]:
            lacking.setdefault(" and ".join(missing), []).append(report.host)
    for what, hosts in lacking.items():
        yield f"train.py --compile needs {what} on {', '.join(hosts)}; jobs without it need no compiler"


def code(reports: Sequence[Report]) -> Iterator[Finding]:
    """The same code of ours, to the byte, and the same packages that change results."""
    ours = package_facts(reports, "horovod_yolo")
    versions = {host: f"{facts['version']} ({facts['digest']})" for host, facts in ours.items()}
    fix = "bring the checkouts to the same commit, without local changes"
    yield from differing(versions, "code", "horovod_yolo is", fix)
    others = {r.host: facts["others"] for r, facts in hosts_with(reports, "packages")}
    for name in sorted({name for versions in others.values() for name in versions}):
        versions = {host: str(found.get(name)) for host, found in others.items()}
        pip = "`pip install -c constraints.txt -e .` on all hosts"
        yield from differing(versions, "packages", f"{name} is", pip, blocks=False)
