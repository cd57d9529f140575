"""What a shell proposes at a press of the tab key."""

from __future__ import annotations

import subprocess

import pytest

from horovod_yolo.cli.commands import COMMANDS
from horovod_yolo.cli.completion import script

TRY = """{script}
COMP_WORDS=({words})
COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))
_horovod_yolo
printf '%s\\n' "${{COMPREPLY[@]}}"
"""


@pytest.fixture(scope="module")
def printed() -> str:
    return script("bash", COMMANDS)


@pytest.mark.parametrize(
    ("words", "proposed"),
    [
        ("horovod-yolo tr", {"train"}),
        ("horovod-yolo train --epo", {"--epochs"}),
        ("horovod-yolo train epo", {"epochs="}),
        ("horovod-yolo train --optimizer Ada", {"Adam", "AdamW", "Adamax"}),
        ("horovod-yolo val --task te", {"test"}),
        ("horovod-yolo launch --dry", {"--dry-run"}),
        ("horovod-yolo data di", {"digits"}),
        ("horovod-yolo train --data da", set()),  # the shell goes on with files
    ],
)
def test_bash_proposes(printed: str, words: str, proposed: set[str]) -> None:
    done = subprocess.run(
        ["bash", "-c", TRY.format(script=printed, words=words)], capture_output=True, text=True, check=True
    )
    assert set(done.stdout.split()) == proposed
    assert done.stderr == ""


def test_every_command_has_something_to_propose(printed: str) -> None:
    assert all(f"      {name})" in printed for name in COMMANDS)
