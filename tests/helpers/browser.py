"""A real browser for pages: Chromium without a window, and the rules of axe-core in it."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
REPORT = """
<script>
axe.run().then(found => {
  const told = document.createElement("pre");
  told.id = "told";
  told.textContent = JSON.stringify({
    wide: document.documentElement.scrollWidth - document.documentElement.clientWidth,
    broken: [...document.images].filter(image => !image.naturalWidth).length,
    violations: found.violations.map(v => [v.id, v.impact, v.nodes.map(n => n.html.slice(0, 200))]),
  });
  document.body.appendChild(told);
});
</script>
"""


def why_not() -> str | None:
    """Why pages cannot be looked at here."""
    if CHROMIUM is None:
        return "there is no chromium (make packages installs it)"
    return None if find_spec("axe_core_python") else "axe-core-python is not installed"


def look(page: Path, scratch: Path, *, width: int, dark: bool) -> dict[str, Any]:
    """What the browser and axe-core say of a page: pixels too wide, broken images, violations.

    Args:
        page: an HTML file that needs no other.
        scratch: a folder for a copy and the browser's own files.
        width: of the window, pixels.
        dark: whether the reader prefers dark pages.
    """
    found = find_spec("axe_core_python")
    assert CHROMIUM is not None and found is not None and found.origin is not None
    axe = (Path(found.origin).parent / "axe.min.js").read_text(encoding="utf-8")
    text = page.read_text(encoding="utf-8")
    copy = scratch / "page.html"
    copy.write_text(text.replace("</body>", f"<script>{axe}</script>{REPORT}</body>"), encoding="utf-8")
    flags = [
        *("--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=60000", "--dump-dom"),
        *(f"--user-data-dir={scratch / 'browser'}", f"--window-size={width},1000"),
        f"--blink-settings=preferredColorScheme={0 if dark else 1}",
    ]
    shown = subprocess.run(
        [CHROMIUM, *flags, copy.as_uri()], capture_output=True, text=True, timeout=300, check=True
    )
    told = re.search(r'<pre id="told">(.*?)</pre>', shown.stdout, re.DOTALL)
    assert told is not None, shown.stdout[-1000:] + shown.stderr[-1000:]
    answer: dict[str, Any] = json.loads(html.unescape(told[1]))
    return answer
