"""The stage: copies on a host's disk, read to the bit as their source, and what goes wrong with them."""

from __future__ import annotations

import fcntl
import logging
import os
import pickle
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from horovod_yolo.assembly.data import Data
from horovod_yolo.assembly.staging import staged
from horovod_yolo.data import stage, staging
from horovod_yolo.data.annotations import Annotations
from horovod_yolo.data.cache import ImageReader
from horovod_yolo.data.read import MissingImageError
from horovod_yolo.data.shards import ImageBytes
from horovod_yolo.data.spec import load_data_yaml
from horovod_yolo.data.stage import Staged
from horovod_yolo.data.staging import Copier
from tests.helpers.disk import Disk, why_not
from tests.helpers.packs import pack
from tests.helpers.scanned import annotations_of

IMAGES = 35  # 28 to train with, 7 to validate


@pytest.fixture(params=["loose", "packed"])
def data(request: pytest.FixtureRequest, digits: Path, tmp_path: Path) -> Path:
    """A data.yaml whose split of 28 images is staged in four parts or more."""
    if request.param == "packed":
        return pack(digits, tmp_path / "set")
    shutil.copytree(digits.parent, tmp_path / "set")
    return tmp_path / "set" / "data.yaml"


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage, "PART_BYTES", 60_000)


def read(data: Path) -> Data:
    spec = load_data_yaml(data)
    return Data(spec, annotations_of(spec, "train"), annotations_of(spec, "val"))


def with_stage(plain: Data, folder: Path) -> Data:
    return staged(plain, str(folder), keeper=False)[0]


def parts_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("stage-*/*/*") if path.name != staging.LOCK)


class Filled:
    """What a copier has left, when it could do no more."""

    def __init__(self, plain: Data, folder: Path) -> None:
        (callback,) = staged(plain, str(folder), keeper=True)[1]
        self._copier = Copier(callback._splits, callback._source)  # type: ignore[attr-defined]

    def __enter__(self) -> None:
        assert self._copier.done.wait(20)

    def __exit__(self, *_: object) -> None:
        self._copier.close()


def fill(plain: Data, folder: Path) -> None:
    with Filled(plain, folder):
        pass


def copies(annotations: Annotations) -> list[int]:
    """Which images are read from a copy."""
    nearest = (annotations.nearest_file(i) for i in range(len(annotations)))
    return [i for i, file in enumerate(nearest) if isinstance(file, ImageBytes)]


def require_equal(plain: Annotations, other: Annotations) -> None:
    expected, found = ImageReader(plain, (64, 64)), ImageReader(other, (64, 64))
    for i in range(len(plain)):
        np.testing.assert_array_equal(found(i), expected(i))


def test_images_are_read_to_the_bit_from_the_source_until_there_is_a_copy_and_then_without_it(
    data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    plain = read(data)
    before = with_stage(plain, tmp_path / "stage")
    require_equal(plain.train, before.train)
    assert copies(before.train) == []
    expected = [ImageReader(plain.train)(i) for i in range(len(plain.train))]
    with caplog.at_level(logging.INFO):
        fill(plain, tmp_path / "stage")
    assert "0.00 GB are to be copied to" in caplog.text
    assert "stage: all images are in" in caplog.text
    assert len(parts_in(tmp_path / "stage")) >= 5
    shutil.rmtree(data.parent)
    of_a_worker: Annotations = pickle.loads(pickle.dumps(before.train))
    for train in (before.train, of_a_worker):
        assert copies(train) == list(range(28))
        for i, image in enumerate(expected):
            np.testing.assert_array_equal(ImageReader(train)(i), image)
    assert copies(before.val) == list(range(7))


def test_the_next_start_takes_what_is_whole_and_removes_what_is_not(data: Path, tmp_path: Path) -> None:
    plain, folder = read(data), tmp_path / "stage"
    fill(plain, folder)
    kept, cut, gone, *_ = parts_in(folder)
    os.truncate(cut, 1000)
    gone.unlink()
    (half := kept.with_name(f".{gone.name}.00c0ffee.tmp")).write_bytes(b"half")
    written = kept.stat().st_mtime_ns
    fill(plain, folder)
    assert kept.stat().st_mtime_ns == written
    assert not half.exists()
    assert copies(with_stage(plain, folder).train) == list(range(28))


def test_a_copy_that_is_damaged_is_removed_and_said_once(
    data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    plain, folder = read(data), tmp_path / "stage"
    fill(plain, folder)
    first = parts_in(folder)[0]
    with first.open("r+b") as file:
        file.seek(first.stat().st_size // 2)
        file.write(bytes(5000))
    for _ in range(2):
        require_equal(plain.train, with_stage(plain, folder).train)
    assert not first.exists()
    assert caplog.text.count(f"stage: {first}: it is damaged: its images are read from the source") == 1


def test_other_content_has_another_stage_and_the_old_one_goes_unless_a_job_reads_it(
    data: Path, digits: Path, tmp_path: Path
) -> None:
    plain, folder = read(data), tmp_path / "stage"
    fill(plain, folder)
    old = parts_in(folder)[0].parent
    if "pack" in plain.train.file.about:
        shutil.rmtree(data.parent)
        pack(digits, data.parent, "40kB")
    else:
        plain.train.image_path(3).unlink()
    changed = read(data)
    assert copies(with_stage(changed, folder).train) == []
    lock = os.open(old / staging.LOCK, os.O_RDWR)
    fcntl.flock(lock, fcntl.LOCK_EX)
    fill(changed, folder)
    assert old.exists()
    os.close(lock)
    fill(changed, folder)
    assert not old.exists()
    require_equal(changed.train, with_stage(changed, folder).train)
    assert copies(with_stage(changed, folder).train) == list(range(len(changed.train)))


def test_what_the_source_does_not_give_is_said_once_and_costs_its_copies_alone(
    data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    plain, folder = read(data), tmp_path / "stage"
    files = sorted({path for path in data.parent.rglob("*") if path.suffix in (".tar", ".jpg", ".png")})
    train = [path for path in files if "train" in str(path)]
    assert len(train) >= 3
    train[0].unlink()
    os.truncate(train[1], 700)
    fill(plain, folder)
    assert caplog.text.count(f"{train[0]}") == 1
    assert "2 files could not be" in caplog.text
    assert 0 < len(copies(with_stage(plain, folder).train)) < 28
    assert copies(with_stage(plain, folder).val) == list(range(7))


def test_an_image_that_has_changed_since_the_scan_is_not_copied(digits: Path, tmp_path: Path) -> None:
    shutil.copytree(digits.parent, tmp_path / "set")
    plain, folder = read(tmp_path / "set" / "data.yaml"), tmp_path / "stage"
    changed = plain.train.image_path(5)
    content = bytearray(changed.read_bytes())
    content[-4] ^= 1
    changed.write_bytes(content)
    fill(plain, folder)
    assert copies(with_stage(plain, folder).train) == [i for i in range(28) if i != 5]
    plain.train.image_path(6).unlink()
    with pytest.raises(MissingImageError):
        ImageReader(plain.train)(6)
    ImageReader(with_stage(plain, folder).train)(6)


def test_a_disk_without_room_is_asked_first_and_takes_what_fits(
    data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, folder = read(data), tmp_path / "stage"
    monkeypatch.setattr(staging.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(0, 0, 150_000))  # type: ignore[attr-defined]
    fill(plain, folder)
    assert 0 < sum(path.stat().st_size for path in parts_in(folder)) <= 150_000
    assert 0 < len(copies(with_stage(plain, folder).train)) < 28
    assert "GB have no room there" in caplog.text


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Disk]:
    reason = why_not()
    if reason is not None:
        pytest.skip(f"LOUD SKIP: {reason}; a stage on a full disk is not tested")
    with Disk(tmp_path / "disk", "200k") as disk:
        yield disk


def test_a_disk_that_is_full_all_the_same_is_said_and_survived(
    data: Path, small_disk: Disk, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, folder = read(data), small_disk.inside
    monkeypatch.setattr(staging.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(0, 0, 1 << 40))  # type: ignore[attr-defined]
    fill(plain, folder)
    assert caplog.text.count("takes no more copies (No space left on device)") == 1
    assert not list(folder.glob("stage-*/*/.*.tmp"))
    require_equal(plain.train, with_stage(plain, folder).train)


def test_a_folder_of_somebody_else_is_not_read(
    data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o1777)
    theirs = tmp_path / "open" / f"stage-{os.geteuid()}"
    theirs.mkdir()
    os.chown(theirs, 4321, 4321)
    plain = read(data)
    found, callbacks = staged(plain, str(tmp_path / "open"), keeper=True)
    assert (found, callbacks) == (plain, [])
    assert f"--stage {tmp_path / 'open'}: it belongs to another user" in caplog.text


def test_one_copies_and_another_job_takes_over_when_it_is_gone(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(staging, "SECONDS_BETWEEN_TRIES", 0.01)
    plain, folder = read(data), tmp_path / "stage"
    written: list[Path] = []
    replacing = staging.replacing
    monkeypatch.setattr(staging, "replacing", lambda path: written.append(path) or replacing(path))  # type: ignore[func-returns-value]
    with Filled(plain, folder):
        parts_in(folder)[0].unlink()
        (callback,) = staged(plain, str(folder), keeper=True)[1]
        other = Copier(callback._splits, callback._source)  # type: ignore[attr-defined]
        assert not other.done.wait(0.1)
    assert other.done.wait(20)
    other.close()
    assert len(written) == len(set(written)) + 1
    assert copies(with_stage(plain, folder).train) == list(range(28))


def test_a_copier_that_is_closed_leaves_nothing_half(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, folder = read(data), tmp_path / "stage"
    pieces: Callable[..., Iterator[bytes]] = staging.Copier._pieces
    copiers: list[Copier] = []

    def closing(copier: Copier, of: Staged, part: int) -> Iterator[bytes]:
        for piece in pieces(copier, of, part):
            yield piece
            copiers.append(copier)
            if len(copiers) == 3:
                copier._stop.set()

    monkeypatch.setattr(staging.Copier, "_pieces", closing)
    fill(plain, folder)
    assert not list(folder.glob("stage-*/*/.*.tmp"))
    assert 0 < len(copiers) <= 4
    require_equal(plain.train, with_stage(plain, folder).train)
