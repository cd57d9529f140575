"""The README as a newcomer reads it: its commands are run in one shell, and what they say is kept."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import time
from pathlib import Path
from types import ModuleType

import psutil
import pytest

from tests.helpers.command_lines import REPO

README = (REPO / "README.md").read_text(encoding="utf-8")


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(REPO / "benchmarks")
    return importlib.import_module("first_ten_minutes")


def test_what_is_not_run_has_a_reason_and_the_rest_makes_the_summary(script: ModuleType) -> None:
    found = list(script.commands(README))
    for pattern in {**script.NOT_RUN, **script.QUICK}:
        assert [one for one in found if re.search(pattern, one.text)], f"no command is like {pattern}"
    runs = [one.text for one in found if not script.why_not(one, script.NOT_RUN)]
    assert runs[0].startswith(f"git clone {script.REPOSITORY}")
    assert [start for start in script.MILESTONES if not any(start in text for text in runs)] == []
    assert len(runs) > 20 and any("from horovod_yolo import YOLO" in text for text in runs)
    quick = [one.text for one in found if not script.why_not(one, {**script.NOT_RUN, **script.QUICK})]
    assert 5 < len(quick) < len(runs)


def is_over(pid: int) -> bool:
    """Whether a process ends within seconds; who reaps it is not ours to say."""
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        try:
            if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        time.sleep(0.01)
    return False


WALK = """
## Set-up

```bash
git clone <this repository> mine && cd mine   # a comment
export GREETING='hello  there'
```

## Use

```bash
cat note.txt && echo "$GREETING" \\
  "$HOME"
sudo apt-get install everything
sleep 600 & echo $! > ../left; printf 'slow\\rdone\\n'; for i in 1 2 3 4; do echo $i; done; (exit 3)
```

```python
import os
print(os.getcwd())
```
"""


def test_commands_share_a_shell_in_a_home_of_its_own(script: ModuleType, tmp_path: Path) -> None:
    repository, home = tmp_path / "repository", tmp_path / "home"
    repository.mkdir()
    home.mkdir()
    (repository / "note.txt").write_text("a note\n")
    author = ("-c", "user.name=a", "-c", "user.email=a@b")
    for words in (["init", "-q"], ["add", "."], [*author, "commit", "-qm", "note"]):
        subprocess.run(["git", *words], cwd=repository, check=True)
    newcomer = script.Newcomer(home, str(repository), dict(os.environ))
    done = list(script.walk(newcomer, WALK, quick=False))
    cloned, _, shown, refused, slow, example = done
    assert [one.code for one in done] == [0, 0, 0, 0, 3, 0]
    assert cloned.text == "git clone <this repository> mine && cd mine"
    assert shown.said == ["a note", "hello  there ~"]
    assert refused.why_not and not refused.said and refused.seconds == 0
    assert slow.said == ["1", "2", "3", "4"] and 0 < slow.seconds < 60
    assert example.said == ["~/mine"]
    assert is_over(int((home / "left").read_text())), "what a command started outlives it"
    text = script.record(done)
    assert re.findall(r"^### (.+)$", text, re.MULTILINE) == ["Set-up", "Use"]
    assert "  -- not run here: as root; the packages were there\n" in text and ", exit code 3\n" in text
    assert "5 commands, of which 1 failed" in script.summary(done)


def test_the_newcomer_has_nothing_of_this_environment(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(REPO))
    monkeypatch.setenv("PATH", f"{script.BIN}:/usr/bin:/bin")
    given = script.of_a_newcomer(quick=False)
    assert "PYTHONPATH" not in given and given["PATH"] == "/usr/bin:/bin"


def test_a_line_is_cut_and_a_mirrors_address_left_out(script: ModuleType, tmp_path: Path) -> None:
    newcomer = script.Newcomer(tmp_path, "nowhere", dict(os.environ))
    text = f"echo WARNING file:///opt; echo {'x' * 300}; printf '\\e[31mred\\e[0m\\n'"
    told = script.Command("", "bash", text)
    long, red = newcomer.does(told).said
    assert len(long) == script.SAID_WIDTH and long.endswith("x...") and red == "red"


@pytest.mark.parametrize(("seconds", "words"), [(0.2, "0 s"), (89, "89 s"), (150, "2.5 min")])
def test_durations(script: ModuleType, seconds: float, words: str) -> None:
    assert script.duration(seconds) == words
