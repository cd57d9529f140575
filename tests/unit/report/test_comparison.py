"""Runs side by side, by the command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from horovod_yolo.cli import main
from horovod_yolo.report.comparison import names_of
from tests.unit.report.test_html import EVIL, Page, results


def run_folder(folder: Path, map50: float, lr0: float, **changes: Any) -> Path:
    folder.mkdir(parents=True)
    given = results(**changes)
    given["metrics"]["mAP50"] = map50
    spent = {"device": "cpu", "total_s": 9.0, "data_wait_s": 1.0, "rank_wait_s": 2.0, "validation_s": 1.0}
    given["ranks"] = [{**spent, "host": f"host-{rank // 8}"} for rank in range(16)]
    given["pace_of_rank"] = 3
    (folder / "results.json").write_text(json.dumps(given))
    (folder / "results.csv").write_text(
        "epoch,train/box_loss,metrics/mAP_0.5,images_per_s\n0,0.1,,9\n1,0.05,0.5,9\n"
    )
    (folder / "config.yaml").write_text(
        yaml.safe_dump({"batch_size": 16, "hyp": {"lr0": lr0, "mosaic": 1.0}})
    )
    return folder


def test_two_runs_stand_side_by_side(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = run_folder(tmp_path / "runs" / "a", 0.5, 0.01, slices=4, threads=2, bitwise="yes")
    second = run_folder(
        tmp_path / "runs" / "b", 0.625, 0.02, model=EVIL, world_size=7, bitwise="no: --sync-bn"
    )
    out = tmp_path / "page.html"
    assert main(["report", str(first), str(second), "--out", str(out)]) == 0
    assert capsys.readouterr().out == f"{out}\n"
    page = Page(out)
    assert page.tags.count("script") == 1 and EVIL in page.text and page.tags.count("img") == 1
    text = out.read_text(encoding="utf-8")
    assert '<td>mAP50</td><td>0.5</td><td class="best">0.625</td>' in text
    assert "<td>hyp.lr0</td><td>0.01</td><td>0.02</td>" in text
    assert "<td>slices of a batch</td><td>4</td><td>–</td>" in text
    assert "<td>same bits on any ranks</td><td>yes</td><td>no: --sync-bn</td>" in text
    assert "hyp.mosaic" not in text and "batch_size" not in text  # they are the same


def test_one_run_gets_its_page_anew(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "a", 0.5, 0.01)
    assert main(["report", str(folder)]) == 0
    assert "0.4321" in Page(folder / "report.html").text


@pytest.mark.parametrize("fault", ["absent", "no json", "no table", "no settings", "no folder for the page"])
def test_what_cannot_be_shown_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], fault: str
) -> None:
    folders = [run_folder(tmp_path / name, 0.5, 0.01) for name in "ab"]
    out = tmp_path / "page.html"
    if fault == "absent":
        (folders[1] / "results.json").unlink()
    elif fault == "no json":
        (folders[1] / "results.json").write_text("{")
    elif fault == "no table":
        (folders[1] / "results.csv").write_text("epoch,x\n0,much\n")
    elif fault == "no settings":
        (folders[1] / "config.yaml").write_text("a: [")
    else:
        out = tmp_path / "nowhere" / "page.html"
    assert main(["report", *map(str, folders), "--out", str(out)]) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: ") and not out.exists()
    assert str(folders[1] if "page" not in fault else out) in error


def test_runs_are_named_by_what_differs(tmp_path: Path) -> None:
    assert names_of([tmp_path / "x" / "a", tmp_path / "x" / "b"]) == ["a", "b"]
    assert names_of([tmp_path / "x" / "a", tmp_path / "y" / "a"]) == ["x/a", "y/a"]
    assert names_of([tmp_path / "x" / "a", tmp_path / "x" / "a"]) == ["a", "a"]
