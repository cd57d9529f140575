"""An environment of its own for a test, without a compiler, into which pip installs this checkout."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.helpers.ranks import REPOSITORY


@dataclass(frozen=True)
class Fresh:
    """A folder with an environment in ``venv``, and this commit in ``source``, in which pip builds."""

    folder: Path
    environ: dict[str, str]

    @classmethod
    def make(cls, folder: Path, interpreter: str = sys.executable) -> Fresh:
        """An environment of this Python or another, and compilers that fail."""
        tools = folder / "tools"
        tools.mkdir()
        for name in ("cc", "gcc", "c++", "g++", "clang"):
            (tools / name).write_text("#!/bin/sh\necho no compiler here >&2; exit 1\n")
            (tools / name).chmod(0o755)
        environ = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "CC", "CXX")}
        environ |= {"PATH": f"{tools}:{folder / 'venv/bin'}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
        environ |= {"TMPDIR": str(folder)}  # torchrun leaves a folder there
        fresh = cls(folder, environ)
        fresh.run(interpreter, "-m", "venv", folder / "venv")
        fresh.run("git", "clone", "--quiet", REPOSITORY, folder / "source")
        return fresh

    @property
    def python(self) -> Path:
        """Its interpreter."""
        return self.folder / "venv/bin/python"

    def run(self, *words: str | Path, seconds: float = 300) -> str:
        """What a command prints, which must end well; not in the checkout: what is installed is used."""
        done = subprocess.run(
            [*map(str, words)],
            env=self.environ,
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def install(self, *words: str | Path) -> None:
        """This commit, and what it needs, as pip is told."""
        self.run(self.python, "-m", "pip", "install", "-q", *words, self.folder / "source", seconds=3600)

    def lacks(self, module: str) -> bool:
        """Whether a module cannot be imported."""
        words = [str(self.python), "-c", f"import {module}"]
        return subprocess.run(words, env=self.environ, capture_output=True, check=False).returncode == 1
