"""What the benchmarks share: run a command, describe the machine, write JSON and the table in the docs."""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import platform
import signal
import statistics
import subprocess
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from scipy import stats

from horovod_yolo.assembly.run_folder import versions

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent
TABLES = ROOT / "docs" / "benchmarks.md"
QUICK = ROOT / "runs" / "bench-quick"
SECONDS_TO_END = 30.0

_is_quick = False  # whether this script was called with --quick


def parser(about: str | None) -> argparse.ArgumentParser:
    """Of a script's command line; ``--help`` shows what the script says of itself."""
    options = argparse.ArgumentParser(
        description=about, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    what = "little of everything, to see that it runs: its table goes to runs/bench-quick, not to the pages"
    options.add_argument("--quick", action="store_true", help=what)
    return options


def parsed(options: argparse.ArgumentParser, **quick: Any) -> argparse.Namespace:
    """What a script was called with; from now on `publish` knows whether it is quick.

    Args:
        options: of `parser`.
        quick: other defaults, with ``--quick``.
    """
    global _is_quick
    given = options.parse_args()
    _is_quick = given.quick
    if not _is_quick:
        return given
    options.set_defaults(**quick)
    return options.parse_args()


def horovodrun(ranks: int) -> list[str]:
    """The launcher's words before a command on so many ranks of this host; none for one rank."""
    if ranks == 1:
        return []
    return [str(BIN / "horovodrun"), "--gloo", "-np", str(ranks), "-H", f"localhost:{ranks}"]


def environment(checkout: Path) -> dict[str, str]:
    """Of a process that runs a checkout's own package on one thread."""
    path = {"PATH": f"{BIN}:{os.environ['PATH']}", "PYTHONPATH": str(checkout)}
    return {**os.environ, **path, "OMP_NUM_THREADS": "1"}


def train(
    flags: Sequence[str], ranks: int, log: Path, script: str | Path = "train.py", **variables: str
) -> None:
    """Run ``train.py``, or one like it, alone or under ``horovodrun --gloo``; raise where it fails."""
    command = [*horovodrun(ranks), sys.executable, str(script), *flags]
    print("$", " ".join(command), flush=True)
    environ = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}", **variables}
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as file:
        subprocess.run(command, cwd=ROOT, env=environ, stdout=file, stderr=subprocess.STDOUT, check=True)


def finished(
    command: Sequence[str], out: int, variables: Mapping[str, str], limit_s: float, cwd: Path | None = None
) -> int | None:
    """The exit code of a command, with which all that it started ends; None where it takes longer.

    Args:
        command: its words.
        out: descriptor of the file that it prints to.
        variables: of its environment.
        limit_s: seconds that it may take.
        cwd: where it runs; by default here.
    """
    process = subprocess.Popen(
        command,
        cwd=cwd,
        env=variables,
        stdin=subprocess.DEVNULL,
        stdout=out,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        return process.wait(limit_s)
    except subprocess.TimeoutExpired:
        return None
    finally:
        _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End it with its group; before, it has a while to end what it has started in sessions of their own."""
    with contextlib.suppress(ProcessLookupError):
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(SECONDS_TO_END)
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def machine() -> dict[str, Any]:
    """Where the numbers came from."""
    model = platform.processor() or "unknown processor"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.split(":", 1)[1].strip()
            break
    return {"processor": model, "cores": len(os.sched_getaffinity(0)), "versions": versions()}


def described(facts: dict[str, Any]) -> str:
    """One line about the machine, for below a table."""
    found = facts["versions"]
    return (
        f"{facts['processor']}, {facts['cores']} cores, Python {found['python']}, torch {found['torch']}, "
        f"Horovod {found['horovod'].split('+')[0]}."
    )


def paired(differences: Sequence[float]) -> tuple[float, float]:
    """Mean of paired differences, and half of its 95 % interval by the t distribution; NaN of too few."""
    count = len(differences)
    if count < 2:
        return statistics.fmean(differences) if differences else math.nan, math.nan
    error = statistics.stdev(differences) / math.sqrt(count)
    return statistics.fmean(differences), float(stats.t.ppf(0.975, count - 1)) * error


def interval(centre: float, half: float) -> str:
    """What `paired` has found, in words."""
    return f"95 % interval {centre - half:+.3f} to {centre + half:+.3f}"


def spread(values: Collection[float]) -> str:
    """Their mean, and of several their standard deviation."""
    deviation = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.3f}{deviation}"


def results_file(name: str) -> Path:
    """Where the figures of a table are."""
    return (QUICK if _is_quick else ROOT / "benchmarks" / "results") / f"{name}.json"


def earlier(name: str) -> dict[str, Any]:
    """What a script has published: hours of training go on where they ended. A quick one begins anew."""
    path = results_file(name)
    found: dict[str, Any] = {} if _is_quick or not path.exists() else json.loads(path.read_text())
    return found


def page(document: Path) -> Path:
    """A file of the docs; with ``--quick`` one of the same name elsewhere."""
    return QUICK / document.name if _is_quick else document


def runs(name: str) -> Path:
    """A folder for what a script leaves."""
    return (QUICK if _is_quick else ROOT / "runs") / name


def publish(name: str, results: dict[str, Any], table: str, document: Path = TABLES) -> None:
    """Write ``benchmarks/results/NAME.json`` and put the table at its mark in a document.

    With ``--quick`` both are written to ``runs/bench-quick`` instead.
    """
    path = results_file(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results, indent=2) + "\n")
    if _is_quick:
        path.with_suffix(".md").write_text(table.strip() + "\n")
        print(table)
        return
    mark, end = f"<!-- table: {name} -->", "<!-- end -->"
    text = document.read_text()
    before, after = text.split(mark, 1)
    if end in after.split("<!-- table:", 1)[0]:
        after = after.split(end, 1)[1]
    document.write_text(f"{before}{mark}\n{table.strip()}\n{end}{after}")
    print(table)
