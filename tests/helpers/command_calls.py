"""A command line, and what its program, or the parser of it, says of it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from tests.helpers.command_lines import REPO

BIN = Path(sys.executable).parent
_VARIABLE = re.compile(r"[A-Za-z_]\w*=.*", re.DOTALL)


class RefusedError(AssertionError):
    """A program's own parser does not take the command line."""


# What a parser says of a line that is only a part.
LACKS = re.compile(r"(arguments? are required|is required)")


@dataclass(frozen=True)
class Call:
    """A program, what follows it, an empty folder, on how many ranks, and whether it is a whole line."""

    program: str
    words: tuple[str, ...]
    folder: Path
    ranks: int = 1
    whole: bool = True

    def then(self, words: Sequence[str], ranks: int | None = None) -> None:
        """Hand the rest over to the program that it names."""
        understand(replace(self, program=words[0], words=tuple(words[1:]), ranks=ranks or self.ranks))


def understand(call: Call) -> None:
    """Let the parser of the program of a command line read it, and of the program that this one calls.

    Raises:
        RefusedError: one of them does not take it, or nobody knows the program.
    """
    name = Path(call.program).name or call.program
    if _VARIABLE.fullmatch(call.program):
        if call.words:
            call.then(call.words)
        return
    if name not in PROGRAMS:
        raise RefusedError(f"{name}: of this program no parser is known, add one here")
    PROGRAMS[name](call)


def printed(call: Call, *words: str | Path, **variables: str) -> str:
    """What a program prints, which must be there; its code does not matter."""
    path = f"{BIN}:{os.environ['PATH']}"
    tool = shutil.which(str(words[0]), path=path)
    if tool is None:
        pytest.skip(
            f"LOUD SKIP: no {words[0]} here, so `{call.program} {' '.join(call.words)}` is not parsed"
        )
    done = subprocess.run(
        [tool, *map(str, words[1:])],
        cwd=REPO,
        env={**os.environ, "PATH": path, "TMPDIR": str(call.folder), **variables},  # mpirun leaves a folder
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return f"{done.stdout}{done.stderr}\nexit code {done.returncode}"


def demand(said: str, expected: str) -> None:
    if not re.search(expected, said):
        raise RefusedError(said)


def existing(name: str) -> Path:
    path = REPO / name
    if not path.is_file():
        raise RefusedError(f"{name}: no such file")
    return path


# Filled by command_parsers.py.
PROGRAMS: dict[str, Callable[[Call], None]] = {}
