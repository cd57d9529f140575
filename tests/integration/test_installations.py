"""Fresh environments of other Pythons and versions train, and take Horovod. Each downloads gigabytes."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from packaging.requirements import Requirement

from tests.helpers.fresh import Fresh
from tests.helpers.resolved import resolved
from tests.unit.test_packaging import declared, read_pins

__all__ = ["declared"]  # a fixture

pytestmark = [pytest.mark.slow, pytest.mark.timeout(7200)]


CPU_INDEX = "https://download.pytorch.org/whl/cpu"  # PyPI's torchvision is for CUDA
# As `pip install -c constraints.txt` would, where that index is pip's; both are named "+cpu" there.
PINNED = [
    "--extra-index-url",
    CPU_INDEX,
    *(f"{name}=={read_pins()[name]}+cpu" for name in ("torch", "torchvision")),
]


def is_there(url: str) -> bool:
    """Whether its host has an address from here."""
    try:
        socket.getaddrinfo(urlsplit(url).hostname, 443)
    except OSError:
        return False
    return True


def interpreters(version: str) -> Iterator[str]:
    """Places where a Python may be; pyenv's shims need not lead to one."""
    if found := shutil.which(f"python{version}"):
        yield found
    yield from map(str, sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin/python")))


def interpreter(version: str) -> str:
    ask = "import sys; print('{}.{}'.format(*sys.version_info))"
    for found in interpreters(version):
        said = subprocess.run([found, "-c", ask], capture_output=True, text=True, check=False).stdout
        if said.strip() == version:
            return found
    pytest.skip(f"LOUD SKIP: there is no Python {version} here")


def trains(fresh: Fresh, data: Path) -> None:
    """Both families, with a report at the end."""
    flags = ["imgsz=64", "batch=14", "epochs=1", "workers=1", "device=cpu"]
    for model, steps in (("yolov5n", 2), ("yolo11n", 1)):  # the second makes one step of both batches
        words = [f"data={data}", f"model={model}", f"project={fresh.folder}", f"name={model}", *flags]
        fresh.run(fresh.folder / "venv/bin/horovod-yolo", "train", *words, seconds=900)
        results = json.loads((fresh.folder / model / "results.json").read_text())
        assert results["exit"] == 0 and results["steps"] == steps
        assert (fresh.folder / model / "val_predictions.png").is_file()


@pytest.mark.parametrize("version", ["3.10", "3.12", "3.13"])
def test_other_pythons(digits: Path, tmp_path: Path, version: str) -> None:
    fresh = Fresh.make(tmp_path, interpreter(version))
    fresh.install("-c", tmp_path / "source/constraints.txt")
    trains(fresh, digits)


def test_the_newest_versions(digits: Path, tmp_path: Path) -> None:
    fresh = Fresh.make(tmp_path)
    fresh.install()
    trains(fresh, digits)


def test_the_oldest_versions(declared: dict[str, Any], digits: Path, tmp_path: Path) -> None:
    oldest = [
        f"{name.name}=={spec.version}"
        for name in map(Requirement, declared["install_requires"])
        for spec in name.specifier
        if spec.operator == ">="
    ]
    assert len(oldest) == len(declared["install_requires"])
    (tmp_path / "oldest.txt").write_text("\n".join(oldest))
    fresh = Fresh.make(tmp_path, interpreter("3.10"))
    fresh.install("-c", tmp_path / "oldest.txt")
    trains(fresh, digits)


@pytest.mark.parametrize("words", [["torch==2.14.1", "torchvision==0.29.1"], PINNED], ids=["newer", "pinned"])
def test_beside_torchvision(digits: Path, tmp_path: Path, words: list[str]) -> None:
    if CPU_INDEX in words and not is_there(CPU_INDEX):
        pytest.skip(f"LOUD SKIP: {CPU_INDEX} cannot be reached; the pinned torchvision is not installed")
    fresh = Fresh.make(tmp_path)
    fresh.install(*words)
    fresh.run(fresh.python, "-c", "import torchvision")
    trains(fresh, digits)


def test_horovod_from_what_was_installed(digits: Path, tmp_path: Path) -> None:
    """``install-horovod`` without a checkout: its scripts are those of the package."""
    fresh = Fresh.make(tmp_path)
    fresh.install("-c", tmp_path / "source/constraints.txt")
    shutil.rmtree(tmp_path / "source")
    shutil.rmtree(tmp_path / "tools")  # this needs the compilers
    assert fresh.lacks("horovod")
    command = tmp_path / "venv/bin/horovod-yolo"
    fresh.run(command, "install-horovod", seconds=3600)
    flags = ["imgsz=64", "batch=14", "epochs=1", "workers=0", "device=cpu", "np=2", "engine=horovod"]
    fresh.run(command, "train", f"data={digits}", "model=yolov5n", f"project={tmp_path}", "name=two", *flags)
    results = json.loads((tmp_path / "two/results.json").read_text())
    assert (results["exit"], results["world_size"]) == (0, 2)


def test_a_python_that_is_not_here_gets_wheels() -> None:
    found = resolved("3.14")
    assert "cp314" in found["torch"] and "cp314" in found["numpy"]
