"""Pieces of pages that show everything without a network, scripts or other files."""

from __future__ import annotations

import base64
import math
from collections.abc import Iterable, Mapping, Sequence
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
.pictures { display: grid; grid-template-columns: repeat(auto-fill, minmax(240px, 1fr)); gap: 12px; align-items: start; }
.pictures figure { margin: 0; min-width: 0; } .pictures figcaption { font-weight: 400; color: #66727f; font-size: 13px;
  overflow-wrap: anywhere; margin: 4px 0 0; }
.plots { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 320px), 1fr)); gap: 12px; }
.plots figure { margin: 0; } .wide { overflow-x: auto; } .wide th { white-space: nowrap; }
img { max-width: 100%; background: #fff; border: 1px solid #e4e7eb; border-radius: 8px; }
pre { background: #fff; border: 1px solid #e4e7eb; border-radius: 8px; padding: 14px; overflow-x: auto; font-size: 13px; }
summary { cursor: pointer; color: #2f6db5; }
"""  # noqa: E501
_MEDIA_TYPES = {".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg"}
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


def write_page(path: Path, title: str, place: str, sections: Iterable[str]) -> None:
    """Write a page, complete or not at all.

    Args:
        path: of the page.
        title: of the page.
        place: what it is about.
        sections: HTML; empty ones are left out.
    """
    body = "\n".join(filter(None, sections))
    page = _PAGE.format(title=escape(title), run=escape(place), css=_CSS, body=body)
    with replacing(path) as file:
        file.write(page.encode(errors="backslashreplace"))  # a folder's name may be no text


def number(value: Any, name: str = "") -> str:
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


def cards(values: Mapping[str, Any], kind: str) -> str:
    """Names with their values; ``kind`` is their class."""
    cards = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{number(value, name)}</dd></div>" for name, value in values.items()
    )
    return f'<dl class="{kind}">{cards}</dl>' if cards else ""


def line(text: str) -> str:
    """A paragraph."""
    return f"<p>{escape(text)}</p>" if text else ""


def figure(title: str, path: Path) -> str:
    """A picture file, embedded."""
    data = base64.b64encode(path.read_bytes()).decode("ascii")
    source = f"data:{_MEDIA_TYPES[path.suffix.lower()]};base64,{data}"
    caption = escape(title)
    return f'<figure><figcaption>{caption}</figcaption><img alt="{caption}" src="{source}"></figure>'


def table(title: str, header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A table whose cells are HTML already."""
    head = "".join(f"<th>{escape(name)}</th>" for name in header)
    body = "\n".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in line)}</tr>" for line in lines)
    return f"<h2>{escape(title)}</h2>\n<table><tr>{head}</tr>\n{body}</table>" if lines else ""


def preformatted(title: str, text: str) -> str:
    """Text as it is."""
    return f"<h2>{escape(title)}</h2>\n<pre>{escape(text)}</pre>" if text.strip() else ""
