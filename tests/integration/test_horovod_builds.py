"""Horovod as others build it: without Gloo, as conda-forge does, or without MPI. Built for real: minutes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from horovod_yolo.launch.transport import WITHOUT_GLOO, WITHOUT_MPI
from tests.helpers.ranks import BIN, REPOSITORY
from tests.unit.test_install_horovod import edits

pytestmark = pytest.mark.slow
MINUTES = 60
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check"]


@dataclass(frozen=True)
class Build:
    """A Horovod, unpacked into a folder that Python looks into first."""

    without: str
    site: Path

    def run(self, *words: str | Path, seconds: float = 300) -> subprocess.CompletedProcess[str]:
        """A command with it."""
        path = {"PYTHONPATH": f"{self.site}:{REPOSITORY}", "PATH": f"{BIN}:{os.environ['PATH']}"}
        environ = {**os.environ, **path, "OMP_NUM_THREADS": "1"}
        return subprocess.run(
            [*map(str, words)],
            env=environ,
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )

    def launch(self, *words: str | Path) -> subprocess.CompletedProcess[str]:
        """`horovod-yolo launch` on two ranks of this host."""
        return self.run(sys.executable, "-m", "horovod_yolo.cli", "launch", "--hosts", "localhost:2", *words)


def only_what_compiles() -> list[object]:
    """The edits without the mends: others build the sources as they are, and horovodrun looks by itself."""
    return [one for one in edits.EDITS if not one.file.endswith(".py") or one.file.endswith("js_run.py")]


@pytest.fixture(scope="module", params=["gloo", "mpi"])
def build(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Build]:
    without, folder = request.param, tmp_path_factory.mktemp(f"without-{request.param}")
    asked = [*PIP, "download", "--no-binary", ":all:", "--no-deps", "--no-build-isolation", "horovod==0.28.1"]
    if subprocess.run([*asked, "--dest", folder], capture_output=True, check=False).returncode:
        pytest.skip("LOUD SKIP: Horovod's sources cannot be downloaded here")
    shutil.unpack_archive(folder / "horovod-0.28.1.tar.gz", folder)
    edits.apply_edits(folder / "horovod-0.28.1", only_what_compiles())
    switches = {f"HOROVOD_WITH_{kind}": "1" for kind in ("PYTORCH", "GLOO", "MPI") if kind != without.upper()}
    switches |= {f"HOROVOD_WITHOUT_{kind}": "1" for kind in ("TENSORFLOW", "MXNET", without.upper())}
    subprocess.run(
        [
            *PIP,
            "wheel",
            "--no-build-isolation",
            "--no-deps",
            "--wheel-dir",
            folder,
            folder / "horovod-0.28.1",
        ],
        env={**os.environ, **switches, "PATH": f"{BIN}:{os.environ['PATH']}", "LDFLAGS": "-Wl,-s"},
        capture_output=True,
        timeout=MINUTES * 60,
        check=True,
    )
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive_of_wheel:
        archive_of_wheel.extractall(folder / "site")
    yield Build(without, folder / "site")


def test_its_file_tells_the_truth(build: Build) -> None:
    code = (
        "import horovod.torch as hvd; from horovod_yolo.distributed.horovod_build import *; "
        "built = horovod_built_with(); print(hvd.__file__, 'Gloo' in built, 'MPI' in built);"
        "assert hvd.gloo_built() == ('Gloo' in built) and hvd.mpi_built() == ('MPI' in built)"
    )
    done = build.run(sys.executable, "-c", code)
    assert done.returncode == 0 and str(build.site) in done.stdout, done.stderr
    assert done.stdout.split()[1:] == (["False", "True"] if build.without == "gloo" else ["True", "False"])


def test_ranks_start_over_what_is_there(build: Build, digits: Path, tmp_path: Path) -> None:
    flags = ["--cfg", "yolov5n", "--img", "64", "--batch", "14", "--max-steps", "1", "--workers", "0"]
    flags += ["--device", "cpu", "--noplots", "--project", str(tmp_path)]
    done = build.launch("--", "train", "--data", digits, *flags)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (WITHOUT_GLOO in done.stderr) == (build.without == "gloo")
    assert (tmp_path / "exp" / "results.json").exists()


def test_what_cannot_work_is_a_line(build: Build) -> None:
    flags = ["--gloo", "--elastic"] if build.without == "gloo" else ["--mpi", "--mpirun"]
    for flag in flags:
        refused = build.launch(flag, "--", "train", "--data", "d.yaml", "--cfg", "yolov5n")
        why = WITHOUT_GLOO if build.without == "gloo" else WITHOUT_MPI
        assert refused.returncode == 2 and refused.stderr.startswith(f"error: {flag}: {why}"), refused.stderr


def test_doctor_tries_what_is_there_and_has_a_note(build: Build) -> None:
    seen = build.run(sys.executable, "-m", "horovod_yolo.cli", "doctor", "--timeout", "120")
    assert seen.returncode == 0 and "healthy" in seen.stdout, seen.stdout + seen.stderr
    assert ("note: Horovod is built without" in seen.stdout) and "allreduce of" in seen.stdout, seen.stdout
