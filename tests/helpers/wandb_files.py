"""What wandb has written of a run, by wandb's own reader of its files."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any


def files_of(folder: Path, uid: str) -> list[Path]:
    """The logs of its jobs in offline mode, in their order."""
    return sorted(folder.glob(f"wandb/offline-run-*-{uid}/run-{uid}.wandb"))


def rows_in(path: Path) -> list[dict[str, Any]]:
    """The history in a log."""
    words = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(path)]
    with tempfile.TemporaryDirectory() as folder:
        place = {**os.environ, "TMPDIR": folder}  # it leaves a log there
        printed = subprocess.run(words, env=place, capture_output=True, text=True, check=True).stdout
    records = [json.loads(line) for line in printed.splitlines()]
    return [record["history"]["item"] for record in records if record["type"] == "history"]
