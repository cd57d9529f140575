"""The recipes of docs/recipes.md that name a result: their commands, as they stand there, give it."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.helpers import ranks

RECIPE = re.compile(
    r"^## (?P<title>.+?)$.*?^```bash\n(?P<commands>.*?)^```$\s+"
    r"^Result: mAP50 of at least (?P<map50>[\d.]+) in `(?P<run>.+?)`",
    re.MULTILINE | re.DOTALL,
)
TEXT = (ranks.REPOSITORY / "docs/recipes.md").read_text(encoding="utf-8")
PARTS = ["## " + part for part in TEXT.split("\n## ")[1:]]
RECIPES = [found for found in map(RECIPE.match, PARTS) if found]


def test_each_recipe_has_a_result_or_says_why_not() -> None:
    assert len(RECIPES) >= 2
    assert [p for p in PARTS if not RECIPE.match(p) and "ot run by us" not in p and "`tests/" not in p] == []


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe["title"])
def test_a_recipe_gives_its_result(recipe: re.Match[str], tmp_path: Path) -> None:
    for name in ("train.py", "horovod_yolo"):
        (tmp_path / name).symlink_to(ranks.REPOSITORY / name)
    environ = {**os.environ, "PATH": f"{ranks.BIN}:{os.environ['PATH']}", "PYTHONPATH": str(ranks.REPOSITORY)}
    environ["TMPDIR"] = str(tmp_path)  # torchrun leaves a folder there
    done = subprocess.run(
        ["bash", "-euc", recipe["commands"]],
        cwd=tmp_path,
        env=environ,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    metrics = ranks.results(tmp_path / recipe["run"])["metrics"]
    assert isinstance(metrics, dict) and metrics["mAP50"] >= float(recipe["map50"])
