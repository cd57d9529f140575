"""The documents name what is there: every flag with its default, files, headings, commands that parse."""

from __future__ import annotations

import argparse
import ast
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from horovod_yolo.assembly.export import ExportOptions
from horovod_yolo.assembly.predict import PredictOptions
from horovod_yolo.assembly.search import PROJECT, TRIALS
from horovod_yolo.assembly.val_folder import ValPlace
from horovod_yolo.assembly.validate import ValOptions
from horovod_yolo.cli.bench import comm_parser, step_parser
from horovod_yolo.cli.export import export_parser
from horovod_yolo.cli.plan import plan_parser
from horovod_yolo.cli.tune import tune_parser
from horovod_yolo.config.hyperparameters import Hyp
from horovod_yolo.config.load import train_parser
from horovod_yolo.config.predict_flags import predict_flags
from horovod_yolo.config.schema import TrainConfig
from horovod_yolo.core.engines import ENGINES
from horovod_yolo.families import zoo
from horovod_yolo.tune.space import GAINS, default_space
from tests.helpers.command_lines import DOCS, blocks, fenced

REPO = Path(__file__).resolve().parents[2]
CONFIG = (REPO / "docs/config.md").read_text(encoding="utf-8")
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
NO_DEFAULT = "–"
WHOLE = [line for document in DOCS for line in fenced(document)]


def table(heading: str) -> dict[tuple[str, ...], str]:
    """First column (names) and second of the table below a heading of docs/config.md."""
    section = CONFIG.split(f"\n## {heading}\n", 1)[1].split("\n## ", 1)[0]
    rows = re.findall(r"^\| (`[^|]+`) \| ([^|]+) \| [^|]+", section, re.MULTILINE)
    found = {tuple(re.findall(r"`([^`]+)`", names)): default.strip() for names, default in rows}
    assert len(found) == len(rows), "a row stands twice"
    return found


def as_cell(value: Any) -> str:
    """How the documents write a default."""
    if isinstance(value, bool):
        return {False: "off", True: "on"}[value]
    text = " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
    return NO_DEFAULT if value is None else text or NO_DEFAULT


def long_names(parser: argparse.ArgumentParser) -> set[str]:
    """The name of each flag that the documents use: the first one."""
    return {
        next(flag for flag in action.option_strings if flag.startswith("--")) for action in parser._actions
    }


def commands() -> list[tuple[str, list[str]]]:
    """All command lines of all documents as (document, words)."""
    return [(line.document, list(line.words)) for line in WHOLE]


def slug(heading: str) -> str:
    """The anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


TRAIN_COMMANDS = [(name, words) for name, words in commands() if "train.py" in words]
WITH_HOSTS = [words for _, words in TRAIN_COMMANDS if "-H" in words]
TRAIN_TABLE = "Flags of `train.py` and `horovod-yolo train`"
OF_RANKS = {"--engine": ENGINES[0], "--np": NO_DEFAULT, "--hosts": NO_DEFAULT}
VAL_TABLE = "Flags of `horovod-yolo val`"


def test_every_flag_of_training_is_documented_and_no_other() -> None:
    flags = {flag for action in train_parser()._actions for flag in action.option_strings}
    assert {flag for row in table(TRAIN_TABLE) for flag in row} == flags - {"-h", "--help"}


def test_the_readme_names_every_flag_of_training_once() -> None:
    section = (REPO / "README.md").read_text(encoding="utf-8").split("\n### Flags\n")[1].split("\n### ")[0]
    cells = [
        row.split("|")[2 if "`" not in row.split("|")[1] else 1] for row in section.splitlines() if "|" in row
    ]
    named = re.findall(r"--[a-z][a-z-]+", " ".join(cells))
    assert sorted(named) == sorted(long_names(train_parser()) - {"--help"})


def test_defaults_of_training_are_those_of_the_code() -> None:
    documented = {row[0]: default for row, default in table(TRAIN_TABLE).items()}
    expected = {"--data": "required", "--hyp": NO_DEFAULT, "--resume": NO_DEFAULT, **OF_RANKS}
    for f in fields(TrainConfig):
        expected.setdefault("--" + f.name.replace("_", "-"), as_cell(f.default))
    assert documented == expected


def hyperparameters(heading: str) -> dict[str, float]:
    return {row[0]: float(default) for row, default in table(heading).items()}


def test_hyperparameters_and_their_defaults_are_those_of_the_code() -> None:
    shared = {f.name: f.default for f in fields(Hyp)}
    assert hyperparameters("Hyperparameters") == shared
    for heading, model in (("with", "yolov5n"), ("without", "yolo11n")):
        own = {f.name: f.default for f in fields(zoo.recipe_of(model).hyp)}
        documented = hyperparameters(f"Hyperparameters of models {heading} anchors")
        assert {**documented, **shared} == own and not documented.keys() & shared.keys()


def test_defaults_of_models_without_anchors_are_those_of_the_code() -> None:
    documented = {row[0]: default for row, default in table("Defaults of models without anchors").items()}
    recipe = zoo.recipe_of("yolo11n")
    expected = {"--" + name.replace("_", "-"): as_cell(value) for name, value in recipe.run.items()}
    assert documented == expected


def test_every_flag_of_validation_is_documented_with_its_default() -> None:
    shown = subprocess.run(
        [sys.executable, "-m", "horovod_yolo.cli", "val", "--help"],
        capture_output=True,
        text=True,
        check=True,
        cwd=REPO,
    )
    documented = table(VAL_TABLE)
    assert {flag for row in documented for flag in row} == set(
        re.findall(r"--[a-z][a-z-]*", shown.stdout)
    ) - {"--help"}
    expected = {
        "--" + f.name.replace("_", "-"): as_cell(f.default) for f in (*fields(ValOptions), *fields(ValPlace))
    }
    expected |= {"--weights": "required", **OF_RANKS}
    assert {row[0]: default for row, default in documented.items()} == expected


def test_every_flag_of_tune_is_documented_with_its_default() -> None:
    of_training = {action.dest for action in train_parser()._actions}
    own = {
        flag
        for action in tune_parser()._actions
        if action.dest not in of_training
        for flag in action.option_strings
    }
    documented = table("Flags of `horovod-yolo tune`")
    assert {flag for row in documented for flag in row} == own | {"--resume", "--project"}
    defaults = {row[0]: default for row, default in documented.items()}
    assert defaults["--trials"] == as_cell(TRIALS) and defaults["--project"] == PROJECT


def test_ranges_of_a_search_are_those_of_the_code() -> None:
    documented = {}
    for row in (REPO / "docs/tune.md").read_text(encoding="utf-8").splitlines():
        if row.startswith("| `") and "quarter" not in row and len(cells := row.split("|")) == 6:
            names, low, high, scale = (cell.strip() for cell in cells[1:5])
            documented |= {
                name: (float(low), float(high), scale == "log") for name in re.findall(r"`(\w+)`", names)
            }
    gains = default_space(zoo.recipe_of("yolov5n").hyp(), auto_optimizer=False)
    code = {name: (found.low, found.high, found.log) for name, found in gains.items() if name not in GAINS}
    assert documented == code


def test_there_are_commands_to_check() -> None:
    launchers = {words[0] for _, words in TRAIN_COMMANDS}
    assert launchers == {"python", "horovodrun", "mpirun", "torchrun"}
    assert len(WITH_HOSTS) >= 2
    assert len([name for name, _ in TRAIN_COMMANDS if name == "README.md"]) >= 8


def test_targets_of_make_and_commands_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (REPO / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    used = {words[1] for _, words in commands() if words[0] == "make"}
    assert used and used <= targets
    subcommands = {
        words[words.index("horovod-yolo") + 1] for _, words in commands() if "horovod-yolo" in words
    }
    assert subcommands == {
        *("bench", "data", "doctor", "eval", "export", "install-horovod", "launch", "plan", "predict"),
        *("replay", "report", "train", "tune", "val"),
    }


def test_commands_that_plan_and_measure_are_accepted() -> None:
    found = {"plan": plan_parser(), "comm": comm_parser(), "step": step_parser()}
    used = set()
    for _, words in commands():
        if "horovod-yolo" in words:
            kind, *rest = words[words.index("--" if "launch" in words else "horovod-yolo") + 1 :]
            if kind in ("plan", "bench"):
                kind, *rest = [kind, *rest] if kind == "plan" else rest
                found[kind].parse_strictly(rest)
                used.add(kind)
    assert used == found.keys()


def test_commands_that_predict_are_accepted() -> None:
    found = [words[words.index("predict") + 1 :] for _, words in commands() if "predict" in words]
    assert len(found) >= 4
    for words in found:
        PredictOptions(**predict_flags(words))


def test_commands_that_export_are_accepted_and_all_flags_explained() -> None:
    ours = [words for _, words in commands() if words[:2] == ["horovod-yolo", "export"]]
    found = [words[2:] for words in ours]
    assert len(found) >= 2
    for words in found:
        ExportOptions(**vars(export_parser().parse_strictly(words)))
    text = (REPO / "docs/export.md").read_text(encoding="utf-8")
    flags = {action.option_strings[0] for action in export_parser()._actions} - {"-h"}
    assert {flag for flag in flags if f"{flag} " not in text and f"`{flag}`" not in text} == set()


@pytest.mark.parametrize("document", DOCS, ids=lambda path: path.name)
def test_local_links_lead_somewhere(document: Path) -> None:
    for link in LINK.findall(document.read_text(encoding="utf-8")):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = (document.parent / name).resolve() if name else document
        assert target.exists(), link
        if anchor:
            headings = re.findall(r"^#+ (.+)$", target.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in map(slug, headings), link


@pytest.mark.parametrize("document", DOCS, ids=lambda path: path.name)
def test_files_of_the_repository_that_are_named_exist(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    for name in re.findall(r"`((?:horovod_yolo|benchmarks|launch|tests)/[\w./]+)`", text):
        assert (REPO / name).exists(), name


@pytest.mark.parametrize("document", DOCS, ids=lambda path: path.name)
def test_python_examples_are_python(document: Path) -> None:
    for block in blocks("python", document.read_text(encoding="utf-8")):
        ast.parse(block)


def test_every_document_is_a_page_of_the_site() -> None:
    listed = set(
        re.findall(r"^ +- (?:[^:\n]+: )?([\w./]+\.md)$", (REPO / "mkdocs.yml").read_text(), re.MULTILINE)
    )
    assert {path.name for path in (REPO / "docs").glob("*.md")} <= listed


def test_the_main_documents_are_there() -> None:
    named = {"README.md", "CHANGELOG.md", "CONTRIBUTING.md", "quickstart.md", "config.md", "distributed.md"}
    assert named <= {document.name for document in DOCS}


@pytest.mark.parametrize(
    "told",
    [
        "counts as precision 0; in YOLOv5 it counts as 1",
        "YOLOv5's lags: it has that of the epoch before",
        "border between two cells counts once",
        "plus half a stride, in whole strides",
        "reads up to 5 points higher where its lists of detections are cut off",
        "Equal to YOLOv5, and stricter",
    ],
)
def test_where_numbers_differ_from_yolov5s_is_told(told: str) -> None:
    text = (REPO / "docs/migrate_from_yolov5.md").read_text()
    assert told in " ".join(text.split())


@pytest.mark.parametrize(
    "part", ["What is trusted", "Files from strangers", "What listens where", "How to report"]
)
def test_the_page_on_security_has_its_parts(part: str) -> None:
    assert f"## {part}" in (REPO / "docs/security.md").read_text()
