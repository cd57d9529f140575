"""Executes a Dockerfile without Docker: each stage is a folder, each RUN a command in it (`debian_root`).

BuildKit's own parser reads the file. Instructions are followed as far as this project's files use them; any
other, or a flag that is not known, is an error, never passed over.
"""

from __future__ import annotations

import ast
import os
import re
import shlex
import shutil
import string
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pathspec

from tests.helpers.debian_root import CACHE, PATH, Entry, account

RUN_SECONDS = 1200
# How this machine reaches the network, which a builder would have from its own configuration.
_OF_THE_MACHINE = re.compile(
    r"(https?|ftp|all|no)_proxy|PIP_\w+|SSL_CERT_FILE|REQUESTS_CA_BUNDLE", re.IGNORECASE
)
_APT = (
    "Acquire::http",
    "Acquire::https",
    "Acquire::Check-Valid-Until",
    "Acquire::Check-Date",
    "Acquire::Retries",
)
_NO_STEP = {"EXPOSE", "LABEL", "STOPSIGNAL"}


@dataclass
class Stage:
    """A stage while it is built, an image when it is done."""

    root: Path
    env: dict[str, str] = field(default_factory=lambda: {"PATH": PATH})
    args: dict[str, str] = field(default_factory=dict)
    folder: str = "/"
    user: str = "0"
    command: tuple[str, ...] = ()

    def expand(self, text: str) -> str:
        """``text`` with variables replaced; one that is not set is an error here."""
        return string.Template(text).substitute({**self.args, **self.env})

    def entry(self) -> Entry:
        """How `docker run` would enter the image."""
        uid, gid, home = account(self.root, self.user)
        return Entry(self.root, {"HOME": home, **self.env}, (uid, gid), self.folder)


class Builder:
    """Builds one Dockerfile.

    Args:
        context: the folder that ``docker build`` would be given, read through its ``.dockerignore``.
        work: an empty folder for the stages.
        bases: makes the folder of an image that the file starts from, by the image's name.
        build_args: as ``--build-arg``.
    """

    def __init__(
        self,
        context: Path,
        work: Path,
        bases: Mapping[str, Callable[[Path], Path]],
        build_args: Mapping[str, str],
    ) -> None:
        self._work, self._bases, self._build_args = work, bases, build_args
        self._context = work / "context"
        copy_context(context, self._context)
        self._machine = machine_settings(work / "machine")
        self._global_args: dict[str, str] = {}
        self._stages: list[Stage] = []
        self._names: dict[str, Stage] = {}
        self.log: list[str] = []

    def build(self, dockerfile: Path) -> Stage:
        """Execute all instructions; the last stage."""
        import dockerfile as buildkit  # a compiled parser, which not every platform has

        for step in buildkit.parse_file(str(dockerfile)):
            word = step.cmd.upper()
            if word in _NO_STEP:
                continue
            self.log.append(f"line {step.start_line}: {step.original}")
            do = getattr(self, f"_{word.lower()}", None)
            if do is None:
                raise NotImplementedError(f"{dockerfile}:{step.start_line}: {word}")
            do(step.value, [flag.removeprefix("--").split("=", 1) for flag in step.flags], step.json)
        return self._stages[-1]

    @property
    def _stage(self) -> Stage:
        return self._stages[-1]

    def _arg(self, value: tuple[str, ...], flags: list[list[str]], is_json: bool) -> None:
        for word in value:
            name, _, default = word.partition("=")
            if not self._stages:
                self._global_args[name] = self._build_args.get(name, default)
            else:
                fallback = self._stage.expand(default) if "=" in word else self._global_args[name]
                self._stage.args[name] = self._build_args.get(name, fallback)

    def _from(self, value: tuple[str, ...], flags: list[list[str]], is_json: bool) -> None:
        image = string.Template(value[0]).substitute(self._global_args)
        folder = self._work / f"stage{len(self._stages)}"
        if image in self._names:
            raise NotImplementedError(f"FROM the stage {image}")
        self._stages.append(Stage(self._bases[image](folder)))
        if len(value) == 3:
            self._names[value[2]] = self._stage

    def _env(self, value: tuple[str, ...], flags: list[list[str]], is_json: bool) -> None:
        words = {name: shlex.split(text)[0] for name, text in zip(value[::2], value[1::2], strict=True)}
        self._stage.env |= {name: self._stage.expand(text) for name, text in words.items()}

    def _workdir(self, value: tuple[str, ...], flags: list[list[str]], is_json: bool) -> None:
        self._stage.folder = str(Path(self._stage.folder, self._stage.expand(value[0])))
        self._inside(self._stage.folder).mkdir(parents=True, exist_ok=True)

    def _user(self, value: tuple[str, ...], flags: list[list[str]], is_json: bool) -> None:
        self._stage.user = self._stage.expand(value[0])

    def _cmd(self, value: tuple[str, ...], flags: list[list[str]], is_json: bool) -> None:
        self._stage.command = value if is_json else ("/bin/sh", "-c", value[0])

    def _inside(self, path: str) -> Path:
        return self._stage.root / path.lstrip("/")

    def _copy(self, value: tuple[str, ...], flags: list[list[str]], is_json: bool) -> None:
        given = dict(flags)
        source_root = self._names[given.pop("from")].root if "from" in given else self._context
        if given or any("*" in word for word in value):
            raise NotImplementedError(f"COPY {given} {value}")
        *sources, target = map(self._stage.expand, value)
        place = self._inside(str(Path(self._stage.folder, target)))
        many = len(sources) > 1 or target.endswith("/") or place.is_dir()
        for name in sources:
            source = source_root / name.lstrip("/")
            into = place if source.is_dir() or not many else place / source.name
            into.parent.mkdir(parents=True, exist_ok=True)
            if source.is_dir():  # what is in it is copied, not the folder
                into.mkdir(exist_ok=True)
            what = f"{source}/." if source.is_dir() else str(source)
            subprocess.run(["cp", "-a", "--no-target-directory", what, str(into)], check=True)

    def _run(self, value: tuple[str, ...], flags: list[list[str]], is_json: bool) -> None:
        stage = self._stage
        env, binds = self._machine
        for name, text in flags:
            mount = dict(word.split("=", 1) for word in text.split(","))
            if name != "mount" or mount.keys() != {"type", "target"} or mount["type"] != "cache":
                raise NotImplementedError(f"RUN --{name}={text}")
            kept = CACHE / "docker" / mount["target"].strip("/").replace("/", "_")
            kept.mkdir(parents=True, exist_ok=True)
            binds = [*binds, (kept, mount["target"])]
        entry = stage.entry()
        variables = {**stage.args, **entry.env, **env}
        command = list(value) if is_json else ["/bin/sh", "-c", value[0]]
        done = Entry(stage.root, variables, entry.user, stage.folder, binds).run(command, RUN_SECONDS)
        # What the mounts were put on is empty now that they are gone.
        subprocess.run(["find", stage.root / "run/machine", "-depth", "-empty", "-delete"], check=True)
        self.log.append(done.stdout)
        if done.returncode:
            raise RuntimeError("\n".join([*self.log[-6:], f"exit code {done.returncode}"]))


def copy_context(context: Path, target: Path) -> None:
    """Copy what ``.dockerignore`` lets through.

    Its patterns are Docker's; those that start with a slash or with ``**/`` mean the same to git, whose rules
    pathspec knows. Others are refused.
    """
    lines = (context / ".dockerignore").read_text().splitlines()
    patterns = [line for line in lines if line and not line.startswith("#")]
    for pattern in patterns:
        if not pattern.removeprefix("!").startswith(("/", "**/")):
            raise NotImplementedError(f".dockerignore: {pattern}")
    ignored = pathspec.PathSpec.from_lines("gitignore", patterns)
    for name in sorted(ignored.match_tree_files(context, negate=True, follow_links=False)):
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(context / name, target / name)


def machine_settings(folder: Path) -> tuple[dict[str, str], list[tuple[Path, str]]]:
    """Variables and binds that carry this machine's network settings into a build, as a builder's own would.

    Folders and files that the settings name are shown below ``/run/machine``.
    """
    folder.mkdir(parents=True)
    listed = subprocess.run(["apt-config", "dump", *_APT], capture_output=True, text=True, check=True).stdout
    (folder / "apt.conf").write_text(listed)
    binds = [(folder / "apt.conf", "/run/machine/apt.conf")]
    env = {"APT_CONFIG": "/run/machine/apt.conf"}
    for name, value in {**pip_settings(), **os.environ}.items():
        if not _OF_THE_MACHINE.fullmatch(name):
            continue
        words = []
        for word in value.split():
            path = word.removeprefix("file://")
            if path.startswith("/") and Path(path).exists():
                # An index of files has links that lead out of its folder: show the folder above, too.
                shown = Path(path).parent if word.startswith("file://") else Path(path)
                binds.append((shown, f"/run/machine{shown}"))
                word = word.replace(path, f"/run/machine{path}")
            words.append(word)
        env[name] = " ".join(words)
    for name in ("hosts", "resolv.conf"):
        binds.append((Path("/etc") / name, f"/etc/{name}"))
    return env, binds


def pip_settings() -> dict[str, str]:
    """What pip is told here by files and variables, as variables; those of the environment win."""
    listed = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True
    )
    rows = re.findall(r"^(\S+)\.([\w-]+)=('.*')$", listed.stdout, re.MULTILINE)
    rows.sort(key=lambda row: row[0] == ":env:")
    return {f"PIP_{name.upper().replace('-', '_')}": ast.literal_eval(value) for _, name, value in rows}
