"""What a shell proposes at a press of the tab key."""

from __future__ import annotations

import subprocess

import pytest

from horovod_yolo.cli.commands import COMMANDS
from horovod_yolo.cli.completion import MODELS, script
from horovod_yolo.families.zoo import model_names

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
        ("horovod-yolo train optimizer = Ada", {"Adam", "AdamW", "Adamax"}),  # as bash divides optimizer=Ada
        ("horovod-yolo train --cache =", {"ram", "disk", "none"}),
        ("horovod-yolo train log_to = ml", {"mlflow"}),
        ("horovod-yolo train --cfg yolo11", {f"yolo11{size}" for size in "nsmlx"}),
        ("horovod-yolo train model = yolov3-", {"yolov3-spp", "yolov3-sppu", "yolov3-tiny", "yolov3-tinyu"}),
        ("horovod-yolo train data = di", set()),
        ("horovod-yolo train lr", {"lr0=", "lrf="}),
        ("horovod-yolo tune it", {"iterations="}),
        ("horovod-yolo val spl", {"split="}),
        ("horovod-yolo bench st", {"step"}),
        ("horovod-yolo bench step --cf", {"--cfg"}),
        ("horovod-yolo bench step --prec", {"--precision"}),
        ("horovod-yolo launch --hosts a:2 -- tr", {"train"}),
        ("horovod-yolo launch --hosts a:2 -- train --optimizer Ada", {"Adam", "AdamW", "Adamax"}),
        (
            "horovod-yolo train optimizer=Ada",
            {"optimizer=Adam", "optimizer=AdamW", "optimizer=Adamax"},
        ),  # zsh
    ],
)
def test_bash_proposes(printed: str, words: str, proposed: set[str]) -> None:
    done = subprocess.run(
        ["bash", "-c", TRY.format(script=printed, words=words)], capture_output=True, text=True, check=True
    )
    assert set(done.stdout.split()) == proposed
    assert done.stderr == ""


def test_every_model_is_proposed_and_no_other() -> None:
    assert sorted(MODELS) == sorted(model_names())


def test_every_command_has_something_to_propose(printed: str) -> None:
    assert all(f"      {name})" in printed for name in COMMANDS)
