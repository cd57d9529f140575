"""Understands `docker run`, for a stage that `image_build` made in place of an image."""

from __future__ import annotations

import argparse
import re
import shlex
from dataclasses import replace
from pathlib import Path

from tests.helpers.debian_root import Entry, account
from tests.helpers.image_build import Stage

README = Path(__file__).resolve().parents[2] / "docker" / "README.md"
SOMEONE = (4321, 4321)  # neither root nor trainer
_WITHOUT_EFFECT = ("--gpus", "--device", "--ulimit", "--name")  # no GPU, no InfiniBand, no limits here


def documented(section: str) -> list[str]:
    """The shell commands below a heading of docker/README.md, each on one line."""
    text = README.read_text(encoding="utf-8").split(f"\n## {section}\n", 1)[1].split("\n## ", 1)[0]
    blocks = re.findall(r"^```bash\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [" ".join(line.split()) for line in lines if line]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="docker run", allow_abbrev=False, exit_on_error=False)
    for flag in ("--rm", "--init", "-d"):
        parser.add_argument(flag, action="store_true")
    for flag in _WITHOUT_EFFECT:
        parser.add_argument(flag, action="append")
    parser.add_argument("--shm-size", default="64m")
    parser.add_argument("--network", choices=["none", "host"], default="none")
    parser.add_argument("--user")
    parser.add_argument("-v", dest="volumes", action="append", default=[])
    parser.add_argument("-e", dest="variables", action="append", default=[])
    parser.add_argument("image", choices=["horovod-yolo:cpu", "horovod-yolo:gpu"])
    parser.add_argument("command", nargs=argparse.REMAINDER)
    return parser


def parse(command: str) -> argparse.Namespace:
    """What follows ``docker run`` on a command line; an option that is not known here is an error."""
    docker, run, *words = shlex.split(command)
    assert (docker, run) == ("docker", "run"), command
    return _parser().parse_args(words)


def docker_run(command: str, image: Stage, here: Path) -> tuple[Entry, list[str]]:
    """How ``docker run ...``, typed in the folder ``here``, enters the image, and what it runs there.

    Without ``--network host`` there is no network but ``lo``. The CPU's image stands in for the GPU's.
    """
    given = parse(command.replace("$PWD", str(here)).replace("$(id -u):$(id -g)", "{}:{}".format(*SOMEONE)))
    entry = image.entry()
    if given.user:
        user, group = map(int, given.user.split(":"))
        entry = replace(entry, user=(user, group), env={**entry.env, "HOME": "/"})
    volumes = [volume.split(":", 1) for volume in given.volumes]
    variables = dict(variable.split("=", 1) for variable in given.variables)
    entry = replace(
        entry,
        env={**entry.env, **variables},
        binds=[(Path(source), target) for source, target in volumes],
        container=True,
        own_network=given.network != "host",
        shm=given.shm_size,
    )
    return entry, given.command or list(image.command)


def trainer(image: Stage) -> tuple[int, int]:
    """Numbers of the image's user and group."""
    return account(image.root, "trainer")[:2]
