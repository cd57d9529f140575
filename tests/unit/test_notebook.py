"""The notebook for newcomers: a Jupyter kernel runs it from top to bottom, and it shows what it promises."""

from __future__ import annotations

import asyncio
import base64
import io
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import PIL.Image
import psutil
import pytest
import torch
from nbclient import NotebookClient
from nbformat import NotebookNode
from traitlets.config import Config

from horovod_yolo.core.boxes import pairwise_iou, xywh_to_xyxy
from tests.helpers.command_lines import REPO
from tests.unit.test_docs import slug

NOTEBOOK = REPO / "examples/quickstart.ipynb"
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


def read(path: Path) -> PIL.Image.Image:
    with PIL.Image.open(path) as image:
        return image.convert("RGB")


def notebook() -> NotebookNode:
    """As it is committed, held against the format's schema."""
    found = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(found)
    return found


@dataclass(frozen=True)
class Shown:
    """What a reader sees below the cells."""

    cells: dict[str, list[Any]]  # outputs by the name of the cell
    folder: Path  # where it ran
    kernel: int  # its process, and the session of all that it has started

    def text(self, cell: str) -> str:
        return "".join(one.text for one in self.cells[cell] if one.output_type == "stream")

    def picture(self, cell: str) -> PIL.Image.Image:
        (encoded,) = (one.data["image/png"] for one in self.cells[cell] if "image/png" in one.get("data", {}))
        return PIL.Image.open(io.BytesIO(base64.b64decode(encoded)))

    def source(self) -> Path:
        """The picture that the last prediction was made on."""
        return self.folder / self.text("predict-it").splitlines()[0]

    def boxes(self) -> list[list[int]]:
        """Of the objects that were told there, as corners in pixels."""
        rows = re.findall(r"^\S+ [\d.]+ \[(.+)\]$", self.text("predict-it"), re.MULTILINE)
        return [[int(side) for side in row.split(", ")] for row in rows]


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shown]:
    """The notebook after a kernel has run it: in an empty folder, for a person without settings."""
    folder, home = tmp_path_factory.mktemp("notebook"), tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(home))
        for name in ("CONFIG", "DATA", "RUNTIME"):
            patch.setenv(f"JUPYTER_{name}_DIR", str(home / name.lower()))
        patch.setenv("IPYTHONDIR", str(home / "ipython"))
        patch.setenv("PYTHONPATH", str(REPO))
        yield asyncio.run(run(notebook(), folder, home / "kernel.json"))


async def run(cells: NotebookNode, folder: Path, address: Path) -> Shown:
    """Run all cells in a folder; an error in one is raised here.

    The kernel is talked to through sockets that are files beside ``address``, so no port is needed.
    """
    begun: list[int] = []

    def begin(**_: Any) -> None:
        begun.append(client.km.provisioner.pid)

    client = NotebookClient(
        cells,
        timeout=500,
        on_notebook_start=begin,
        resources={"metadata": {"path": str(folder)}},
        config=Config(ConnectionFileMixin={"transport": "ipc", "connection_file": str(address)}),
    )
    await client.async_execute(env=dict(os.environ))
    outputs = {cell.id: cell.outputs for cell in cells.cells if cell.cell_type == "code"}
    return Shown(outputs, folder, begun[0])


def test_the_kernel_and_all_that_it_started_are_gone(shown: Shown) -> None:
    sessions = {}
    for pid in psutil.pids():
        try:
            sessions[pid] = os.getsid(pid)
        except ProcessLookupError:
            continue
    assert os.getpid() in sessions
    assert shown.kernel not in sessions and shown.kernel not in sessions.values()


def test_no_cell_shows_an_error_or_a_warning(shown: Shown) -> None:
    for name, outputs in shown.cells.items():
        for one in outputs:
            assert one.output_type != "error", name
            assert one.get("name") != "stderr", f"{name}: {one.get('text')}"
        assert not re.search(r"warning|error|traceback", shown.text(name), re.IGNORECASE), shown.text(name)
    assert all(shown.cells[name] for name in shown.cells if name != "imports"), "a cell shows nothing"


def test_the_pictures_are_those_of_the_run(shown: Shown) -> None:
    (run,) = (shown.folder / "runs/train").iterdir()
    for cell, name in (("curves-shown", "results.png"), ("val-pictures", "val_predictions.png")):
        assert shown.picture(cell).convert("RGB").tobytes() == read(run / name).tobytes()
    assert re.match(r"\d+ ", shown.text("a-label"))
    assert shown.picture("a-label").size == read(shown.source()).size


def test_the_last_picture_has_boxes_on_digits(shown: Shown) -> None:
    """At least two, and most of them where the labels have a digit."""
    picture = shown.source()
    label = shown.folder / "datasets/notebook/labels/val" / f"{picture.stem}.txt"
    labelled = xywh_to_xyxy(torch.tensor(np.loadtxt(label, ndmin=2)[:, 1:])) * read(picture).width
    overlaps = pairwise_iou(torch.tensor(shown.boxes(), dtype=torch.float64), labelled).amax(1)
    assert len(overlaps) >= 2 and (overlaps > 0.5).float().mean() > 0.5, overlaps
    plain = np.asarray(read(picture).resize(shown.picture("predict-it").size), dtype=float)
    drawn = np.asarray(shown.picture("predict-it").convert("RGB"), dtype=float)
    changed = (np.abs(plain - drawn).max(-1) > 60).mean()
    assert changed > 0.01, "no boxes are drawn"


def test_scores_are_those_of_a_detector_that_has_learned(shown: Shown) -> None:
    (map50,) = re.findall(r"^mAP50 ([\d.]+),", shown.text("val-it"), re.MULTILINE)
    assert 0.1 < float(map50) <= 1
    told = re.findall(r"finds (\d+) objects, the weights found (\d+)", shown.text("export-it"))
    ((exported, weights),) = told
    assert exported == weights and int(weights) >= 2


def test_nothing_that_was_shown_is_committed() -> None:
    for cell in notebook().cells:
        assert not cell.get("outputs") and cell.get("execution_count") is None, cell.id
        assert not cell.metadata, cell.id


def test_its_links_lead_somewhere() -> None:
    texts = [cell.source for cell in notebook().cells if cell.cell_type == "markdown"]
    links = {link for text in texts for link in LINK.findall(text)}
    assert len(links) > 5
    for link in links:
        name, _, anchor = link.partition("#")
        target = NOTEBOOK.parent / name
        assert target.is_file(), link
        headings = re.findall(r"^#+ (.+)$", target.read_text(encoding="utf-8"), re.MULTILINE)
        assert not anchor or anchor in map(slug, headings), link
