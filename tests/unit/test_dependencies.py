"""What the package imports is declared in setup.py, training needs the base alone, a wheel has it all."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.unit.test_packaging import REPO, declared

__all__ = ["declared"]  # a fixture

PACKAGE = REPO / "horovod_yolo"
# Built for the machine by `horovod-yolo install-horovod`; for type checkers; beside the script that runs it.
FROM_ELSEWHERE = ("horovod", "_typeshed", "horovod_rendezvous")


def imported(path: Path) -> Iterator[tuple[str, bool]]:
    """What a file imports of other people's packages, and whether as soon as it is imported itself."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    at_once = {id(node) for node in tree.body}
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        for name in {name.split(".")[0] for name in names}:
            if name not in sys.stdlib_module_names and name not in ("horovod_yolo", *FROM_ELSEWHERE):
                yield name, id(node) in at_once


def names_of(requirements: list[str]) -> set[str]:
    return {canonicalize_name(Requirement(text).name) for text in requirements}


distributions = cache(metadata.packages_distributions)


def declared_names(declared: dict[str, Any]) -> tuple[set[str], set[str]]:
    """Of the base, and of all extras."""
    extras = [text for extra in declared["extras_require"].values() for text in extra]
    return names_of(declared["install_requires"]), names_of(extras)


@cache
def packages_of(module: str) -> set[str]:
    """The packages as pip names them that a module comes from; nvidia's and its like come from several."""
    return {canonicalize_name(name) for name in distributions().get(module, [module])}


def all_that(names: set[str]) -> set[str]:
    """The packages and what they require, here."""
    found: set[str] = set()
    waiting = list(names)
    while waiting:
        name = canonicalize_name(waiting.pop())
        if name in found:
            continue
        found.add(name)
        needed = map(Requirement, metadata.requires(name) or [])
        waiting += [r.name for r in needed if r.marker is None or r.marker.evaluate({"extra": ""})]
    return found


def test_imports_are_declared_and_those_at_once_are_in_the_base(
    declared: dict[str, Any],
) -> None:
    base, extras = declared_names(declared)
    used: set[str] = set()
    files = [*PACKAGE.rglob("*.py"), REPO / "train.py"]
    for path in files:
        for module, at_once in imported(path):
            (name,) = packages_of(module)
            assert name in (base if at_once else base | extras), f"{path} imports {module}"
            used.add(name)
    assert base <= used, f"in the base, and imported by nobody: {base - used}"


@pytest.fixture
def base_site(declared: dict[str, Any], tmp_path: Path) -> Path:
    """A folder of installed packages that has what the base requires and nothing else."""
    site = tmp_path / "site"
    site.mkdir()
    for name in all_that(names_of(declared["install_requires"])):
        distribution = metadata.distribution(name)
        for top in {path.parts[0] for path in distribution.files or ()} - {"..", "__pycache__"}:
            (site / top).symlink_to(Path(str(distribution.locate_file(top))))
    return site


def in_base(site: Path, *words: str | Path) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "VIRTUAL_ENV"}
    return subprocess.run(
        [sys.executable, "-S", *map(str, words)],  # -S: not the environment that the tests have
        env={**environment, "PYTHONPATH": f"{site}:{REPO}", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


TRAIN = """
import sys
from horovod_yolo.cli import main
code = main(sys.argv[1:])
print("modules:", *{name.split(".")[0] for name in sys.modules})
sys.exit(code)
"""


def test_training_needs_the_base_alone(
    base_site: Path, declared: dict[str, Any], digits: Path, tmp_path: Path
) -> None:
    flags = ["--img", "64", "--batch", "14", "--max-steps", "1", "--workers", "0", "--device", "cpu"]
    words = ["train", "--data", str(digits), "--cfg", "yolov5n", "--project", str(tmp_path), *flags]
    done = in_base(base_site, "-c", TRAIN, *words)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "exp/report.html").is_file()
    modules = set(done.stdout.rpartition("modules:")[2].split()) - sys.stdlib_module_names
    loaded = {name for module in modules for name in packages_of(module)}
    base, extras = declared_names(declared)
    assert {"torch", "matplotlib"} <= loaded
    assert not loaded & (extras - all_that(base))


def test_without_the_pictures_the_built_in_data_set_names_its_extra(base_site: Path, tmp_path: Path) -> None:
    done = in_base(base_site, "-m", "horovod_yolo.cli", "data", "digits", "--out", tmp_path / "digits")
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        "error: the built-in data set needs the pictures in scikit-image and scikit-learn. "
        "pip install scikit-image scikit-learn, which are the extra [demo]"
    ]


def test_without_its_package_a_logger_names_its_extra(base_site: Path, digits: Path, tmp_path: Path) -> None:
    """A folder that wandb has left is not its package."""
    (base_site / "wandb").mkdir()
    words = ["--data", digits, "--cfg", "yolov5n", "--project", tmp_path, "--device", "cpu"]
    done = in_base(base_site, "-m", "horovod_yolo.cli", "train", *words, "--log-to", "wandb")
    assert done.returncode == 2
    (line,) = [line for line in done.stderr.splitlines() if "error: " in line]
    assert line.endswith(
        "--log-to wandb needs the package wandb, which is not installed. "
        "pip install 'horovod_yolo[wandb]', or leave it out"
    )


def test_a_wheel_holds_the_package_and_nothing_else(tmp_path: Path) -> None:
    """Built out of the sources that ``python -m build`` would publish."""
    source = tmp_path / "source"
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=REPO,
        capture_output=True,
        text=True,
        check=True,
    )
    files = [Path(name) for name in listed.stdout.split("\0") if name and (REPO / name).is_file()]
    for path in files:
        (source / path).parent.mkdir(parents=True, exist_ok=True)
        (source / path).symlink_to(REPO / path)
    built = subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", tmp_path / "out", source],
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stdout + built.stderr
    (wheel,) = (tmp_path / "out").glob("horovod_yolo-*-py3-none-any.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    inside = {name for name in names if not name.partition("/")[0].endswith(".dist-info")}
    assert inside == {str(path) for path in files if path.parts[0] == "horovod_yolo"}
    assert {name.rpartition("/")[2] for name in names - inside} >= {"METADATA", "entry_points.txt", "LICENSE"}
