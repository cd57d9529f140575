"""Folders of this user's own, where a second user of the machine was there first. The second user is real."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from horovod_yolo.assembly.data import annotation_folder
from horovod_yolo.assembly.elastic import elastic_run
from horovod_yolo.assembly.run_folder import new_run_folder
from horovod_yolo.checkpoint.checkpointer import Checkpointer
from horovod_yolo.checkpoint.migration import FORMAT_VERSION
from horovod_yolo.checkpoint.rescue import save_once
from horovod_yolo.core.errors import UserError
from horovod_yolo.distributed.elastic import Kept
from horovod_yolo.distributed.local import LocalCommunicator
from horovod_yolo.io.places import private_folder
from horovod_yolo.io.private import check_own, own_folder
from horovod_yolo.process import logs

STRANGER = 54321


@pytest.fixture
def shared() -> Iterator[Path]:
    """A folder as /tmp is: anyone may write, and remove what is his."""
    with tempfile.TemporaryDirectory(prefix="shared-") as made:
        Path(made).chmod(0o1777)
        yield Path(made)


def as_stranger(*command: object) -> None:
    if os.geteuid() != 0:
        pytest.skip("LOUD SKIP: a second user needs root; nothing is tested against one")
    subprocess.run(list(map(str, command)), user=STRANGER, group=STRANGER, extra_groups=[], check=True)


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def test_what_is_made_where_anyone_may_write_is_private(shared: Path, tmp_path: Path) -> None:
    own_folder(shared / "a" / "b")
    assert mode(shared / "a") == 0o700
    own_folder(shared / "a" / "b")  # once more
    before = os.umask(0o022)
    try:
        own_folder(tmp_path / "c" / "d")
    finally:
        os.umask(before)
    assert mode(tmp_path / "c") == mode(tmp_path / "c/d") == 0o755  # elsewhere the umask decides


def test_a_name_that_somebody_took_first_is_refused(shared: Path) -> None:
    as_stranger("mkdir", "-m", "777", shared / "taken")
    for look in (own_folder, check_own):
        with pytest.raises(OSError, match="belongs to another user"):
            look(shared / "taken" / "mine")
    assert not list((shared / "taken").iterdir())
    check_own(shared / "free" / "mine")


def test_no_link_of_somebody_else_is_followed(shared: Path, tmp_path: Path) -> None:
    as_stranger("ln", "-s", tmp_path, shared / "link")
    with pytest.raises(OSError, match="belongs to another user"):
        own_folder(shared / "link" / "runs")
    assert not list(tmp_path.iterdir())


def test_where_ones_own_link_leads_must_be_ones_own_too(shared: Path, tmp_path: Path) -> None:
    """Such as a link in the home to a scratch folder, which was tidied up, and made again by another user."""
    (tmp_path / "runs").symlink_to(shared / "mine")
    own_folder(shared / "mine")
    own_folder(tmp_path / "runs" / "train")
    (shared / "mine" / "train").rmdir()
    (shared / "mine").rmdir()
    as_stranger("mkdir", "-m", "777", shared / "mine")
    for look in (own_folder, check_own):
        with pytest.raises(OSError, match="belongs to another user"):
            look(tmp_path / "runs" / "train")
    assert not list((shared / "mine").iterdir())


def test_a_folder_of_ones_group_is_trusted(shared: Path) -> None:
    """As projects have on a scratch disk, made by whoever leads them."""
    (shared / "project").mkdir()
    (shared / "project").chmod(0o2775)
    os.chown(shared / "project", STRANGER, os.getegid())
    own_folder(shared / "project" / "runs")
    (shared / "project").chmod(0o2755)
    with pytest.raises(OSError, match="belongs to another user"):
        own_folder(shared / "project" / "runs")


def test_caches_in_tmp(shared: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What is in them is trained on."""
    made = annotation_folder(str(shared / "cache"))
    assert made == shared / "cache/annotations" and mode(shared / "cache") == 0o700 and made.is_dir()
    as_stranger("mkdir", "-p", "-m", "777", shared / "theirs" / "annotations")
    assert annotation_folder(str(shared / "theirs")) is None
    assert f"not cached in {shared}/theirs/annotations: it belongs to another user" in caplog.text
    assert private_folder(shared / "theirs" / "horovod_yolo") is None  # as with XDG_CACHE_HOME there
    assert not list((shared / "theirs" / "annotations").iterdir())


def test_run_folders_and_logs_in_tmp(shared: Path) -> None:
    assert mode(new_run_folder(shared, "exp", exist_ok=False)) == 0o700
    assert mode(new_run_folder(shared, "kept", exist_ok=True)) == 0o700
    as_stranger("mkdir", shared / "theirs")
    assert new_run_folder(shared, "theirs", exist_ok=False) == shared / "theirs2"
    for make in (
        lambda: new_run_folder(shared, "theirs", exist_ok=True),
        lambda: new_run_folder(shared / "theirs", "exp", exist_ok=False),
        lambda: logs._file(shared / "theirs/logs/rank-00.log", "rank 0"),
    ):
        with pytest.raises(UserError, match="belongs to another user"):
            make()


def test_checkpoints_of_a_run_whose_folder_somebody_else_made_meanwhile(
    shared: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A tidy-up took the folder away, and he was faster. To the run that is a disk that refuses."""
    as_stranger("mkdir", "-m", "777", "-p", shared / "run" / "weights")
    weights = shared / "run" / "weights"
    state = {"format_version": FORMAT_VERSION, "step": 1, "epoch": 1, "sampler": {"epoch": 1, "batch": 0}}
    save_once(weights.parent, state)
    checkpointer = Checkpointer(weights, save_period=-1)
    checkpointer.on_commit(state, False)
    checkpointer.close()
    assert caplog.text.count(f"CHECKPOINT NOT WRITTEN to {weights}: it belongs to another user") == 2
    assert not list(weights.iterdir())


def test_survivors_of_an_elastic_job_on_another_host_make_the_folder_their_own(shared: Path) -> None:
    as_stranger("mkdir", "-m", "777", shared / "run")
    kept = Kept(1.0, lambda content: None, lambda content: None, lambda seconds: None)
    kept.keep({"folder": str(shared / "run"), "state": None}, (0, 0, 0))
    with pytest.raises(OSError, match="belongs to another user"):
        elastic_run(lambda: pytest.fail("there is a run"), kept, LocalCommunicator())
    assert not list((shared / "run").iterdir())
