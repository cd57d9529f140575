"""Runs side by side: one HTML file."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from horovod_yolo.core.results import SCORES
from horovod_yolo.report.finished import FinishedRun
from horovod_yolo.report.html import FACTS
from horovod_yolo.report.page import figure, number, table, write_page
from horovod_yolo.report.plots import plot_comparison


def write_comparison(runs: Sequence[FinishedRun], out: Path) -> None:
    """Write a page with the numbers, settings and curves of several runs.

    Args:
        runs: two or more.
        out: the HTML file.
    """
    names = names_of([run.folder for run in runs])
    metrics = [run.results.get("metrics") or {} for run in runs]
    facts = [{title: run.results[key] for key, title in FACTS.items() if key in run.results} for run in runs]
    with tempfile.TemporaryDirectory() as folder:
        curves = Path(folder) / "curves.png"
        plot_comparison({name: run.rows for name, run in zip(names, runs, strict=True)}, curves)
        sections = [
            _side_by_side("Metrics", names, metrics, SCORES, highest=True),
            figure("Training", curves, wide=True),
            _side_by_side("Runs", names, facts, list(dict.fromkeys(key for fact in facts for key in fact))),
            _side_by_side("Settings that differ", names, *_differing([_flat(run.config) for run in runs])),
            _classes(names, metrics),
        ]
    write_page(out, " · ".join(names), ", ".join(str(run.folder) for run in runs), sections)


def names_of(folders: Sequence[Path]) -> list[str]:
    """Short names that tell folders apart: what is left of their paths without what they share."""
    whole = [str(folder.resolve()) for folder in folders]
    shared = os.path.commonpath(whole) if len(set(whole)) > 1 else str(Path(whole[0]).parent)
    return [os.path.relpath(path, shared) for path in whole]


def _side_by_side(
    title: str,
    names: Sequence[str],
    values: Sequence[Mapping[str, Any]],
    keys: Sequence[str],
    *,
    highest: bool = False,
) -> str:
    """A line a key and a column a run; ``highest``: the best of a line is marked."""
    lines = []
    for key in keys:
        found = [value.get(key) for value in values]
        if any(value is not None for value in found):
            lines.append([escape(key), *_cells(key, found, highest=highest)])
    return table(title, ["", *names], lines)


def _cells(key: str, values: Sequence[Any], *, highest: bool) -> list[str]:
    texts = ["–" if value is None else number(value, key) for value in values]
    numbers = [value for value in values if isinstance(value, float) and math.isfinite(value)]
    best = max(numbers, default=None) if highest and len(set(numbers)) > 1 else None
    return [
        f'<td class="best">{text}</td>' if best is not None and value == best else text
        for text, value in zip(texts, values, strict=True)
    ]


def _flat(config: Mapping[str, Any]) -> dict[str, Any]:
    """Settings by name; those of a group as ``group.name``."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        inner = _flat(value) if isinstance(value, Mapping) else {}
        flat |= {f"{key}.{name}": each for name, each in inner.items()} or {key: value}
    return flat


def _differing(configs: Sequence[Mapping[str, Any]]) -> tuple[list[dict[str, str]], list[str]]:
    """All settings as text, and the names of those that are not the same everywhere."""
    texts = [
        {key: "–" if value is None else str(value) for key, value in config.items()} for config in configs
    ]
    names = dict.fromkeys(name for text in texts for name in text)
    return texts, [name for name in names if len({text.get(name) for text in texts}) > 1]


def _classes(names: Sequence[str], metrics: Sequence[Mapping[str, Any]]) -> str:
    """mAP50-95 of each class that has objects."""
    by_class = [
        {str(entry.get("name") or entry["class"]): entry["mAP50-95"] for entry in each.get("per_class") or ()}
        for each in metrics
    ]
    keys = dict.fromkeys(name for scores in by_class for name, score in scores.items() if score >= 0)
    return _side_by_side("mAP50-95 of each class", names, by_class, list(keys), highest=True)
