"""The report of a run: one HTML file."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from horovod_yolo.core.results import SCORES
from horovod_yolo.report.page import cards, figure, line, number, preformatted, table, write_page
from horovod_yolo.report.ranks import rank_sections

FACTS = {
    "model": "model",
    "head": "head",  # which gave the numbers, where there are several
    "parameters": "parameters",
    "teacher": "teacher",
    "world_size": "ranks",
    "global_batch": "global batch",
    "slices": "slices of a batch",
    "slices_of_ranks": "slices of the ranks",
    "threads": "threads of a rank",
    "bitwise": "same bits on any ranks",
    "epochs": "epochs",
    "steps": "steps",
    "seed": "seed",
    "images_per_s": "images/s",
    "wall_s": "time",
    "time_used_s": "time of --time",
    "exit": "exit",
}
_CLASS_COLUMNS = ("images", "instances", "precision", "recall", "mAP50", "mAP50-95")
FIGURES = {
    "results.png": "Training",
    "PR_curve.png": "Validation",
    "confusion_matrix.png": "Confusion matrix",
    "worst_images.png": "Validation images with most mistakes",
    "val_predictions.png": "Predictions on validation images",
    "train_samples.png": "Training samples",
    "labels.png": "Labels",
}
_SHOWN_COLUMNS = ("epoch", "train/", "metrics/", "images_per_s")  # how those of results.csv begin


def write_report(
    run: Path,
    results: Mapping[str, Any],
    rows: Sequence[Mapping[str, float]],
    names: Sequence[str] = (),
) -> Path:
    """Write ``report.html`` into the run folder, complete or not at all, and return its path.

    Args:
        run: the run folder; of its pictures and ``config.yaml`` those are shown that are there.
        results: what ``results.json`` holds.
        rows: the lines of ``results.csv``.
        names: of the classes, where the entries of ``per_class`` carry none.
    """
    metrics = results.get("metrics") or {}
    bits, _, unlike = str(results.get("bitwise", "")).partition(": ")
    given = {**metrics, **results, **({"bitwise": bits} if bits else {})}
    config = run / "config.yaml"
    sections = [
        cards({name: metrics[name] for name in SCORES if name in metrics}, "metrics"),
        cards({title: given[key] for key, title in FACTS.items() if key in given}, "facts"),
        line(unlike and f"On another number of ranks this run may have other bits: {unlike}"),
        *(line(fault["words"]) for fault in results.get("faults") or ()),
        line(results.get("advice", "")),
        *(figure(title, run / name, wide=True) for name, title in FIGURES.items() if (run / name).is_file()),
        *rank_sections(results.get("ranks") or (), results.get("pace_of_rank")),
        _class_table(metrics.get("per_class") or (), names),
        _epoch_table(rows),
        preformatted("Configuration", config.read_text(encoding="utf-8")) if config.is_file() else "",
        preformatted("Versions", "\n".join(f"{k}: {v}" for k, v in (results.get("versions") or {}).items())),
    ]
    path = run / "report.html"
    write_page(path, str(results.get("model", "training")), str(run), sections)
    return path


def _class_table(per_class: Sequence[Mapping[str, Any]], names: Sequence[str]) -> str:
    """A line a class that has instances: the others have no numbers."""
    lines = []
    for entry in per_class:
        class_id = int(entry["class"])
        name = entry.get("name") or (names[class_id] if class_id < len(names) else str(class_id))
        if entry["instances"]:
            lines.append([escape(str(name)), *(number(entry[column]) for column in _CLASS_COLUMNS)])
    return table("Classes", ["class", *_CLASS_COLUMNS], lines)


def _epoch_table(rows: Sequence[Mapping[str, float]]) -> str:
    present = dict.fromkeys(name for row in rows for name in row)
    columns = [name for start in _SHOWN_COLUMNS for name in present if name.startswith(start)]
    lines = [[number(row.get(name, math.nan)) for name in columns] for row in rows]
    header = [name.rpartition("/")[2].replace("_", " ") for name in columns]
    whole = table("Epochs", header, lines)
    return f"<details><summary>All epochs</summary>{whole}</details>" if whole else ""
