"""Our commands, and Python's: modules, scripts, pip. Their own parsers read a command line, and no more."""

from __future__ import annotations

import contextlib
import io
import json
import re
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from venv import main as venv_main

import pytest
from packaging.requirements import Requirement

from horovod_yolo.assembly import job
from horovod_yolo.cli import main
from horovod_yolo.config.load import Parser, config_from_flags, train_parser
from horovod_yolo.config.words import with_words
from horovod_yolo.core.errors import UserError
from horovod_yolo.distributed.local import LocalCommunicator
from horovod_yolo.launch.hostfile import parse_hosts
from tests.helpers.command_calls import LACKS, Call, RefusedError, demand, existing, printed
from tests.helpers.command_lines import REPO

# Of other trainers, which the pages for those who come from there name.
_SCRIPTS_OF_OTHERS = {"detect.py", "val.py", "export.py"}
_SCRIPTS_OF_READERS = {"my_script.py", "script.py"}


class ParsedError(BaseException):
    """The command line is understood: there its program is stopped."""


def _parse_ours(parser: Parser, call: Call) -> Namespace:
    try:
        return parser.parse_strictly(call.words)
    except UserError as error:
        if call.whole or not LACKS.search(str(error)):
            raise RefusedError(str(error)) from None
        return Namespace()


def _train(call: Call, prog: str = "horovod-yolo train") -> None:
    given = vars(_parse_ours(with_words(train_parser(prog), "train"), call))
    ranks = given.pop("np", call.ranks)
    if hosts := given.pop("hosts", ""):
        ranks = sum(host.slots for host in parse_hosts(hosts))
    if call.whole and "resume" not in given:
        config_from_flags(given).check_world(ranks)


def _horovod_yolo(call: Call) -> None:
    if call.words and call.words[0] == "detect":
        call = replace(call, words=call.words[1:])
    if call.words[:1] == ("train",) and "--help" not in call.words:
        _train(replace(call, words=call.words[1:]))
        return
    own, rest = call.words, ()
    if call.words[:1] == ("launch",) and "--" in call.words:
        at = call.words.index("--")
        own, rest = call.words[:at], call.words[at + 1 :]
    ranks = _through_main(replace(call, words=own))
    if rest:
        script = rest[0].endswith(".py")
        call.then(["python" if script else "horovod-yolo", *rest], ranks)


def _through_main(call: Call) -> int:
    """The command's own parser, as its main function calls it; for how many ranks it asks."""
    found: list[Namespace] = []

    def parse_only(parser: Parser, argv: Sequence[str]) -> None:
        found.append(_parse_ours(parser, replace(call, words=tuple(argv))))
        raise ParsedError

    said = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stderr(said):
        patch.setattr(Parser, "parse_strictly", _original_first(parse_only))
        patch.setattr(job, "join", LocalCommunicator)
        try:
            code = main(list(call.words))
        except (ParsedError, SystemExit) as ended:
            code = ended.code if isinstance(ended, SystemExit) else 0
    if code:
        raise RefusedError(said.getvalue())
    hosts = getattr(found[0], "hosts", None) if found else None
    return sum(host.slots for host in parse_hosts(hosts)) if hosts else 1


def _original_first(replacement: Callable[[Parser, Sequence[str]], None]) -> Callable[..., Any]:
    """``replacement`` for the first call; within it the parser is as it was."""
    original = Parser.parse_strictly
    inside: list[bool] = []

    def once(parser: Parser, argv: Sequence[str]) -> Any:
        if inside:
            return original(parser, argv)
        inside.append(True)
        return replacement(parser, argv)

    return once


def _script_of_hosts(call: Call) -> None:
    """launch/*.sh: they find the hosts, and hand the rest to `horovod-yolo launch`."""
    existing(f"launch/{Path(call.program).name}")
    words = list(call.words)
    if words[:1] == ["--srun"]:
        if call.whole or "--" in words:
            call.then(["horovod-yolo", *words[words.index("--") + 1 :]])
        return
    named = "--hosts" in words or "--hostfile" in words
    call.then(["horovod-yolo", "launch", *([] if named else ["--hosts", "localhost"]), *words])


def _discover_hosts(call: Call) -> None:
    existing("launch/discover_hosts.sh")
    if call.words:
        raise RefusedError("launch/discover_hosts.sh takes no words")


# --- Python


def _python(call: Call) -> None:
    first, rest = call.words[0], call.words[1:]
    if first == "-c":
        compile(rest[0], "-c", "exec")
    elif first == "-P":
        call.then(["python", *rest]) if rest else None
    elif first == "-m":
        if rest[0] not in MODULES:
            raise RefusedError(f"python -m {rest[0]}: of this module no parser is known, add one here")
        MODULES[rest[0]](replace(call, program=rest[0], words=rest[1:]))
    elif first == "train.py":
        _train(replace(call, words=rest), "train.py")
    elif first not in _SCRIPTS_OF_OTHERS | _SCRIPTS_OF_READERS:
        _script(existing(first), rest)


def _script(path: Path, words: Sequence[str]) -> None:
    text = path.read_text(encoding="utf-8")
    unknown = [w for w in words if w.startswith("--") and f'"{w.split("=")[0]}"' not in text]
    if unknown:
        raise RefusedError(f"{path.name} has no {' '.join(unknown)}")
    if path.name == "tables.py":
        _tables(words)


def _tables(words: Sequence[str]) -> None:
    text = (REPO / "benchmarks/tables.py").read_text(encoding="utf-8")
    known = re.findall(r'^    "([\w-]+)": "', text, re.MULTILINE)
    unknown = {word for word in words if not word.startswith("--")} - set(known)
    if unknown:
        raise RefusedError(f"benchmarks/tables.py has no {' '.join(unknown)}")


def _mutants(call: Call) -> None:
    from tests.mutants.__main__ import TARGETS
    from tests.mutants.__main__ import main as mutants_main

    given = _through_argparse(call, mutants_main)
    if unknown := set(given.targets) - set(TARGETS):
        raise RefusedError(f"tests.mutants has no {' '.join(unknown)}")


def _through_argparse(call: Call, main_function: Callable[[], object]) -> Namespace:
    """What the parser of a main function reads, which goes no further."""
    parse, found, said = ArgumentParser.parse_args, [], io.StringIO()

    def parse_only(parser: ArgumentParser, *arguments: Any) -> None:
        found.append(parse(parser, *arguments))
        raise ParsedError

    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stderr(said):
        patch.setattr(sys, "argv", [call.program, *call.words])
        patch.setattr(ArgumentParser, "parse_args", parse_only)
        with contextlib.suppress(ParsedError, SystemExit):
            main_function()
    if not found:
        raise RefusedError(said.getvalue())
    return found[0]


def _venv(call: Call) -> None:
    _through_argparse(call, venv_main)


def _pytest(call: Call) -> None:
    words = ["--noconftest", "--collect-only", "-q", *call.words]
    demand(printed(call, "python", "-m", "pytest", *words), "exit code 0$")


def _module(call: Call) -> None:
    """A helper of the tests without flags."""
    existing(call.program.replace(".", "/") + ".py")
    if any(word.startswith("-") for word in call.words):
        raise RefusedError(f"{call.program} takes no flags")


_ASK_PIP = """
import json, sys
from pip._internal.commands import create_command
options, wanted = create_command("install").parse_args(sys.argv[1:])
print(json.dumps([options.constraints, wanted]))
"""


def _pip(call: Call) -> None:
    assert call.words[0] == "install"
    said = printed(
        call, "python", "-c", _ASK_PIP, *call.words[1:]
    )  # which cannot share a process with setuptools
    demand(said, "exit code 0$")
    constraints, wanted = json.loads(said.splitlines()[0])
    for name in constraints:
        existing(name)
    for word in wanted:
        path, _, extras = word.partition("[")
        name, named = ("horovod_yolo", extras[:-1]) if path == "." else ("", "")
        if not name and word != "...":
            requirement = Requirement(word)
            name, named = requirement.name, ",".join(requirement.extras)
        if name == "horovod_yolo" and named:
            _extras(named.split(","))


def _extras(named: Sequence[str]) -> None:
    text = (REPO / "setup.py").read_text(encoding="utf-8")
    unknown = [name for name in named if f'"{name}": ' not in text]
    if unknown:
        raise RefusedError(f"setup.py has no extra {' '.join(unknown)}")


MODULES: Mapping[str, Callable[[Call], None]] = {
    "torch.distributed.run": lambda call: call.then(["torchrun", *call.words]),
    "tests.mutants": _mutants,
    "pytest": _pytest,
    "venv": _venv,
    "tests.helpers.resolved": _module,
}
OURS: Mapping[str, Callable[[Call], None]] = {
    "horovod-yolo": _horovod_yolo,
    **dict.fromkeys(("horovodrun.sh", "mpirun.sh", "slurm.sbatch", "pbs.sh", "lsf.sh"), _script_of_hosts),
    "discover_hosts.sh": _discover_hosts,
    **dict.fromkeys(("python", "python3"), _python),
    "train.py": lambda call: _train(call, "train.py"),
    "pip": _pip,
}
