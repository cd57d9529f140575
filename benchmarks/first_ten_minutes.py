"""README.md from top to bottom in a fresh clone, as somebody new would do it: what works, and when.

    PYTHONPATH=. python benchmarks/first_ten_minutes.py [--quick]

Claim: each command of the README works as it stands there, one after the other. The clone of this checkout,
the home folder and all caches are new, so that packages are installed and Horovod is built; packages come
from the index that pip is set up for here. Commands that this machine cannot do are listed with the reason.
For two cores without a GPU, where it takes about three quarters of an hour. ``--quick`` leaves out the
set-up, uses the packages that are here, and makes one step of each training.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from common import BIN, ROOT, described, environment, finished, machine, parsed, parser, publish

from horovod_yolo.data.digits import make_digits
from tests.helpers.command_lines import FENCE

PAGE = ROOT / "docs" / "first_ten_minutes.md"
REPOSITORY = "<this repository>"  # what the README has in place of an address
LIMIT_S, TOO_LONG = 1800, 124  # of a command, and the exit code of one that takes longer
MPIRUN_AS_ROOT = dict.fromkeys(("OMPI_ALLOW_RUN_AS_ROOT", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM"), "1")
SAID_LINES, SAID_WIDTH = 4, 140

# Commands that are not run, by a pattern, and why.
NOT_RUN = {
    r"^sudo apt-get": "as root; the packages were there",
    r"^sudo make": "as root; for the tests over several hosts",
    r"^python3 -m venv \.venv$|download\.pytorch\.org|CUDA=1": "for machines with a GPU",
    r"host1:": "needs several hosts",
    r"yolov5s\.pt": "needs published weights, which nobody may ship",
    r"photos/": "takes pictures and videos of your own",
    r"^make (check|test|test-slow|mutants|bench)$": "for those who change the code; CI runs the first two",
}
LEFT_OUT = "left out of a quick look"
QUICK = {r"^pip|install-horovod|^make|-m venv|^\. ": LEFT_OUT, r"^horovodrun|^mpirun": LEFT_OUT}
MILESTONES = {  # of the summary: the command after which it is there
    "git clone": "the clone",
    "pip install -c": "the packages for training on one process",
    "horovod-yolo train": "a first training of two epochs",
    "install-horovod": "Horovod, built and tried on two ranks",
    "make demo": "a detector, trained on two ranks over Horovod",
}


@dataclass(frozen=True)
class Command:
    """One of the README's, in the language of its block, below a heading."""

    heading: str
    language: str
    text: str


@dataclass(frozen=True)
class Done:
    """What came of it. ``why_not``: it was not run."""

    heading: str
    text: str
    seconds: float = 0.0
    code: int = 0
    said: Sequence[str] = ()
    why_not: str = ""


def commands(readme: str) -> Iterator[Command]:
    """Those of the blocks in order: each line of a shell's, and each Python example as a whole."""
    for part in re.split(r"^## ", readme, flags=re.MULTILINE):
        heading = part.partition("\n")[0]
        for language, content in FENCE.findall(part):
            if language == "python":
                yield Command(heading, language, content.rstrip())
            elif language == "bash":
                lines = re.sub(r"\s*\\\n\s*", " ", content).splitlines()
                texts = (re.sub(r"(^|\s+)# .*", "", line).strip() for line in lines)
                yield from (Command(heading, language, text) for text in texts if text)


def why_not(command: Command, rules: Mapping[str, str]) -> str:
    """Why a command is not run; empty for one that is."""
    shell = command.text if command.language == "bash" else ""
    return next((reason for pattern, reason in rules.items() if re.search(pattern, shell)), "")


class Newcomer:
    """A shell in a new home folder, which remembers folder and variables from one command to the next."""

    def __init__(self, home: Path, repository: str, variables: Mapping[str, str]) -> None:
        self.home, self.repository = home, repository
        self._variables = {**variables, "HOME": str(home), "XDG_CACHE_HOME": str(home / ".cache")}
        self._state = home / ".state"
        self._state.write_text(f"cd {home}\n")

    def does(self, command: Command, more: str = "") -> Done:
        """Run a command to its end, with ``more`` behind it; all that it has started ends with it."""
        text = command.text.replace(REPOSITORY, self.repository) + more
        if command.language == "python":
            text = f"cat > example.py <<'END'\n{text}\nEND\npython example.py"
        keep = f"{{ declare -px; printf 'cd %q\\n' \"$PWD\"; }} > {self._state}"
        log, begun = self.home / ".said", time.monotonic()
        with log.open("w") as out:
            script = f". {self._state}\n{text}\ncode=$?; {keep}; exit $code"
            code = finished(["bash", "-c", script], out.fileno(), self._variables, LIMIT_S)
        if code is None:
            code = TOO_LONG
        seconds = time.monotonic() - begun
        return Done(command.heading, command.text, seconds, code, self._last_lines(log))

    def _last_lines(self, log: Path) -> list[str]:
        """What a command said in the end, without colours and this machine's own names."""
        text = re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", log.read_text(errors="replace"))
        lines = [line.rpartition("\r")[2].rstrip().replace(str(self.home), "~") for line in text.split("\n")]
        kept = [line for line in lines if line.strip() and "file://" not in line][-SAID_LINES:]
        return [line if len(line) <= SAID_WIDTH else line[: SAID_WIDTH - 3] + "..." for line in kept]


def of_a_newcomer(quick: bool) -> dict[str, str]:
    """The variables of this process without those of its environment of Python; for ``--quick`` with them."""
    if quick:
        return environment(Path())  # the clone's own package
    ours = {"PYTHONPATH", "VIRTUAL_ENV", "OMP_NUM_THREADS", "PYTHONDONTWRITEBYTECODE"}
    left = {name: value for name, value in os.environ.items() if name not in ours}
    path = [folder for folder in os.environ["PATH"].split(":") if Path(folder).resolve() != BIN.resolve()]
    return {**left, "PATH": ":".join(path), **(MPIRUN_AS_ROOT if os.geteuid() == 0 else {})}


def walk(newcomer: Newcomer, readme: str, quick: bool) -> Iterator[Done]:
    """All commands in order, run or not."""
    rules = {**NOT_RUN, **QUICK} if quick else NOT_RUN
    for command in commands(readme):
        if reason := why_not(command, rules):
            yield Done(command.heading, command.text, why_not=reason)
            continue
        print("$", command.text, flush=True)
        short = quick and re.search(r"train\.py --data|horovod-yolo train", command.text)
        done = newcomer.does(command, " --max-steps 1" if short else "")
        print(*done.said, f"-- {done.seconds:.1f} s, exit code {done.code}", sep="\n  ", flush=True)
        if quick and "git clone" in command.text:
            make_digits(newcomer.home / "horovod_yolo/datasets/digits", images=20, size=96)
        yield done


def record(done: Sequence[Done]) -> str:
    """The walk as text, by the README's headings."""
    parts: list[str] = []
    for heading in dict.fromkeys(one.heading for one in done):
        shown = [block for one in done if one.heading == heading for block in lines_of(one)]
        parts += [f"### {heading}", "", "```text", *shown, "```", ""]
    return "\n".join(parts)


def lines_of(one: Done) -> list[str]:
    first, *rest = one.text.splitlines()
    outcome = f"not run here: {one.why_not}" if one.why_not else duration(one.seconds)
    code = f", exit code {one.code}" if one.code else ""
    return [f"$ {first}", *(f"  {line}" for line in [*rest, *one.said]), f"  -- {outcome}{code}", ""]


def duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.1f} min"


def summary(done: Sequence[Done]) -> str:
    """After what time what is there, when nobody pauses."""
    rows, passed = [], 0.0
    waiting = dict(MILESTONES)
    for one in done:
        passed += one.seconds
        for start in [start for start in waiting if start in one.text]:
            what = waiting.pop(start)
            if not one.why_not:
                rows.append(f"| {duration(passed)} | {what} |")
    ran = [one for one in done if not one.why_not]
    failed = sum(one.code != 0 for one in ran)
    rows.append(f"| {duration(passed)} | all of the below: {len(ran)} commands, of which {failed} failed |")
    return "\n".join(["| after | there is |", "|---|---|", *rows])


def main() -> None:
    args = parsed(parser(__doc__))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that what was started ends too
    with tempfile.TemporaryDirectory() as folder:
        newcomer = Newcomer(Path(folder), str(ROOT), of_a_newcomer(args.quick))
        done = list(walk(newcomer, (ROOT / "README.md").read_text(encoding="utf-8"), args.quick))
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.strip()
    facts = machine()
    table = f"{summary(done)}\n\nCommit {commit}, {described(facts)}\n\n{record(done)}"
    results = {"machine": facts, "commit": commit, "commands": [asdict(one) for one in done]}
    publish("first-ten-minutes", results, table, PAGE)


if __name__ == "__main__":
    main()
