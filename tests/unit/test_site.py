"""The site: it builds without a warning, shows every document, and loads nothing from elsewhere."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import fields
from functools import partial
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from horovod_yolo.assembly.export import ExportOptions
from horovod_yolo.assembly.validate import ValOptions
from tests.helpers import browser

REPO = Path(__file__).resolve().parents[2]
LOADED = {"script": "src", "img": "src", "iframe": "src", "link": "href", "source": "src", "form": "action"}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", str(folder)],
        cwd=REPO,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    return folder


class Loaded(HTMLParser):
    """What a browser fetches for a page."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag in LOADED and given.get("rel") not in ("canonical", "prev", "next"):
            self.addresses.append(given.get(LOADED[tag]) or "")


def test_nothing_is_loaded_from_elsewhere(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) > 20
    for page in pages:
        reader = Loaded()
        reader.feed(page.read_text(encoding="utf-8"))
        assert [a for a in reader.addresses if re.match(r"(https?:)?//", a)] == [], page
    for sheet in site.rglob("*.css"):
        text = sheet.read_text(encoding="utf-8")
        assert not re.search(r"(url\(|@import)\s*['\"]?(https?:)?//", text), sheet


@pytest.fixture(scope="module")
def address(site: Path) -> Iterator[str]:
    """Of a server that has the site."""
    if reason := browser.why_not():
        pytest.skip(f"LOUD SKIP: {reason}; the site is not looked at")

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:
            """Nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(site)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_translated_page_has_its_language(site: Path) -> None:
    page = (site / "quickstart.zh.html").read_text(encoding="utf-8")
    assert re.findall(r"<html[^>]*>", page) == ['<html lang="zh" class="no-js">']
    assert (
        len(re.findall(r'<(?:header|footer|div class="md-sidebar md-sidebar--primary") lang="en"', page)) == 3
    )
    others = [(site / f"{name}.html").read_text(encoding="utf-8") for name in ("index", "quickstart")]
    assert all('<html lang="en"' in other for other in others)


def looks() -> Iterator[Any]:
    """Each kind of page on a wide and a narrow window, light and dark; most of it is slow."""
    often = ("index", "config", "api")
    for name in (*often, "quickstart.zh", "benchmarks", "recipes", "tune", "monitoring"):
        for width, dark in ((1280, False), (1280, True), (390, False), (390, True)):
            at_once = (width > 390) != dark if name in often else (width, dark) == (390, False)
            marks = () if at_once else (pytest.mark.slow,)
            yield pytest.param(f"{name}.html", width, dark, marks=marks)


@pytest.mark.parametrize(("page", "width", "dark"), looks())
def test_everybody_can_read_it(address: str, tmp_path: Path, page: str, width: int, dark: bool) -> None:
    found = browser.look_at(address, tmp_path, width=width, dark=dark, path=page)
    assert found == {"wide": 0, "broken": 0, "violations": []}


def test_the_python_page_has_the_docstrings(site: Path) -> None:
    page = (site / "api.html").read_text(encoding="utf-8")
    for name in ("YOLO.train", "YOLO.val", "YOLO.predict", "YOLO.export", "Result.plot"):
        assert re.search(rf'id="horovod_yolo\.[\w.]*{name}"', page), name
    text = re.sub(r"<[^>]*>", "", page)
    for options in (ValOptions, ExportOptions):  # which the docstrings refer to
        assert f'id="{options.__module__}.{options.__name__}"' in page
        signature = text.partition(f"{options.__name__}(")[2].partition(")\n")[0]
        assert all(f"{field.name}: " in signature for field in fields(options)), signature
