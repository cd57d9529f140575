"""``python -m tests.helpers.resolved 3.14``: wheels of what training needs, for a Python that is not here.

pip resolves for that Python and this system, and installs nothing. It reads markers as for the Python that
runs it, so the pins for the other one are chosen here.
"""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
import tempfile
from pathlib import Path
from unittest import mock

from packaging.requirements import Requirement

REPO = Path(__file__).resolve().parents[2]


def pins_for(python: str) -> list[str]:
    """The lines of constraints.txt that count for a Python such as ``3.14``."""
    lines = (REPO / "constraints.txt").read_text(encoding="utf-8").splitlines()
    found = [Requirement(line) for line in lines if line and not line.startswith("#")]
    environment = {"python_version": python, "python_full_version": f"{python}.0"}
    return [f"{r.name}{r.specifier}" for r in found if r.marker is None or r.marker.evaluate(environment)]


def base() -> list[str]:
    """What setup.py requires without extras."""
    with mock.patch("setuptools.setup") as setup:
        runpy.run_path(str(REPO / "setup.py"))
    return list(setup.call_args.kwargs["install_requires"])


def resolved(python: str) -> dict[str, str]:
    """The wheels by package that pip would install.

    Raises:
        subprocess.CalledProcessError: there are none that fit together; pip has said why.
    """
    with tempfile.TemporaryDirectory() as folder:
        pins, report = Path(folder, "pins.txt"), Path(folder, "report.json")
        pins.write_text("\n".join(pins_for(python)))
        subprocess.run(
            [
                *(sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed"),
                *("--only-binary=:all:", "--implementation", "cp", "--python-version", python),
                *("--target", folder, "--constraint", pins, "--report", report, *base()),
            ],
            check=True,
        )
        found = json.loads(report.read_text())["install"]
    return {one["metadata"]["name"]: one["download_info"]["url"].rpartition("/")[2] for one in found}


if __name__ == "__main__":
    for name, wheel in sorted(resolved(sys.argv[1]).items(), key=lambda item: item[0].lower()):
        print(f"{name:30} {wheel}")
