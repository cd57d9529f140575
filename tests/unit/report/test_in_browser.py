"""The pages in a real browser: readable by all (axe-core), on a desk and a phone, dark and light."""

from __future__ import annotations

from pathlib import Path

import pytest

from horovod_yolo.cli import main
from horovod_yolo.report.plots import plot_results
from tests.helpers import browser
from tests.unit.report.test_comparison import run_folder
from tests.unit.report.test_html import ROWS

LOOKS = [(1280, False), (1280, True), (390, False), (390, True)]


@pytest.fixture(autouse=True)
def a_browser_is_there() -> None:
    reason = browser.why_not()
    if reason is not None:
        pytest.skip(f"LOUD SKIP: {reason}; pages are not looked at")


@pytest.mark.parametrize(("width", "dark"), LOOKS)
@pytest.mark.parametrize("kind", ["report", "comparison"])
def test_a_page_is_fit_to_be_read(tmp_path: Path, kind: str, width: int, dark: bool) -> None:
    folders = [
        run_folder(tmp_path / name, 0.5 + len(name) / 100, 0.01 * len(name)) for name in ("a", "long" * 30)
    ]
    plot_results(ROWS, folders[0] / "results.png")
    page = folders[0] / "report.html" if kind == "report" else tmp_path / "page.html"
    runs = folders[:1] if kind == "report" else folders
    assert main(["report", *map(str, runs), "--out", str(page)]) == 0
    found = browser.look(page, tmp_path, width=width, dark=dark)
    assert found == {"wide": 0, "broken": 0, "violations": []}


def test_the_browser_sees_faults(tmp_path: Path) -> None:
    page = tmp_path / "bad.html"
    page.write_text('<html><body><img src="absent.png"><p style="width: 3000px">x</p></body></html>')
    found = browser.look(page, tmp_path, width=390, dark=False)
    assert found["wide"] > 2000 and found["broken"] == 1
    assert {"image-alt", "html-has-lang"} <= {name for name, *_ in found["violations"]}
