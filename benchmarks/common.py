"""What the benchmarks share: run a command, describe the machine, write JSON and the table in the docs."""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from horovod_yolo.assembly.run_folder import versions

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent
TABLES = ROOT / "docs" / "benchmarks.md"


def parser(about: str | None) -> argparse.ArgumentParser:
    """Of a script's command line; ``--help`` shows what the script says of itself."""
    return argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)


def train(flags: Sequence[str], ranks: int, log: Path, **variables: str) -> None:
    """Run ``train.py``, alone or under ``horovodrun --gloo``; raise where it fails."""
    launcher = [str(BIN / "horovodrun"), "--gloo", "-np", str(ranks), "-H", f"localhost:{ranks}"]
    command = [*(launcher if ranks > 1 else []), sys.executable, "train.py", *flags]
    print("$", " ".join(command), flush=True)
    environment = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}", **variables}
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as file:
        subprocess.run(command, cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT, check=True)


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


def publish(name: str, results: dict[str, Any], table: str, document: Path = TABLES) -> None:
    """Write ``benchmarks/results/NAME.json`` and put the table at its mark in a document."""
    path = ROOT / "benchmarks" / "results" / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(results, indent=2) + "\n")
    mark, end = f"<!-- table: {name} -->", "<!-- end -->"
    text = document.read_text()
    before, after = text.split(mark, 1)
    if end in after.split("<!-- table:", 1)[0]:
        after = after.split(end, 1)[1]
    document.write_text(f"{before}{mark}\n{table.strip()}\n{end}{after}")
    print(table)
