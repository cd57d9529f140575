"""Where cached annotations lie: on a disk of this host, in a folder that nobody else can enter."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from horovod_yolo.assembly.data import annotation_folder
from horovod_yolo.io import places
from horovod_yolo.io.places import is_local, local_cache, private_folder


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(places, "_SCRATCH", tmp_path / "scratch")
    return tmp_path / "scratch"


def mounts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, **kinds: str) -> None:
    """Let the kernel say that folders of the test's are mounts."""
    lines = ["21 1 254:0 / / rw - ext4 /dev/root rw\n"]
    lines += [
        f"3{i} 21 0:5 / {tmp_path / name} rw - {kind} x rw\n" for i, (name, kind) in enumerate(kinds.items())
    ]
    (tmp_path / "mountinfo").write_text("".join(lines))
    monkeypatch.setattr(places, "_MOUNTS", tmp_path / "mountinfo")


def mode(folder: Path) -> int:
    return folder.stat().st_mode & 0o777


def test_the_last_mount_above_a_path_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in ("net", "network", "with space"):
        (tmp_path / folder).mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "net")
    mounts(monkeypatch, tmp_path, **{"net": "nfs4", "net/disk": "xfs", "with\\040space": "fuse.sshfs"})
    local = {name: is_local(tmp_path / name) for name in ("", "network/a", "net/disk/a")}
    remote = {name: is_local(tmp_path / name) for name in ("net", "net/a", "link/a", "with space/a")}
    assert all(local.values()) and not any(remote.values()), (local, remote)
    monkeypatch.setattr(places, "_MOUNTS", tmp_path / "none")
    assert not is_local(tmp_path), "nobody knows"


def test_a_home_on_a_local_disk_has_the_cache(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mounts(monkeypatch, tmp_path)
    folder = home / "horovod_yolo" / "annotations"
    folder.mkdir(parents=True, mode=0o755)
    assert annotation_folder("") == local_cache("annotations") == folder
    assert mode(folder) == 0o700
    assert annotation_folder("/elsewhere") == Path("/elsewhere/annotations")


def test_where_homes_are_on_a_network_a_local_disk_has_it_under_a_name_of_the_users(
    home: Path, scratch: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mounts(monkeypatch, tmp_path, home="nfs")
    folder = local_cache("annotations")
    assert folder is not None and folder.parent.parent == scratch and len(folder.parent.name) > 32
    assert mode(folder) == mode(folder.parent) == 0o700
    assert local_cache("annotations") == folder, "the next process finds it"
    (word,) = (home / "horovod_yolo").iterdir()
    word.write_text("../../etc")
    assert local_cache("annotations") is None
    mounts(monkeypatch, tmp_path, home="nfs", scratch="nfs")
    word.unlink()
    assert local_cache("annotations") is None, "no disk of this host"


def test_an_account_without_a_home_has_no_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError

    monkeypatch.setenv("XDG_CACHE_HOME", "relative/is/ignored")
    monkeypatch.setattr(Path, "home", homeless)
    assert local_cache("annotations") is None


def test_a_name_that_is_taken_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "other")
    (tmp_path / "file").touch()
    assert private_folder(tmp_path / "link", "a") is None and private_folder(tmp_path / "file", "a") is None
    assert not list((tmp_path / "other").iterdir())
    if os.geteuid() != 0:
        pytest.skip("only root can give a folder away")
    os.chown(tmp_path / "other", 12345, 12345)
    assert private_folder(tmp_path / "other", "a") is None
