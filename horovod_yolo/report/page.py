"""Pieces of pages that need no network and no other files. A script of theirs sorts and filters tables."""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

from horovod_yolo.io.atomic import replacing

STYLE = """
:root { color-scheme: light dark; --page: #f7f8fa; --sheet: #fff; --ink: #1f2933; --faint: #5f6b77; --line: #e4e7eb; --mark: #2a63a6; }
@media (prefers-color-scheme: dark) {
  :root { --page: #14181d; --sheet: #1d232a; --ink: #e4e8ec; --faint: #9fabb7; --line: #323b45; --mark: #7db3ee; }
}
body { margin: 0; background: var(--page); color: var(--ink); font: 15px/1.5 system-ui, "Segoe UI", sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 32px 24px 64px; }
@media (max-width: 600px) { main { padding: 20px 12px 40px; } }
h1 { font-size: 24px; margin: 0; overflow-wrap: anywhere; } h2 { font-size: 17px; margin: 40px 0 12px; }
p.run { color: var(--faint); margin: 4px 0 24px; overflow-wrap: anywhere; }
dl { display: grid; grid-template-columns: repeat(auto-fill, minmax(150px, 1fr)); gap: 12px; margin: 0 0 12px; }
dl div, table, pre { background: var(--sheet); border: 1px solid var(--line); }
dl div { border-radius: 8px; padding: 10px 14px; }
dt { color: var(--faint); font-size: 13px; } dd { margin: 0; font-size: 19px; overflow-wrap: anywhere; }
dl.metrics dd { font-size: 26px; font-weight: 600; color: var(--mark); }
div.table { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; }
th, td { padding: 6px 12px; text-align: right; border-top: 1px solid var(--line); font-variant-numeric: tabular-nums; }
th { color: var(--faint); font-weight: 500; font-size: 13px; border-top: 0; }
th:first-child, td:first-child { text-align: left; overflow-wrap: anywhere; min-width: 90px; }
td.best { font-weight: 700; color: var(--mark); }
figure { margin: 24px 0; } figcaption { font-weight: 600; margin-bottom: 8px; }
.pictures { display: grid; grid-template-columns: repeat(auto-fill, minmax(240px, 1fr)); gap: 12px; align-items: start; }
.pictures figure { margin: 0; min-width: 0; }
.pictures figcaption { font-weight: 400; color: var(--faint); font-size: 13px; overflow-wrap: anywhere; margin: 4px 0 0; }
.plots { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 320px), 1fr)); gap: 12px; }
.plots figure { margin: 0; }
@media (max-width: 600px) { .scroll { overflow-x: auto; } .scroll img { max-width: none; width: 780px; } }
th button { all: unset; cursor: pointer; } th button:focus-visible { outline: 2px solid var(--mark); }
th[aria-sort=ascending] button::after { content: " ↑"; } th[aria-sort=descending] button::after { content: " ↓"; }
.filter { display: block; color: var(--faint); font-size: 13px; margin-bottom: 8px; }
.filter input { font: inherit; color: var(--ink); background: var(--sheet); border: 1px solid var(--faint); border-radius: 6px; padding: 4px 8px; }
tr[hidden] { display: none; }
img { max-width: 100%; background: #fff; border: 1px solid var(--line); border-radius: 8px; }
.hosts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 240px), 1fr)); gap: 12px; }
.hosts section { background: var(--sheet); border: 1px solid var(--line); border-radius: 8px; padding: 10px 14px; min-width: 0; }
.hosts h3 { margin: 0; font-size: 15px; overflow-wrap: anywhere; } .hosts p { margin: 0; color: var(--faint); font-size: 13px; }
.hosts ul { list-style: none; margin: 8px 0 0; padding: 0; } .hosts li { display: flex; align-items: center; gap: 8px; font-size: 13px; }
.hosts li > span:first-child { width: 2.5em; text-align: right; } .hosts .slowest { font-weight: 700; color: var(--mark); }
.hosts .bar { display: flex; flex: 1; height: 10px; background: var(--line); } .part { display: inline-block; width: 10px; height: 10px; }
pre { border-radius: 8px; padding: 14px; overflow-x: auto; font-size: 13px; }
summary { cursor: pointer; color: var(--mark); }
"""  # noqa: E501
_MEDIA_TYPES = {".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg"}
_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
{head}<title>{title}</title>
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
    script = files("horovod_yolo.report").joinpath("tables.js").read_text(encoding="utf-8")
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src {digest(script)}"
    head = f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
    content = whole_page(
        title, place, "\n".join([*filter(None, sections), f"<script>{script}</script>"]), head
    )
    with replacing(path) as file:
        file.write(content)


def whole_page(title: str, place: str, body: str, head: str = "", style: str = STYLE) -> bytes:
    """A page of HTML that is one already, as a file holds it."""
    page = _PAGE.format(title=escape(title), run=escape(place), head=head, css=style, body=body)
    return page.encode(errors="backslashreplace")  # a folder's name may be no text


def digest(content: str) -> str:
    """How a page's policy names a script or style that may be used."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"


def number(value: Any, name: str = "") -> str:
    """A value as a reader wants it: thousands apart, four digits, a dash for what is undefined."""
    if name in ("time", "time of --time"):
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
    """Names and numbers in boxes; ``kind`` is their class."""
    inside = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{_short(value) or number(value, name)}</dd></div>"
        for name, value in values.items()
    )
    return f'<dl class="{kind}">{inside}</dl>' if inside else ""


def _short(value: Any) -> str:
    """A small number that would be too long for a box."""
    return f"{value:.2g}" if isinstance(value, float) and 0 < abs(value) < 0.001 else ""


def line(words: str) -> str:
    """A paragraph."""
    return f"<p>{escape(words)}</p>" if words else ""


def figure(title: str, path: Path, *, wide: bool = False) -> str:
    """A PNG or JPEG file, embedded; one that is ``wide`` is scrolled on a phone instead of made small."""
    data = base64.b64encode(path.read_bytes()).decode("ascii")
    source = f"data:{_MEDIA_TYPES[path.suffix.lower()]};base64,{data}"
    caption = escape(title)
    image = f'<img alt="{caption}" src="{source}">'
    if wide:
        image = f'<div class="scroll" tabindex="0" role="region" aria-label="{caption}">{image}</div>'
    return f"<figure><figcaption>{caption}</figcaption>{image}</figure>"


def table(title: str, header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A table of cells that are HTML already; one that begins with ``<td`` is a whole cell."""
    head = "".join(f'<th scope="col">{escape(name)}</th>' if name else "<td></td>" for name in header)
    rows = ("".join(c if c.startswith("<td") else f"<td>{c}</td>" for c in cells) for cells in lines)
    body = "\n".join(f"<tr>{row}</tr>" for row in rows)
    # What scrolls must be reachable by keyboard, and have a name.
    box = f'<div class="table" tabindex="0" role="region" aria-label="{escape(title)}">'
    return f"<h2>{escape(title)}</h2>\n{box}<table><tr>{head}</tr>\n{body}</table></div>" if lines else ""


def preformatted(title: str, content: str) -> str:
    """Lines as they are."""
    box = f'<pre tabindex="0" role="region" aria-label="{escape(title)}">'
    return f"<h2>{escape(title)}</h2>\n{box}{escape(content)}</pre>" if content.strip() else ""
