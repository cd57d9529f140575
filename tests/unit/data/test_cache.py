"""Caches: what comes back is what went in, and nothing that happens to the files stops the program."""

from __future__ import annotations

import logging
import os
import threading
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from horovod_yolo.data.cache import ImageCache, default_cache_dir, load_index, save_index
from horovod_yolo.data.index import Index, Problem, Record
from horovod_yolo.data.read import MissingImageError, read_image

ROOT = Path("/data/set")
KEY = "k" * 64


def _record(path: str, n: int, image_id: int | str, seed: int = 0) -> Record:
    rng = np.random.default_rng(seed)
    low = rng.uniform(0, 50, (n, 2))
    return Record(
        path=path,
        height=100 + n,
        width=200 + n,
        classes=rng.integers(0, 2, n),
        boxes_xyxy=np.concatenate([low, low + 10], axis=1).astype(np.float32),
        crowd=rng.uniform(size=n) < 0.5,
        areas=rng.uniform(1, 100, n).astype(np.float32),
        image_id=image_id,
    )


INDEX = Index(
    ROOT,
    ("cat", "wéird"),
    (
        _record("images/1.jpg", 3, 5, seed=1),
        _record("images/none.jpg", 0, "x7", seed=2),
        _record("/elsewhere/" + os.fsdecode(b"caf\xe9.jpg"), 1, 2**60, seed=3),
        _record("images/last.jpg", 0, 4),
    ),
)
PROBLEMS = [Problem(str(ROOT / "labels/1.txt"), 4, "why"), Problem("/elsewhere/b.jpg", None, "broken")]


def _saved(folder: Path) -> Path:
    save_index(folder, KEY, INDEX, PROBLEMS)
    (file,) = folder.iterdir()
    return file


def test_index_comes_back_exactly(tmp_path: Path) -> None:
    _saved(tmp_path)
    loaded = load_index(tmp_path, KEY, ROOT)
    assert loaded is not None
    index, problems = loaded
    assert problems == PROBLEMS
    assert index.digest == INDEX.digest
    assert (index.root, index.names) == (INDEX.root, INDEX.names)
    for a, b in zip(index.records, INDEX.records, strict=True):
        assert (a.path, a.height, a.width, a.image_id) == (b.path, b.height, b.width, b.image_id)
        for name in ("classes", "boxes_xyxy", "crowd", "areas"):
            x, y = getattr(a, name), getattr(b, name)
            assert x.dtype == y.dtype and x.shape == y.shape
            np.testing.assert_array_equal(x, y)


def test_index_moves_with_the_data(tmp_path: Path) -> None:
    file = _saved(tmp_path)
    assert str(ROOT).encode() not in file.read_bytes()
    loaded = load_index(tmp_path, KEY, Path("/new"))
    assert loaded is not None
    index, problems = loaded
    assert index.image_path(0) == Path("/new/images/1.jpg")
    assert str(index.image_path(2)).startswith("/elsewhere/")
    assert [problem.file for problem in problems] == ["/new/labels/1.txt", "/elsewhere/b.jpg"]


def test_another_key_is_a_silent_miss(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = _saved(tmp_path)
    assert load_index(tmp_path, "other", ROOT) is None
    assert load_index(tmp_path / "no folder", KEY, ROOT) is None
    assert caplog.text == ""
    file.rename(tmp_path / "other.npz")
    assert load_index(tmp_path, "other", ROOT) is None
    assert "of another version or data set" in caplog.text


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_index_is_a_miss_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, data: st.DataObject
) -> None:
    file = _saved(tmp_path)
    whole = file.read_bytes()
    if data.draw(st.booleans(), "cut"):
        damaged = whole[: data.draw(st.integers(0, len(whole) - 1))]
    else:
        place = data.draw(st.integers(0, len(whole) - 1))
        damaged = whole[:place] + bytes([whole[place] ^ data.draw(st.integers(1, 255))]) + whole[place + 1 :]
    file.write_bytes(damaged)
    caplog.clear()
    loaded = load_index(tmp_path, KEY, ROOT)
    if loaded is None:
        assert "unusable" in caplog.text
    else:  # the byte was one that zip readers do not look at
        assert loaded[0].digest == INDEX.digest and loaded[1] == PROBLEMS


def test_index_with_pickles_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / f"{KEY}.npz", about=np.array([{"a": 1}], dtype=object), allow_pickle=True)
    assert load_index(tmp_path, KEY, ROOT) is None


def test_folder_that_cannot_be_written_to_is_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    save_index(tmp_path / "file/below", KEY, INDEX, PROBLEMS)
    assert "cannot be cached" in caplog.text
    assert load_index(tmp_path / "file/below", KEY, ROOT) is None


def test_failed_write_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    file = _saved(tmp_path)
    before = file.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    save_index(tmp_path, KEY, INDEX, [])
    assert "No space left" in caplog.text
    assert [path.name for path in tmp_path.iterdir()] == [file.name]
    assert file.read_bytes() == before


def _write_often(folder: Path) -> None:
    for _ in range(30):
        save_index(folder, KEY, INDEX, PROBLEMS)


def test_readers_never_see_half_a_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    _saved(tmp_path)
    writers = [threading.Thread(target=_write_often, args=(tmp_path,)) for _ in range(3)]
    for writer in writers:
        writer.start()
    reads = 0
    while any(writer.is_alive() for writer in writers) or reads == 0:
        loaded = load_index(tmp_path, KEY, ROOT)
        assert loaded is not None and loaded[0].digest == INDEX.digest
        reads += 1
    for writer in writers:
        writer.join()
    assert len(list(tmp_path.iterdir())) == 1
    assert caplog.text == ""


def test_the_indexes_used_last_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("horovod_yolo.data.cache.INDEXES_KEPT", 3)
    index = Index(tmp_path, ("cat", "dog"), (_record("a.jpg", 2, 0),))
    old, recent = tmp_path / ".old.tmp", tmp_path / ".recent.tmp"
    old.write_bytes(b"left by a killed writer")
    os.utime(old, (1, 1))
    recent.write_bytes(b"being written")
    for age, key in enumerate(("k0", "k1", "k2")):
        save_index(tmp_path, key, index, [])
        os.utime(tmp_path / f"{key}.npz", (1000 + age, 1000 + age))
    assert load_index(tmp_path, "k0", tmp_path) is not None
    save_index(tmp_path, "k3", index, [])
    assert {file.name for file in tmp_path.iterdir()} == {"k0.npz", "k2.npz", "k3.npz", ".recent.tmp"}


def test_default_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache_dir() == tmp_path / "horovod_yolo/index"
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for unusable in ("", "relative"):
        monkeypatch.setenv("XDG_CACHE_HOME", unusable)
        assert default_cache_dir() == tmp_path / "home/.cache/horovod_yolo/index"

    def no_home() -> Path:
        raise RuntimeError("no account")

    monkeypatch.setattr(Path, "home", no_home)
    assert default_cache_dir().is_absolute()


# --- images


@pytest.fixture
def images(tmp_path: Path) -> Index:
    rng = np.random.default_rng(0)
    (tmp_path / "set").mkdir()
    records = []
    for i in range(3):
        PIL.Image.fromarray(rng.integers(0, 256, (8 + i, 12, 3), dtype=np.uint8)).save(
            tmp_path / f"set/{i}.png"
        )
        records.append(_record(f"{i}.png", 1, i))
    return Index(tmp_path / "set", ("cat", "dog"), tuple(records))


@pytest.mark.parametrize("kind", ["ram", "disk"])
def test_cached_images_are_those_of_the_files(images: Index, tmp_path: Path, kind: str) -> None:
    cache = ImageCache(images, kind, tmp_path / "cache")  # type: ignore[arg-type]
    expected = [read_image(images.image_path(i)) for i in range(3)]
    for _ in range(2):
        for i in (2, 0, 1, 0):
            pixels = cache.get(i)
            np.testing.assert_array_equal(pixels, expected[i])
            assert pixels.dtype == np.uint8
            pixels[:] = 0  # the caller's to change: the next one must not see it
    assert {path.parent.name for path in tmp_path.rglob("*.npy")} <= {
        p.name[:2] for p in tmp_path.rglob("*.npy")
    }
    assert sorted(path.name for path in images.root.iterdir()) == ["0.png", "1.png", "2.png"]


@pytest.mark.parametrize("kind", ["ram", "disk"])
def test_second_get_decodes_nothing(
    images: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    cache = ImageCache(images, kind, tmp_path / "cache")  # type: ignore[arg-type]
    first = np.array(cache.get(0))
    monkeypatch.setattr("horovod_yolo.data.cache.read_image", lambda path: pytest.fail("decoded again"))
    np.testing.assert_array_equal(cache.get(0), first)


def test_disk_cache_follows_a_changed_image(images: Index, tmp_path: Path) -> None:
    cache = ImageCache(images, "disk", tmp_path / "cache")
    cache.get(0)
    PIL.Image.new("RGB", (5, 4), (9, 8, 7)).save(images.image_path(0))
    assert cache.get(0).shape == (4, 5, 3)


@pytest.mark.parametrize("content", [b"", b"rubbish", b"\x93NUMPY\x01\x00"])
def test_damaged_disk_image_is_decoded_again(
    images: Index, tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    cache = ImageCache(images, "disk", tmp_path / "cache")
    expected = np.array(cache.get(0))
    (file,) = (tmp_path / "cache").rglob("*.npy")
    file.write_bytes(content)
    np.testing.assert_array_equal(cache.get(0), expected)
    assert "decoded again" in caplog.text
    caplog.clear()
    np.testing.assert_array_equal(cache.get(0), expected)
    assert caplog.text == "", "and it was mended"
    np.save(file, np.zeros((4, 4)))
    np.testing.assert_array_equal(cache.get(0), expected)


def test_unwritable_disk_cache_warns_once_and_goes_on(
    images: Index, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    cache = ImageCache(images, "disk", tmp_path / "cache")
    with caplog.at_level(logging.WARNING):
        for i in (0, 1, 2, 0):
            np.testing.assert_array_equal(cache.get(i), read_image(images.image_path(i)))
    assert caplog.text.count("cannot be cached") == 1


@pytest.mark.parametrize("kind", ["ram", "disk"])
def test_missing_image_is_an_image_error(images: Index, tmp_path: Path, kind: str) -> None:
    images.image_path(1).unlink()
    with pytest.raises(MissingImageError):
        ImageCache(images, kind, tmp_path / "cache").get(1)  # type: ignore[arg-type]


def test_disk_cache_is_shared(images: Index, tmp_path: Path) -> None:
    """Threads with a cache object each stand for processes: they share nothing but the folder."""
    expected = [read_image(images.image_path(i)) for i in range(3)]
    wrong: list[int] = []

    def get_all() -> None:
        cache = ImageCache(images, "disk", tmp_path / "cache")
        wrong.extend(i for _ in range(10) for i in range(3) if not np.array_equal(cache.get(i), expected[i]))

    workers = [threading.Thread(target=get_all) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert wrong == []
    assert len([path for path in (tmp_path / "cache").rglob("*") if path.is_file()]) == 3
