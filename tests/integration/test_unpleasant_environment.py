"""What notebooks, schedulers and containers leave in the environment does not fail a run."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.ranks import REPOSITORY

FLAGS = "--cfg yolov5n --img 64 --batch 4 --epochs 1 --max-steps 2 --noautoanchor --device cpu --name run"


@pytest.fixture
def long_folder() -> Iterator[Path]:
    """As a scheduler's TMPDIR: longer than the address of a socket may be."""
    with tempfile.TemporaryDirectory() as made:
        folder = (
            Path(made) / "scratch/cluster-one/local/users/somebody_with_a_long_name/jobs/1234567.example.org"
        )
        folder.mkdir(parents=True)
        yield folder


def train(data: Path, project: Path, *flags: str, **variables: str) -> subprocess.CompletedProcess[bytes]:
    kept = {name: os.environ[name] for name in ("PATH", "PYTHONPATH", "XDG_CACHE_HOME") if name in os.environ}
    command = [
        sys.executable,
        "train.py",
        "--data",
        str(data),
        "--project",
        str(project),
        *FLAGS.split(),
        *flags,
    ]
    return subprocess.run(
        command,
        cwd=REPOSITORY,
        env={**kept, "OMP_NUM_THREADS": "1", **variables},
        capture_output=True,
        timeout=200,
    )


def test_a_notebooks_backend_and_names_that_are_no_text(
    tmp_path: Path, digits: Path, long_folder: Path
) -> None:
    """An MPLBACKEND that is not installed, no HOME, a folder named in Latin-1, a long TMPDIR with workers."""
    project = tmp_path / os.fsdecode(b"r\xe9sultats")
    done = train(
        digits,
        project,
        "--workers",
        "1",
        MPLBACKEND="module://not_there.backend_inline",
        TMPDIR=str(long_folder),
        LC_ALL="C.UTF-8",
    )
    assert done.returncode == 0, done.stderr.decode(errors="replace")
    assert b"Traceback" not in done.stderr and b"left out" not in done.stdout
    run = project / "run"
    for name in ("results.png", "train_samples.png", "val_predictions.png", "report.html"):
        assert (run / name).stat().st_size > 1000, name
    assert b"mAP50 " in done.stdout and b"report.html" in done.stdout


def test_a_report_that_cannot_be_drawn_is_a_warning(tmp_path: Path, digits: Path) -> None:
    """Matplotlib is there and broken; everything that needs none of it is written."""
    broken = tmp_path / "broken/matplotlib"
    broken.mkdir(parents=True)
    (broken / "__init__.py").write_text("raise ValueError('broken on purpose')\n")
    paths = f"{broken.parent}:{os.environ.get('PYTHONPATH', REPOSITORY)}"
    done = train(digits, tmp_path, "--workers", "0", PYTHONPATH=paths)
    assert done.returncode == 0, done.stderr.decode()
    assert b"broken on purpose; results.png is left out" in done.stdout
    assert (tmp_path / "run/report.html").exists() and not (tmp_path / "run/results.png").exists()
