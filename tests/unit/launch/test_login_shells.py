"""Ranks over Gloo on another host: the real login shell runs what horovodrun writes for it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.ranks import REPOSITORY

ELSEWHERE = "192.0.2.1"  # for documentation: nobody has it, and nothing is sent there
# As sshd does: the words in one line, to the account's shell.
SSH = """#!/bin/sh
while [ "$1" != "$ELSEWHERE" ]; do shift; done
shift
while [ "$1" = -o ]; do shift 2; done
exec "$SHELL_THERE" -c "$*"
"""
RANK = """
import os, pathlib, sys
key = os.environ["HOROVOD_RENDEZVOUS_KEY"]
found = [len(key), os.getcwd(), os.environ["ODD"], *sys.argv[1:]]
pathlib.Path(__file__).with_name("rank" + os.environ["HOROVOD_RANK"]).write_text(repr(found))
"""


@pytest.mark.parametrize("shell", ["sh", "tcsh", "fish"])
def test_secret_folder_and_words_arrive_whole(shell: str, tmp_path: Path) -> None:
    there = shutil.which(shell)
    if there is None:
        pytest.skip(f"LOUD SKIP: no {shell} here: apt-get install {shell}")
    folder = tmp_path / "my own; $HOME!"
    folder.mkdir()
    (folder / "rank.py").write_text(RANK)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/ssh").write_text(SSH)
    (tmp_path / "bin/ssh").chmod(0o755)
    odd = 'it\'s `a` $b \\ "c" !d'
    environment = {
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
        "PYTHONPATH": os.environ.get("PYTHONPATH", str(REPOSITORY)),
        "HOME": str(tmp_path),
        "ELSEWHERE": ELSEWHERE,
        "SHELL_THERE": there,
        "ODD": odd,
    }
    command = [sys.executable, "-m", "horovod_yolo.cli", "launch", "--interface", "lo"]
    words = ["--hosts", f"{ELSEWHERE}:2", "--", "rank.py", "a b", "$HOME"]
    done = subprocess.run(
        [*command, *words], env=environment, cwd=folder, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for rank in range(2):
        assert (folder / f"rank{rank}").read_text() == repr([32, str(folder), odd, "a b", "$HOME"])
