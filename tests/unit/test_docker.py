"""What can be said of docker/ without building an image; tests/integration/test_dockerfile.py builds one."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from horovod_yolo.config.load import train_parser
from tests.helpers.docker_run import README, documented, parse
from tests.helpers.image_build import copy_context

REPO = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
FILES = ["Dockerfile.cpu", "Dockerfile.gpu"]
SECTIONS = ["One node", "Two nodes", "As another user"]


def steps(name: str) -> list[Any]:
    buildkit = pytest.importorskip(
        "dockerfile", reason="LOUD SKIP: no parser of Dockerfiles for this platform"
    )
    return list(buildkit.parse_file(str(REPO / "docker" / name)))


def arguments(name: str) -> dict[str, str]:
    """The build arguments with their defaults."""
    words = [step.value[0].partition("=") for step in steps(name) if step.cmd.upper() == "ARG"]
    return {argument: default for argument, _, default in words}


def last_stage(name: str) -> list[Any]:
    found = steps(name)
    return found[max(i for i, step in enumerate(found) if step.cmd.upper() == "FROM") + 1 :]


@pytest.mark.parametrize("name", FILES)
def test_the_linter_finds_nothing(name: str) -> None:
    tool = shutil.which("hadolint", path=f"{BIN}:{os.environ['PATH']}")
    if tool is None:
        pytest.skip("LOUD SKIP: no hadolint: `make setup` installs it")
    done = subprocess.run([tool, f"docker/{name}"], cwd=REPO, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_both_images_have_one_layout() -> None:
    def layout(name: str) -> list[tuple[str, ...]]:
        return [(s.cmd.upper(), *s.flags, *s.value) for s in last_stage(name) if s.cmd.upper() != "RUN"]

    assert layout(FILES[0]) == layout(FILES[1])
    assert ("USER", "${UID}") in layout(FILES[0]) and ("EXPOSE", "2222") in layout(FILES[0])
    for path in ("/opt/venv", "/opt/horovod_yolo"):
        assert ("COPY", "--from=build", path, path) in layout(FILES[0])


@pytest.mark.parametrize("name", FILES)
def test_no_host_key_is_left_by_the_step_that_makes_them(name: str) -> None:
    (install,) = (s.value[0] for s in last_stage(name) if "openssh-server" in s.value[0])
    assert "rm -rf" in install and install.rstrip().endswith("/etc/ssh/ssh_host_*")


def test_torch_and_the_image_have_the_same_cuda() -> None:
    given = arguments("Dockerfile.gpu")
    assert given["TORCH_BUILD"] == "cu" + "".join(given["CUDA"].split(".")[:2])
    # Horovod is built for what torch is built for, which begins where CUDA 13 begins.
    assert re.fullmatch(r"75(,\d+)+", given["GPUS"])


def test_the_build_arguments_are_documented_with_their_defaults() -> None:
    documented_ones: dict[str, str] = {}
    for names, defaults in re.findall(
        r"^\| ((?:`[A-Z_]+`(?:, )?)+) \| (.+?) \|", README.read_text(), re.MULTILINE
    ):
        for name, default in zip(
            re.findall(r"`(.+?)`", names), re.findall(r"`(.+?)`", defaults), strict=False
        ):
            documented_ones[name] = default
    assert set(documented_ones) == set(arguments(FILES[0])) | set(arguments(FILES[1]))
    for name, default in arguments("Dockerfile.gpu").items() | arguments("Dockerfile.cpu").items():
        if "$" not in default and name != "TORCH_BUILD":
            assert documented_ones[name] == default


def test_the_images_have_the_extras_that_jobs_of_clouds_need() -> None:
    given = [arguments(name)["EXTRAS"] for name in FILES]
    assert given[0] == given[1]
    extras = set(given[0].split(","))
    assert extras <= set(metadata.metadata("horovod_yolo").get_all("Provides-Extra") or ())
    jobs = "".join(path.read_text() for path in (REPO / "launch/clouds").glob("*.yaml"))
    assert "its path: gs://" in jobs and "cloud" in extras
    assert {f"`{extra}`" for extra in extras} <= set(re.findall(r"`\w+`", README.read_text()))
    for name in FILES:
        assert [s for s in steps(name) if s.cmd.upper() == "RUN" and '".[${EXTRAS}]"' in s.value[0]]


def test_the_build_sees_what_it_copies_and_nothing_private(tmp_path: Path) -> None:
    context = tmp_path / "context"
    shutil.copytree(
        REPO, context, ignore=shutil.ignore_patterns(".git", ".venv", "runs", "datasets", "__pycache__")
    )
    for private in (
        ".git/config",
        ".venv/bin/python",
        "runs/train/exp/last.pt",
        "datasets/a.jpg",
        "keys/id_ed25519",
    ):
        (context / private).parent.mkdir(parents=True, exist_ok=True)
        (context / private).write_text("private")
    (context / "horovod_yolo/__pycache__").mkdir()
    (context / "horovod_yolo/__pycache__/cli.pyc").write_text("private")
    copy_context(context, tmp_path / "seen")
    seen = {
        str(path.relative_to(tmp_path / "seen")) for path in (tmp_path / "seen").rglob("*") if path.is_file()
    }
    assert not [name for name in seen if (tmp_path / "seen" / name).read_bytes() == b"private"]
    assert {
        "train.py",
        "horovod_yolo/cli/commands.py",
        "horovod_yolo/config/hyp.digits.anchor_based.yaml",
        "docker/sshd.sh",
    } <= seen
    copied = {
        word
        for name in FILES
        for s in steps(name)
        if s.cmd.upper() == "COPY" and not s.flags
        for word in s.value[:-1]
    }
    folders = {str(folder) for name in seen for folder in Path(name).parents}
    assert copied <= seen | folders and "." in copied


@pytest.mark.parametrize("section", SECTIONS)
def test_commands_of_the_readme_are_understood(section: str) -> None:
    runs = [parse(line).command for line in documented(section) if line.startswith("docker run")]
    jobs = [words[words.index("train") + 1 :] for words in runs if "train" in words]
    assert jobs
    for job in jobs:
        train_parser().parse_strictly(job)
    for words in runs:
        program = REPO / words[0].removeprefix("/opt/horovod_yolo/")
        assert words[0] == "horovod-yolo" or os.access(program, os.X_OK), words


def test_the_script_of_sshd_is_safe_and_clean() -> None:
    script = REPO / "docker/sshd.sh"
    assert "\nset -euo pipefail\n" in script.read_text() and os.access(script, os.X_OK)
    tool = shutil.which("shellcheck", path=f"{BIN}:{os.environ['PATH']}")
    if tool is None:
        pytest.skip("LOUD SKIP: no shellcheck: `make setup` installs it")
    done = subprocess.run([tool, str(script)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
