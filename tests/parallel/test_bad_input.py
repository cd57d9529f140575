"""The user's mistakes: one line, exit code 2 on every rank, no traceback, no hang."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from horovod_yolo.cli import train_main
from tests.helpers import ranks
from tests.helpers.world_command import exit_codes

SECONDS = 30  # generous for a loaded machine; a hang would last until Horovod's own time-out


def copy_of(data: Path, folder: Path) -> Path:
    shutil.copytree(data.parent, folder / "data")
    return folder / "data" / data.name


def labels_of(data: Path) -> list[Path]:
    return sorted((data.parent / "labels" / "train").glob("*.txt"))


def missing_data(data: Path, folder: Path) -> tuple[list[object], str]:
    return ["--data", folder / "nowhere.yaml"], "nowhere.yaml"


def missing_images(data: Path, folder: Path) -> tuple[list[object], str]:
    data = copy_of(data, folder)
    shutil.rmtree(data.parent / "images" / "val")
    return ["--data", data], "images/val"


def only_wrong_classes(data: Path, folder: Path) -> tuple[list[object], str]:
    data = copy_of(data, folder)
    for label in labels_of(data):
        label.write_text("11 0.5 0.5 0.1 0.1\n")
    return ["--data", data], "class"


def only_nan_boxes(data: Path, folder: Path) -> tuple[list[object], str]:
    data = copy_of(data, folder)
    for label in labels_of(data):
        label.write_text("1 nan 0.5 0.1 0.1\n")
    return ["--data", data], ".txt:1"


def empty_set(data: Path, folder: Path) -> tuple[list[object], str]:
    data = copy_of(data, folder)
    for image in (data.parent / "images" / "train").iterdir():
        image.unlink()
    return ["--data", data], "no image"


def unreadable_images(data: Path, folder: Path) -> tuple[list[object], str]:
    data = copy_of(data, folder)
    for image in (data.parent / "images" / "train").iterdir():
        image.write_bytes(b"<html>not found</html>")
    return ["--data", data], "images/train"


def unknown_flag(data: Path, folder: Path) -> tuple[list[object], str]:
    return ["--data", data, "--epoch", "3"], "--epochs"


def unknown_hyperparameter(data: Path, folder: Path) -> tuple[list[object], str]:
    (folder / "hyp.yaml").write_text("lr: 0.1\n")
    return ["--data", data, "--hyp", folder / "hyp.yaml"], "lr0"


def batch_below_ranks(data: Path, folder: Path) -> tuple[list[object], str]:
    return ["--data", data, "--batch", "1"], "2 ranks"


def no_epochs(data: Path, folder: Path) -> tuple[list[object], str]:
    return ["--data", data, "--epochs", "0"], "--epochs"


def unknown_model(data: Path, folder: Path) -> tuple[list[object], str]:
    return ["--data", data, "--cfg", "yolov5q"], "yolov5"


def weights_of_nothing(data: Path, folder: Path) -> tuple[list[object], str]:
    (folder / "yolov5n.pt").write_bytes(b"PK not a checkpoint")
    return ["--data", data, "--weights", folder / "yolov5n.pt"], "yolov5n.pt"


def nothing_to_resume(data: Path, folder: Path) -> tuple[list[object], str]:
    return ["--resume", folder], "resume"


def one_cell(data: Path, folder: Path) -> tuple[list[object], str]:
    return ["--data", data, "--img", "32"], "--imgsz 64"


def fp16_on_a_cpu(data: Path, folder: Path) -> tuple[list[object], str]:
    return ["--data", data, "--precision", "fp16", "--device", "cpu"], "needs a GPU"


Case = Callable[[Path, Path], tuple[list[object], str]]
# Before the ranks say anything to each other, and in the middle of their agreement.
WITH_REAL_RANKS: list[Case] = [unknown_flag, unreadable_images]
ALIKE: list[Case] = [
    missing_data, missing_images, batch_below_ranks, weights_of_nothing, nothing_to_resume,
    only_wrong_classes, only_nan_boxes, empty_set, unknown_hyperparameter, no_epochs, unknown_model,
    one_cell, fp16_on_a_cpu,
]  # fmt: skip


def words(case: Case, data: Path, folder: Path) -> tuple[list[str], str]:
    """Arguments with the mistake in them, and what must be named."""
    flags, named = case(data, folder)
    defaults = [] if "--resume" in flags else ["--img", "64", "--workers", "0", "--noplots"]
    place = [] if "--resume" in flags else ["--project", folder / "runs"]
    model = [] if {"--cfg", "--resume", "--weights"} & set(map(str, flags)) else ["--cfg", "yolov5n"]
    return [str(word) for word in [*model, *defaults, *place, *flags]], named


@pytest.mark.parametrize("case", [*WITH_REAL_RANKS, *ALIKE], ids=lambda case: case.__name__)
def test_one_line_and_exit_code_2_on_every_rank(
    case: Case, digits: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    given, named = words(case, digits, tmp_path)
    assert exit_codes(2, lambda: train_main(given)) == [2, 2]
    said = capfd.readouterr().err.splitlines()
    assert len(said) == 1, said
    assert said[0].startswith("error: ") and named in said[0]


# Each rank leaves its exit code in a file: horovodrun and torchrun end with 1 whatever their ranks' code is.
RANK = """
import pathlib, sys
from horovod_yolo.cli import train_main
from horovod_yolo.assembly.ending import leave
from horovod_yolo.distributed.launchers.found import launcher
code = train_main(sys.argv[2:])
pathlib.Path(sys.argv[1], str(launcher().rank)).write_text(str(code))
leave(code)
"""


@pytest.mark.parametrize(
    ("case", "started_by"),
    [
        (unknown_flag, "gloo"),
        (unreadable_images, "torchrun"),
        *(pytest.param(case, "gloo", marks=pytest.mark.slow) for case in ALIKE),
    ],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
def test_so_it_is_with_real_ranks(case: Case, started_by: str, digits: Path, tmp_path: Path) -> None:
    given, named = words(case, digits, tmp_path)
    start = time.monotonic()
    job = ranks.run(["-c", RANK, tmp_path, *given], 2, started_by, timeout=SECONDS)
    assert time.monotonic() - start < SECONDS
    assert [(tmp_path / rank).read_text() for rank in "01"] == ["2", "2"], job.output
    ours = (
        ("[0]<stderr>", "[1]<stderr>") if started_by == "gloo" else ("error: ",)
    )  # as against the launcher's
    said = [line for line in job.output.splitlines() if line.startswith(ours)]
    assert len(said) == 1, job.output
    assert "error: " in said[0] and named in said[0]


def test_another_models_checkpoint(digits: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    given = [
        "--img",
        "64",
        "--workers",
        "0",
        "--noplots",
        "--noval",
        "--max-steps",
        "1",
        "--project",
        tmp_path,
    ]

    def code_of(*more: str | Path) -> tuple[int, str]:
        """On one rank, and the last line of what it said."""
        argv = [str(word) for word in more]
        codes = exit_codes(1, lambda: train_main(argv))
        return codes[0], (capfd.readouterr().err.splitlines() or [""])[-1]

    assert code_of("--data", digits, "--cfg", "yolov5n", "--name", "n", *given)[0] == 0
    weights = tmp_path / "n" / "weights" / "last.pt"
    code, said = code_of("--data", digits, "--cfg", "yolov5s", "--weights", weights, *given)
    assert code == 2 and "yolov5n" in said and "yolov5s" in said
    code, said = code_of("--resume", tmp_path / "n", "--epochs", "7")
    assert code == 2 and "--epochs 7" in said
