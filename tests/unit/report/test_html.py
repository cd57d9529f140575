from __future__ import annotations

import base64
import hashlib
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from horovod_yolo.report.html import write_report
from horovod_yolo.report.plots import plot_results

EVIL = '<script>alert("x")</script>'
ROWS = [
    {"epoch": float(e), "train/box_loss": 0.1, "metrics/mAP_0.5": 0.8765432, "x/lr0": 0.01} for e in range(3)
]
VOID = {"meta", "img"}


class Page(HTMLParser):
    """Elements, attributes and text of a page; fails where elements do not nest."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))
        self.close()
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def results(**changes: Any) -> dict[str, Any]:
    entry = {
        "images": 4,
        "instances": 1234,
        "precision": 0.5,
        "recall": 0.25,
        "mAP50": 0.75,
        "mAP50-95": 0.125,
    }
    absent = {**dict.fromkeys(entry, -1.0), "images": 0, "instances": 0}
    return {
        "model": "yolov5n",
        "parameters": 1872157,
        "world_size": 2,
        "global_batch": 16,
        "epochs": 3,
        "seed": 2024,
        "wall_s": 3725.0,
        "metrics": {
            "precision": 0.5, "recall": 0.25, "mAP50": 0.8123, "mAP50-95": 0.4321,
            "per_class": [{"class": 0, **entry}, {"class": 1, **absent}],
        },
        "versions": {"torch": "2.13.0"},
        **changes,
    }  # fmt: skip


def test_the_page_says_what_the_run_was(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("lr0: 0.01  # <&>\n")
    page = Page(write_report(tmp_path, results(), ROWS, ["cat", "dog"]))
    for expected in ("yolov5n", "1,872,157", "2024", "1 h 02 min", "0.8123", "0.4321", "0.8765", "1,234"):
        assert expected in page.text, expected
    assert "cat" in page.text and "dog" not in page.text  # a class without instances has no numbers
    assert "lr0: 0.01  # <&>" in page.text and "torch: 2.13.0" in page.text
    assert str(tmp_path) in page.text


def test_the_page_says_which_head_gave_the_numbers(tmp_path: Path) -> None:
    metrics = {**results()["metrics"], "head": "one2one"}
    assert "one2one" in Page(write_report(tmp_path, results(metrics=metrics), ROWS)).text


@pytest.mark.parametrize("why", ["", f"torch 2.4.0 on a, {EVIL} on b"])
def test_the_page_says_whether_any_number_of_ranks_makes_the_same_bits(tmp_path: Path, why: str) -> None:
    found = results(slices=8, threads=3, bitwise=f"no: {why}" if why else "yes")
    page = Page(write_report(tmp_path, found, ROWS))
    for expected in (
        f"same bits on any ranks{'no' if why else 'yes'}",
        "slices of a batch8",
        "threads of a rank3",
    ):
        assert expected in page.text, expected
    assert ("may have other bits" in page.text) == bool(why) and why in page.text


def test_the_page_says_what_bound_the_run(tmp_path: Path) -> None:
    line = "bound by data (61% of the time; compute 39%, network 0%): try more --workers"
    assert line in Page(write_report(tmp_path, results(advice=line), ROWS)).text


def test_the_page_says_where_the_time_of_each_rank_went(tmp_path: Path) -> None:
    ranks = [
        {"host": EVIL, "total_s": 100.0, "data_wait_s": 10.0, "rank_wait_s": 30.0, "device": EVIL},
        {"host": "b", "total_s": 100.0, "data_wait_s": 0.0, "rank_wait_s": 5.0, "validation_s": 70.0},
    ]
    path = write_report(tmp_path, results(ranks=ranks, pace_of_rank=1), ROWS)
    text = path.read_text(encoding="utf-8")
    assert "<td>60%</td><td>10%</td><td>30%</td>" in text
    assert '<td class="best">1 set the pace</td><td>b</td><td>95%</td><td>0%</td><td>5%</td>' in text
    assert "<td>1 min 40 s</td><td>1 min 10 s</td><td>–</td>" in text
    page = Page(path)
    assert EVIL in page.text and page.tags.count("script") == 1
    many = Page(write_report(tmp_path, results(ranks=ranks * 9, pace_of_rank=1), ROWS))
    assert many.tags.count("details") == page.tags.count("details") + 1


def test_the_page_shows_which_ranks_were_where(tmp_path: Path) -> None:
    spent = {"total_s": 100.0, "data_wait_s": 10.0, "rank_wait_s": 30.0, "device": "H100"}
    ranks = [{**spent, "host": "ab"[rank // 2]} for rank in range(4)]
    text = write_report(tmp_path, results(ranks=ranks, pace_of_rank=3), ROWS).read_text(encoding="utf-8")
    (found,) = re.findall(r"<h2>Cluster</h2>(.*?)</div>", text, re.DOTALL)
    hosts = re.findall(r"<h3>(.)</h3><p>(.*?)</p><ul>(.*?)</ul>", found)
    assert [(host, on, re.findall(r"<span>(\d)</span>", bars)) for host, on, bars in hosts] == [
        ("a", "2 × H100", ["0", "1"]),
        ("b", "2 × H100", ["2", "3"]),
    ]
    assert found.count('<li class="slowest"><span>3</span>') == 1 and found.count("slowest") == 1
    assert re.findall(r"width:([\d.]+)%", hosts[0][2])[:3] == ["60.0", "10.0", "30.0"]
    alone = write_report(tmp_path, results(ranks=ranks[:1], pace_of_rank=0), ROWS)
    assert "<h2>Cluster</h2>" not in alone.read_text(encoding="utf-8"), "one rank needs no map"


def test_the_page_needs_nothing_else(tmp_path: Path) -> None:
    picture = tmp_path / "results.png"
    plot_results(ROWS, picture)
    path = write_report(tmp_path, results(), ROWS)
    page = Page(path)
    sources = [
        value for name, value in page.attributes if name in ("src", "href", "srcset", "data", "action")
    ]
    assert len(sources) == 1
    head, _, data = sources[0].partition(",")
    assert head == "data:image/png;base64"
    assert base64.b64decode(data) == picture.read_bytes()
    assert not {"link", "iframe", "object"} & set(page.tags)
    (script,) = re.findall(r"<script>(.*?)</script>", path.read_text(encoding="utf-8"), re.DOTALL)
    (policy,) = [v for name, v in page.attributes if name == "content" and v.startswith("default-src 'none'")]
    assert base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() in policy
    assert not re.search(r"https?://|@import|url\(", path.read_text(encoding="utf-8"))
    assert "Predictions" not in page.text  # there is no such picture


@pytest.mark.parametrize("where", ["class", "names", "model", "config", "version", "exit"])
def test_everything_given_is_escaped(tmp_path: Path, where: str) -> None:
    given, names = results(), ["cat", "dog"]
    if where == "class":
        given["metrics"]["per_class"][0]["name"] = EVIL
    elif where == "config":
        (tmp_path / "config.yaml").write_text(EVIL)
    elif where == "version":
        given["versions"] = {EVIL: EVIL}
    elif where in ("model", "exit"):
        given[where] = EVIL
    names = [EVIL, "dog"] if where == "names" else names
    page = Page(write_report(tmp_path, given, ROWS, names))
    assert page.tags.count("script") == 1  # ours
    assert EVIL in page.text


def test_a_run_that_came_nowhere_has_a_page_too(tmp_path: Path) -> None:
    page = Page(write_report(tmp_path, {"model": "yolov3"}, []))
    assert "yolov3" in page.text and "table" not in page.tags


def test_undefined_numbers_are_dashes(tmp_path: Path) -> None:
    given = results(metrics={"mAP50": float("nan"), "precision": np.nan})
    page = Page(write_report(tmp_path, given, [{"epoch": 0.0, "train/box_loss": float("inf")}]))
    assert page.text.count("–") == 3
    assert not re.search(r"\b(nan|inf)\b", page.text)


def test_writing_again_replaces_and_leaves_nothing_behind(tmp_path: Path) -> None:
    write_report(tmp_path, results(model="yolov3"), ROWS)
    path = write_report(tmp_path, results(model="yolov5s"), ROWS)
    assert path == tmp_path / "report.html"
    assert "yolov5s" in Page(path).text and "yolov3" not in Page(path).text
    assert list(tmp_path.iterdir()) == [path]
