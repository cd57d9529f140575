"""The report of a run: one HTML file that shows everything without a network, scripts or other files."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from horovod_yolo.io.atomic import replacing

_CSS = """
body { margin: 0; background: #f7f8fa; color: #1f2933; font: 15px/1.5 system-ui, "Segoe UI", sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 32px 24px 64px; }
h1 { font-size: 24px; margin: 0; } h2 { font-size: 17px; margin: 40px 0 12px; }
p.run { color: #66727f; margin: 4px 0 24px; overflow-wrap: anywhere; }
dl { display: grid; grid-template-columns: repeat(auto-fill, minmax(150px, 1fr)); gap: 12px; margin: 0 0 12px; }
dl div { background: #fff; border: 1px solid #e4e7eb; border-radius: 8px; padding: 10px 14px; }
dt { color: #66727f; font-size: 13px; } dd { margin: 0; font-size: 19px; overflow-wrap: anywhere; }
dl.metrics dd { font-size: 26px; font-weight: 600; color: #2f6db5; }
table { border-collapse: collapse; background: #fff; border: 1px solid #e4e7eb; width: 100%; }
th, td { padding: 6px 12px; text-align: right; border-top: 1px solid #e4e7eb; font-variant-numeric: tabular-nums; }
th { color: #66727f; font-weight: 500; font-size: 13px; border-top: 0; }
th:first-child, td:first-child { text-align: left; overflow-wrap: anywhere; }
figure { margin: 0 0 24px; } figcaption { font-weight: 600; margin-bottom: 8px; }
img { max-width: 100%; background: #fff; border: 1px solid #e4e7eb; border-radius: 8px; }
pre { background: #fff; border: 1px solid #e4e7eb; border-radius: 8px; padding: 14px; overflow-x: auto; font-size: 13px; }
summary { cursor: pointer; color: #2f6db5; }
"""  # noqa: E501
_MEDIA_TYPES = {".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg"}
_FACTS = {
    "model": "model",
    "head": "head",  # which gave the numbers, where there are several
    "parameters": "parameters",
    "world_size": "ranks",
    "global_batch": "global batch",
    "epochs": "epochs",
    "steps": "steps",
    "seed": "seed",
    "images_per_s": "images/s",
    "wall_s": "time",
    "exit": "exit",
}
_METRICS = ("mAP50-95", "mAP50", "precision", "recall")
_CLASS_COLUMNS = ("images", "instances", "precision", "recall", "mAP50", "mAP50-95")
_SHOWN_COLUMNS = ("epoch", "train/", "metrics/", "images_per_s")  # how those of results.csv begin


def write_report(
    run: Path,
    results: Mapping[str, Any],
    rows: Sequence[Mapping[str, float]],
    images: Sequence[tuple[str, Path]],
    names: Sequence[str] = (),
) -> Path:
    """Write ``report.html`` into the run folder, complete or not at all, and return its path.

    Args:
        run: the run folder; its ``config.yaml`` is shown where there is one.
        results: what ``results.json`` holds.
        rows: the lines of ``results.csv``.
        images: titles and PNG or JPEG files to embed; files that are not there are left out.
        names: of the classes, where the entries of ``per_class`` carry none.
    """
    metrics = results.get("metrics") or {}
    given = {**metrics, **results}
    config = run / "config.yaml"
    sections = [
        _cards({name: metrics[name] for name in _METRICS if name in metrics}, "metrics"),
        _cards({title: given[key] for key, title in _FACTS.items() if key in given}, "facts"),
        _line(results.get("advice", "")),
        *(_figure(title, path) for title, path in images if path.is_file()),
        _class_table(metrics.get("per_class") or (), names),
        _epoch_table(rows),
        _text("Configuration", config.read_text(encoding="utf-8")) if config.is_file() else "",
        _text("Versions", "\n".join(f"{k}: {v}" for k, v in (results.get("versions") or {}).items())),
    ]
    page = _PAGE.format(
        title=escape(str(results.get("model", "training"))),
        run=escape(str(run)),
        css=_CSS,
        body="\n".join(filter(None, sections)),
    )
    path = run / "report.html"
    with replacing(path) as file:
        file.write(page.encode(errors="backslashreplace"))  # a folder's name may be no text
    return path


_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{css}</style>
</head>
<body>
<main>
<h1>{title}</h1>
<p class="run">{run}</p>
{body}
</main>
</body>
</html>
"""


def _number(value: Any, name: str = "") -> str:
    """A value as a reader wants it: thousands apart, four digits, a dash for what is undefined."""
    if name == "time":
        minutes, seconds = divmod(round(float(value)), 60)
        return (
            f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{minutes} min {seconds:02d} s"
        )
    if isinstance(value, float):
        if not math.isfinite(value) or value == -1:
            return "–"
        return f"{value:,.0f}" if value.is_integer() or abs(value) >= 1000 else f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) and name != "seed" else escape(str(value))


def _cards(values: Mapping[str, Any], kind: str) -> str:
    cards = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{_number(value, name)}</dd></div>" for name, value in values.items()
    )
    return f'<dl class="{kind}">{cards}</dl>' if cards else ""


def _line(text: str) -> str:
    return f"<p>{escape(text)}</p>" if text else ""


def _figure(title: str, path: Path) -> str:
    data = base64.b64encode(path.read_bytes()).decode("ascii")
    source = f"data:{_MEDIA_TYPES[path.suffix.lower()]};base64,{data}"
    caption = escape(title)
    return f'<figure><figcaption>{caption}</figcaption><img alt="{caption}" src="{source}"></figure>'


def _table(title: str, header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in header)
    body = "\n".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in line)}</tr>" for line in lines)
    return f"<h2>{escape(title)}</h2>\n<table><tr>{head}</tr>\n{body}</table>" if lines else ""


def _class_table(per_class: Sequence[Mapping[str, Any]], names: Sequence[str]) -> str:
    """A line a class that has instances: the others have no numbers."""
    lines = []
    for entry in per_class:
        class_id = int(entry["class"])
        name = entry.get("name") or (names[class_id] if class_id < len(names) else str(class_id))
        if entry["instances"]:
            lines.append([escape(str(name)), *(_number(entry[column]) for column in _CLASS_COLUMNS)])
    return _table("Classes", ["class", *_CLASS_COLUMNS], lines)


def _epoch_table(rows: Sequence[Mapping[str, float]]) -> str:
    present = dict.fromkeys(name for row in rows for name in row)
    columns = [name for start in _SHOWN_COLUMNS for name in present if name.startswith(start)]
    lines = [[_number(row.get(name, math.nan)) for name in columns] for row in rows]
    header = [name.rpartition("/")[2].replace("_", " ") for name in columns]
    table = _table("Epochs", header, lines)
    return f"<details><summary>All epochs</summary>{table}</details>" if table else ""


def _text(title: str, text: str) -> str:
    return f"<h2>{escape(title)}</h2>\n<pre>{escape(text)}</pre>" if text.strip() else ""
