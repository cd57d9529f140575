"""The pages in a real browser: readable by all (axe-core), on a desk and a phone, dark and light."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from horovod_yolo.assembly.statistics import StatsOptions, data_stats
from horovod_yolo.cli import main
from horovod_yolo.distributed.local import LocalCommunicator
from horovod_yolo.report.html import write_report
from horovod_yolo.report.plots import plot_results
from tests.helpers import browser
from tests.unit.report.test_comparison import run_folder
from tests.unit.report.test_html import ROWS, results

LOOKS = [(1280, False), (1280, True), (390, False), (390, True)]


@pytest.fixture(autouse=True)
def a_browser_is_there() -> None:
    reason = browser.why_not()
    if reason is not None:
        pytest.skip(f"LOUD SKIP: {reason}; pages are not looked at")


@pytest.mark.parametrize(("width", "dark"), LOOKS)
@pytest.mark.parametrize("kind", ["report", "comparison", "statistics"])
def test_a_page_is_fit_to_be_read(tmp_path: Path, digits: Path, kind: str, width: int, dark: bool) -> None:
    folders = [
        run_folder(tmp_path / name, 0.5 + len(name) / 100, 0.01 * len(name)) for name in ("a", "long" * 30)
    ]
    plot_results(ROWS, folders[0] / "results.png")
    page = folders[0] / "report.html" if kind == "report" else tmp_path / "page.html"
    runs = folders[:1] if kind == "report" else folders
    if kind == "statistics":
        options = StatsOptions(data=str(digits), out=page, cache_dir=str(tmp_path / "cache"))
        assert data_stats(options, LocalCommunicator()) == page
    else:
        assert main(["report", *map(str, runs), "--out", str(page)]) == 0
    found = browser.look(page, tmp_path, width=width, dark=dark)
    assert found == {"wide": 0, "broken": 0, "violations": []}


ASKED = """<script>
const [classes] = document.querySelectorAll("div.table table"), box = document.querySelector(".filter input");
classes.rows[0].cells[1].querySelector("button").click();
classes.rows[0].cells[1].querySelector("button").click();
box.value = "Class-1";
box.dispatchEvent(new Event("input"));
const told = document.createElement("pre");
told.id = "asked";
const shown = [...classes.rows].filter(row => !row.hidden);
told.textContent = shown.map(row => row.cells[0].textContent).join(" ");
document.body.append(told);
</script>"""


def test_a_long_table_is_sorted_and_filtered(tmp_path: Path) -> None:
    given = results()
    entry = given["metrics"]["per_class"][0]
    given["metrics"]["per_class"] = [
        {**entry, "class": k, "name": f"class-{k}", "images": 7 * k % 12} for k in range(12)
    ]
    path = write_report(tmp_path, given, [])
    as_it_is = browser.shown(path.as_uri(), tmp_path, width=1280, dark=False, milliseconds=2000)
    assert '<label class="filter">' in as_it_is, "its policy lets its script run"
    text = path.read_text(encoding="utf-8")
    page = tmp_path / "asked.html"
    page.write_text(re.sub(r"<meta http-equiv[^>]*>", "", text).replace("</body>", f"{ASKED}</body>"))
    shown = browser.shown(page.as_uri(), tmp_path, width=1280, dark=False, milliseconds=2000)
    assert '<pre id="asked">class class-10 class-1 class-11</pre>' in shown, "most images first"
    assert "3 of 12" in shown


def test_the_browser_sees_faults(tmp_path: Path) -> None:
    page = tmp_path / "bad.html"
    page.write_text('<html><body><img src="absent.png"><p style="width: 3000px">x</p></body></html>')
    found = browser.look(page, tmp_path, width=390, dark=False)
    assert found["wide"] > 2000 and found["broken"] == 1
    assert {"image-alt", "html-has-lang"} <= {name for name, *_ in found["violations"]}
