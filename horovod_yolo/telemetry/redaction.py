"""What must not be written down: passwords and tokens, in whatever text they turn up."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

HIDDEN = "***"
SHORTEST = 4  # characters: what is shorter would hide parts of words
_SECRET_NAME = re.compile(r"TOKEN|PASSWORD|PASSWD|SECRET|API_?KEY|ACCESS_KEY", re.IGNORECASE)
_USER_OF_URL = re.compile(r"(\b[a-zA-Z][\w+.-]*://)[^/\s@'\"]+@")


def redacted(text: str, environment: Mapping[str, str] = os.environ) -> str:
    """The text without the users and passwords of URLs, and without what the environment keeps as secrets."""
    for name, value in environment.items():
        if _SECRET_NAME.search(name) and len(value) >= SHORTEST:
            text = text.replace(value, HIDDEN)
    return _USER_OF_URL.sub(rf"\1{HIDDEN}@", text)
