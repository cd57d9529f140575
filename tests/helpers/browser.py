"""A real browser for pages: Chromium without a window, and the rules of axe-core in it."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
REPORT = """
<script>
setTimeout(() => axe.run().then(found => {
  const told = document.createElement("pre");
  told.id = "told";
  told.textContent = JSON.stringify({
    wide: document.documentElement.scrollWidth - document.documentElement.clientWidth,
    broken: [...document.images].filter(image => !image.naturalWidth).length,
    violations: found.violations.map(v => [v.id, v.impact, v.nodes.map(n => n.html.slice(0, 200))]),
  });
  document.body.appendChild(told);
}), AFTER);
</script>
"""


def why_not() -> str | None:
    """Why pages cannot be looked at here."""
    if CHROMIUM is None:
        return "there is no chromium (make packages installs it)"
    return None if find_spec("axe_core_python") else "axe-core-python is not installed"


@cache
def _axe() -> str:
    found = find_spec("axe_core_python")
    assert found is not None and found.origin is not None
    return (Path(found.origin).parent / "axe.min.js").read_text(encoding="utf-8")


def _with_axe(page: str, after_ms: int) -> str:
    """A page that tells what axe-core says of it, after so long."""
    report = REPORT.replace("AFTER", str(after_ms))
    page = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page)  # axe-core is no part of it
    return page.replace("</body>", f"<script>{_axe()}</script>{report}</body>")


def look(page: Path, scratch: Path, *, width: int, dark: bool) -> dict[str, Any]:
    """What the browser and axe-core say of a page: pixels too wide, broken images, violations.

    Args:
        page: an HTML file that needs no other.
        scratch: a folder for a copy and the browser's own files.
        width: of the window, pixels.
        dark: whether the reader prefers dark pages.
    """
    copy = scratch / "page.html"
    copy.write_text(_with_axe(page.read_text(encoding="utf-8"), 0), encoding="utf-8")
    return _told(shown(copy.as_uri(), scratch, width=width, dark=dark, milliseconds=60_000))


def look_at(url: str, scratch: Path, *, width: int, dark: bool, path: str = "") -> dict[str, Any]:
    """The same of a page that a server gives, two seconds after it was opened: ``path`` below ``url``."""
    with _beside_axe(url, f"/{path}") as through:
        return _told(shown(through + path, scratch, width=width, dark=dark, milliseconds=20_000))


def shown(url: str, scratch: Path, *, width: int, dark: bool, milliseconds: int) -> str:
    """The page as its scripts have made it in so much time, as HTML."""
    assert CHROMIUM is not None
    flags = [
        *("--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"),
        *(f"--virtual-time-budget={milliseconds}", f"--user-data-dir={scratch / 'browser'}"),
        *(f"--window-size={width},1000", f"--blink-settings=preferredColorScheme={0 if dark else 1}"),
    ]
    done = subprocess.run([CHROMIUM, *flags, url], capture_output=True, text=True, timeout=300, check=True)
    return done.stdout


def _told(page: str) -> dict[str, Any]:
    told = re.search(r'<pre id="told">(.*?)</pre>', page, re.DOTALL)
    assert told is not None, page[-2000:]
    answer: dict[str, Any] = json.loads(html.unescape(told[1]))
    return answer


@contextmanager
def _beside_axe(url: str, page: str) -> Iterator[str]:
    """A server that gives what another one does, its page with axe-core and without its policy."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            try:
                with urllib.request.urlopen(url.rstrip("/") + self.path, timeout=10) as answer:
                    content, kind = answer.read(), answer.headers["Content-Type"]
            except urllib.error.HTTPError as error:
                self.send_error(error.code)
                return
            if self.path == page:
                content = _with_axe(content.decode(), 2000).encode()
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: Any) -> None:
            """Nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
