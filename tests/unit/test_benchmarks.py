"""The benchmarks: no table is forgotten by ``make bench``, and a quick run changes no page."""

from __future__ import annotations

import importlib
import os
import re
import sys
from pathlib import Path
from types import ModuleType

import psutil
import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
FOLDER = REPOSITORY / "benchmarks"
BY_HAND = {"gpu"}  # from a machine with one


@pytest.fixture
def common(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(FOLDER)
    for name in ("common", "tables"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return importlib.import_module("common")


def test_make_bench_makes_every_table(common: ModuleType) -> None:
    """Each has a place in the docs and a script that writes it there."""
    made = importlib.import_module("tables").TABLES
    sources = {path.name: path.read_text() for path in FOLDER.glob("*.py")}
    written = {name for text in sources.values() for name in re.findall(r'\bpublish\(\s*"([^"]+)"', text)}
    pages = "".join(path.read_text() for path in (REPOSITORY / "docs").glob("*.md"))
    assert written == set(made), "benchmarks/tables.py must name each table that a script writes"
    assert set(re.findall(r"<!-- table: (\S+) -->", pages)) == set(made) | BY_HAND
    for command in made.values():
        text = sources[command.split()[0]]
        assert re.search(r"\bparsed\(", text), f"{command} must have --quick, by common.parsed"
        assert '"--quick"' not in text and ".parse_args()" not in text


def test_a_quick_table_changes_no_page(
    common: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = tmp_path / "page.md"
    page.write_text("<!-- table: new -->\nold\n<!-- end -->\n")
    monkeypatch.setattr(common, "ROOT", tmp_path)
    monkeypatch.setattr(common, "QUICK", tmp_path / "quick")

    def publish(*flags: str) -> int:
        monkeypatch.setattr(sys, "argv", ["script.py", *flags])
        options = common.parser(None)
        options.add_argument("--turns", type=int, default=9)
        turns: int = common.parsed(options, turns=1).turns
        common.publish("new", {"turns": turns}, f"{turns} turns", page)
        return turns

    before = page.read_text()
    assert publish("--quick") == 1
    assert publish("--quick", "--turns", "4") == 4
    assert page.read_text() == before
    assert (tmp_path / "quick" / "new.md").read_text() == "4 turns\n"
    assert not (tmp_path / "benchmarks").exists()
    assert publish() == 9
    assert page.read_text() == "<!-- table: new -->\n9 turns\n<!-- end -->\n"
    assert (tmp_path / "benchmarks" / "results" / "new.json").exists()


STARTS_A_SESSION = """
setsid sleep 600 & child=$!
echo $child
trap "kill $child; wait $child; exit 1" TERM
wait
"""


def test_a_command_that_takes_too_long_ends_what_it_has_started_in_sessions_of_their_own(
    common: ModuleType, tmp_path: Path
) -> None:
    told = tmp_path / "told"
    with told.open("w") as out:
        assert common.finished(["sh", "-c", STARTS_A_SESSION], out.fileno(), dict(os.environ), 1.0) is None
    assert not psutil.pid_exists(int(told.read_text().split()[0]))
