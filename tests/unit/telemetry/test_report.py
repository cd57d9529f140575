"""The pictures and the page of a run that was just trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

from horovod_yolo.assembly.run import new_run
from horovod_yolo.assembly.settings import settings_of
from horovod_yolo.assembly.train import train
from horovod_yolo.distributed.local import LocalCommunicator


def test_what_a_run_of_an_epoch_shows(digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: dict[str, Figure] = {}
    save = Figure.savefig

    def kept(self: Figure, file: Any, **how: Any) -> None:
        save(self, file, **how)
        drawn[Path(file.name).name.partition(".png")[0].lstrip(".")] = self

    monkeypatch.setattr(Figure, "savefig", kept)
    given = {"cfg": "yolov5n", "imgsz": 64, "batch_size": 28, "epochs": 1, "workers": 0, "device": "cpu"}
    run = new_run(settings_of({"data": str(digits), **given, "project": str(tmp_path)}), LocalCommunicator())
    train(run, LocalCommunicator())

    lines = [line for axis in drawn["results"].axes for line in axis.lines]
    assert lines and all([*line.get_xdata()] == [1] for line in lines), "as on the screen"
    epochs = (run.folder / "report.html").read_text().partition("<summary>All epochs</summary>")[2]
    assert epochs.partition("</tr>")[2].lstrip().startswith("<tr><td>1</td>")
    assert drawn["val_predictions"].get_supxlabel() == "no detection of confidence 0.25 or more"
    assert drawn["train_samples"].get_supxlabel() == ""
