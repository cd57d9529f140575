"""What finished runs have left, for their pages."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from horovod_yolo.core.errors import UserError


@dataclass(frozen=True)
class FinishedRun:
    """A run folder with a ``results.json``."""

    folder: Path
    results: Mapping[str, Any]
    rows: Sequence[Mapping[str, float]]  # of results.csv, epochs from 1
    config: Mapping[str, Any]

    @classmethod
    def read(cls, folder: Path) -> FinishedRun:
        """Read a run folder.

        Raises:
            UserError: it is none, its run has not ended, or a file of it cannot be read.
        """
        path = folder / "results.json"
        if not path.is_file():
            fix = "name the folder of a run that has ended, such as runs/train/exp"
            raise UserError(f"there is no {path.name}", where=folder, fix=fix)
        config = folder / "config.yaml"
        try:
            results = json.loads(path.read_text(encoding="utf-8"))
            settings = yaml.safe_load(config.read_text(encoding="utf-8")) if config.is_file() else {}
            return cls(folder, results, epochs_of(folder), settings)
        except (OSError, ValueError, yaml.YAMLError) as error:
            raise UserError(f"not readable: {error}", where=folder, fix="name another run") from None


def epochs_of(folder: Path) -> list[dict[str, float]]:
    """The rows of a run's ``results.csv``, whose epochs count from 0 as YOLOv5's do, with epochs from 1.

    Raises:
        OSError, ValueError: the file is not there or is no such table.
    """
    rows = read_rows(folder / "results.csv")
    return [{**row, "epoch": row["epoch"] + 1} for row in rows]


def read_rows(path: Path) -> list[dict[str, float]]:
    """The rows of a ``results.csv``; empty cells are left out."""
    with path.open(newline="") as file:
        return [{key: float(cell) for key, cell in row.items() if cell} for row in csv.DictReader(file)]
