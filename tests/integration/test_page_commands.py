"""Pages whose commands are run, in their order and in one shell, as far as one machine can do them.

They are made small first: fewer epochs, trials and pixels; all else is as it stands on the page.
"""

from __future__ import annotations

import importlib
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType

import pytest

from tests.helpers.command_lines import REPO

TRAINED = (
    "python train.py --data data.yaml --cfg yolov5n --img 64 --batch 14 --epochs 1 --workers 0 --noplots"
)
# What somebody has done before who reads the page.
BEFORE = {
    "quickstart.md": "true",
    "export.md": f"{TRAINED} && cp runs/train/exp/weights/best.pt .",
    "tune.md": "true",
}
NOT_RUN = {
    r"^python3 -m venv|^pip install|^\. \.venv|^make ": "installs; benchmarks/first_ten_minutes.py does that",
    r"host1:": "needs several hosts",
    r"^trtexec": "needs a GPU and TensorRT",
}
SMALL = {
    r"(trials[ =])80\b": r"\g<1>2",
    r"(trials[ =])(?:20|40)\b": r"\g<1>1",
    r"((?:imgsz=|--img ))\d+": r"\g<1>64",
    r"(--images )\d+ (--size )\d+": r"\g<1>20 \g<2>64",
    r"(tune --data data\.yaml)": r"\g<1> --imgsz 64",
    r'(data="digits", )': r"\g<1>imgsz=64, ",
    # Ctrl-C after the first epoch, which the next command goes on from.
    r"^(python train\.py --data mydata/.*--epochs )100$": (
        r"\g<1>3 & until ls runs/train/*/weights/last.pt | grep -q exp6; do sleep 0.2; done; "
        r"kill -TERM $!; wait $!; [ $? = 3 ]"
    ),
    r"(epochs[ =])(?:30|10)\b": r"\g<1>1",
}


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Finds the commands of a page, and runs them."""
    monkeypatch.syspath_prepend(REPO / "benchmarks")
    return importlib.import_module("first_ten_minutes")


def made_small(text: str, rules: Mapping[str, str] = SMALL) -> str:
    for pattern, less in rules.items():
        text = re.sub(pattern, less, text)
    return text


def pages() -> Iterator[tuple[str, str]]:
    for page in BEFORE:
        yield page, (REPO / "docs" / page).read_text(encoding="utf-8")


def test_each_rule_is_for_a_command_and_most_are_run(script: ModuleType) -> None:
    found = [one for _, text in pages() for one in script.commands(text)]
    for pattern in (*NOT_RUN, *SMALL):
        assert [one for one in found if re.search(pattern, one.text)], f"no command is like {pattern}"
    assert sum(not script.why_not(one, NOT_RUN) for one in found) > 20


def test_both_quickstarts_have_the_same_commands(script: ModuleType) -> None:
    one, two = (
        [(found.language, found.text) for found in script.commands((REPO / "docs" / name).read_text("utf-8"))]
        for name in ("quickstart.md", "quickstart.zh.md")
    )
    assert one == two


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("page", BEFORE)
def test_the_commands_of_a_page_work_one_after_the_other(
    script: ModuleType, digits: Path, tmp_path: Path, page: str
) -> None:
    place(digits.parent, tmp_path)
    variables = {**script.environment(REPO), **script.MPIRUN_AS_ROOT, "TMPDIR": str(tmp_path)}
    newcomer = script.Newcomer(tmp_path, "", variables)
    before = script.Command("before", "bash", BEFORE[page])
    for command in (before, *script.commands((REPO / "docs" / page).read_text(encoding="utf-8"))):
        if not script.why_not(command, NOT_RUN):
            small = script.Command(command.heading, command.language, made_small(command.text))
            done = newcomer.does(small)
            said = (tmp_path / ".said").read_text(errors="replace")
            assert done.code == 0, f"{page}: {small.text}\nexit code {done.code}\n{said}"


def place(data: Path, folder: Path) -> None:
    """What the pages take for granted: the package, a data set by all of its names, and pictures."""
    for name in ("train.py", "horovod_yolo"):
        (folder / name).symlink_to(REPO / name)
    for name in ("mydata", "datasets/digits"):
        shutil.copytree(data, folder / name)
    for split in ("images", "labels"):
        shutil.copytree(data / split, folder / split)
    shutil.copy(data / "data.yaml", folder)
    shutil.copytree(data / "images" / "val", folder / "photos")
    for name in ("image.jpg", "cat.jpg"):
        shutil.copy(next((data / "images" / "val").iterdir()), folder / name)
