"""The page of a run while it goes: one file of HTML, which asks its server for the numbers."""

from __future__ import annotations

import json
from importlib.resources import files

from horovod_yolo.report.page import STYLE, digest, whole_page
from horovod_yolo.report.plots import COLOURS

_STYLE = (
    STYLE
    + """
#state { margin: 0 0 6px; } #state.gone { color: var(--mark); font-weight: 600; }
progress { width: 100%; height: 14px; accent-color: var(--mark); }
.plots figure { background: var(--sheet); border: 1px solid var(--line); border-radius: 8px; padding: 10px 14px; min-width: 0; }
.plots figcaption { margin: 0; font-size: 14px; }
.plots p { margin: 0; font-size: 13px; color: var(--faint); min-height: 20px; font-variant-numeric: tabular-nums; }
.plots svg { display: block; width: 100%; touch-action: pan-y; }
svg text { fill: var(--faint); font-size: 10px; } svg .grid { stroke: var(--line); } svg .at { stroke: var(--faint); }
svg polyline { fill: none; stroke-width: 1.6; stroke-linejoin: round; }
.swatch { display: inline-block; width: 10px; height: 10px; border-radius: 5px; margin-right: 4px; }
.bar { display: flex; width: 160px; height: 12px; margin-left: auto; background: var(--line); }
#log { max-height: 320px; white-space: pre-wrap; overflow-wrap: anywhere; } #log b { color: var(--mark); }
@media (prefers-color-scheme: dark) { polyline, circle, .swatch, .bar span { filter: brightness(1.4); } }
div.ranks { max-height: 420px; overflow-y: auto; }
"""  # noqa: E501
)
_BODY = """<p id="state">Waiting for the run ...</p>
<progress id="progress" max="1" value="0" aria-label="progress of the run"></progress>
<dl class="metrics" id="scores"></dl>
<dl class="facts" id="facts"></dl>
<noscript><p>This page draws with a script, which is switched off. The numbers are at /metrics and /api/now.</p></noscript>
<h2>Steps</h2>
<p class="run" id="every"></p>
<div class="plots" id="steps"></div>
<h2>Epochs</h2>
<div class="plots" id="epochs"></div>
<h2>Ranks</h2>
<div class="table ranks" tabindex="0" role="region" aria-label="Ranks"><table id="ranks"></table></div>
<h2>Log</h2>
<pre id="log" tabindex="0" role="region" aria-label="Log"></pre>
<script>{script}</script>"""  # noqa: E501


def live_page() -> tuple[bytes, str]:
    """The page, and the policy under which a browser may show it: nothing but its own script and server."""
    colours = f"const COLOURS = {json.dumps(COLOURS)};\n"
    script = colours + files("horovod_yolo.report").joinpath("live.js").read_text(encoding="utf-8")
    page = whole_page("Training", "", _BODY.format(script=script), style=_STYLE)
    policy = (
        f"default-src 'none'; connect-src 'self'; script-src {digest(script)}; style-src {digest(_STYLE)}; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return page, policy
