"""Cached images: what comes back is the file's, and nothing that happens to the cache stops the program."""

from __future__ import annotations

import logging
import os
import pickle
import threading
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
from PIL import ExifTags

from horovod_yolo.core.types import Image
from horovod_yolo.data.annotations import Annotations, Record
from horovod_yolo.data.cache import ImageCache, ImageReader, disk_file
from horovod_yolo.data.read import ImageError, MissingImageError, read_image
from tests.helpers.disk import Disk, why_not


@pytest.fixture
def images(tmp_path: Path) -> Annotations:
    rng = np.random.default_rng(0)
    folder = tmp_path / "set"
    folder.mkdir()
    for i in range(3):
        PIL.Image.fromarray(rng.integers(0, 256, (8 + i, 12, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    nothing = (
        np.empty(0, np.int64),
        np.empty((0, 4), np.float32),
        np.empty(0, np.bool_),
        np.empty(0, np.float32),
    )
    return Annotations.of(
        folder, ("cat", "dog"), [Record(f"{i}.png", 8 + i, 12, *nothing, i) for i in range(3)]
    )


def cache_of(
    images: Annotations,
    kind: str,
    folder: Path,
    largest: tuple[int, int] | None = None,
    room: int | None = None,
) -> ImageCache:
    read = ImageReader(images, largest)
    if kind == "ram":
        return ImageCache.in_memory(read, room)
    return ImageCache(read, "disk", str(disk_file(read, folder / "cache")), room)


@pytest.mark.parametrize("kind", ["ram", "disk"])
def test_cached_images_are_those_of_the_files(images: Annotations, tmp_path: Path, kind: str) -> None:
    cache = cache_of(images, kind, tmp_path)
    expected = [read_image(images.image_path(i)) for i in range(3)]
    for _ in range(2):
        for i in (2, 0, 1, 0):
            pixels = cache(i)
            np.testing.assert_array_equal(pixels, expected[i])
            assert pixels.dtype == np.uint8
    with pytest.raises(ValueError, match="read-only"):
        cache(0)[:] = 0
    assert len([path for path in (tmp_path / "cache").rglob("*") if path.is_file()]) == (kind == "disk")
    assert sorted(path.name for path in images.root.iterdir()) == ["0.png", "1.png", "2.png"]


@pytest.mark.parametrize("kind", ["ram", "disk"])
def test_what_one_has_read_nobody_decodes_again(
    images: Annotations, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Neither itself nor who has the cache by its address, as data workers and other ranks do."""
    cache = cache_of(images, kind, tmp_path)
    expected = [np.array(cache(i)) for i in range(3)]
    monkeypatch.setattr("horovod_yolo.data.cache.read_image", lambda *_: pytest.fail("decoded again"))
    others = [cache, pickle.loads(pickle.dumps(cache)), ImageCache(ImageReader(images), kind, cache.address)]  # type: ignore[arg-type]
    if kind == "disk":
        others.append(cache_of(images, kind, tmp_path))  # of a later job
    for other in others:
        for i in (2, 0, 1):
            np.testing.assert_array_equal(other(i), expected[i])


def test_an_image_that_is_half_written_does_not_count(images: Annotations) -> None:
    """Its state comes last, so what a killed process leaves behind is a miss."""
    cache = cache_of(images, "ram", Path())
    place, count = cache._place(1)
    os.pwrite(cache._descriptor, b"x" * (count // 2), place)
    np.testing.assert_array_equal(cache(1), read_image(images.image_path(1)))


@pytest.mark.parametrize("kind", ["ram", "disk"])
def test_what_has_no_room_is_read_every_time(
    images: Annotations, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    cache = cache_of(images, kind, tmp_path, room=8 * 12 * 3 + 9 * 12 * 3)
    expected = [np.array(cache(i)) for i in range(3)]
    reads = []

    def counting(path: Path, *args: Any) -> Image:
        reads.append(path.name)
        return read_image(path, *args)

    monkeypatch.setattr("horovod_yolo.data.cache.read_image", counting)
    for _ in range(2):
        for i in range(3):
            np.testing.assert_array_equal(cache(i), expected[i])
    assert reads == ["2.png", "2.png"]


def test_a_disk_cache_follows_a_changed_image(images: Annotations, tmp_path: Path) -> None:
    cache = cache_of(images, "disk", tmp_path)
    cache(0)
    PIL.Image.new("RGB", (12, 8), (9, 8, 7)).save(images.image_path(0))
    for _ in range(2):
        assert (cache(0) == (9, 8, 7)).all()
    PIL.Image.new("RGB", (11, 8), (9, 8, 7)).save(images.image_path(0))
    with pytest.raises(ImageError, match="11x8 now and was 12x8"):
        cache(0)


def test_a_damaged_image_on_disk_is_decoded_again(
    images: Annotations, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache = cache_of(images, "disk", tmp_path)
    expected = np.array(cache(0))
    with Path(cache.address).open("r+b") as file:
        file.seek(cache._place(0)[0] + 5)
        file.write(b"rubbish")
    later = cache_of(images, "disk", tmp_path)
    np.testing.assert_array_equal(later(0), expected)
    assert "decoded again" in caplog.text
    caplog.clear()
    np.testing.assert_array_equal(later(0), expected)
    assert caplog.text == "", "and it was mended"


@pytest.mark.parametrize("content", [b"", b"rubbish", b"\x93NUMPY\x01\x00" * 3000])
def test_a_file_with_other_content_is_no_more_than_a_miss(
    images: Annotations, tmp_path: Path, content: bytes
) -> None:
    disk_file(ImageReader(images), tmp_path / "cache").write_bytes(content)
    cache = cache_of(images, "disk", tmp_path)
    for _ in range(2):
        for i in range(3):
            np.testing.assert_array_equal(cache(i), read_image(images.image_path(i)))


@pytest.mark.skipif(why_not() is not None, reason=f"LOUD SKIP: {why_not()}")
def test_a_full_disk_is_said_once_and_images_are_read(
    images: Annotations, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """And nobody dies of it: what is mapped was written before."""
    with Disk(tmp_path / "disk", "4k") as disk, caplog.at_level(logging.WARNING):
        cache = cache_of(images, "disk", disk.inside)
        for i in (0, 1, 2, 0):
            np.testing.assert_array_equal(cache(i), read_image(images.image_path(i)))
        del cache
    assert caplog.text.count("cannot be cached any more (No space left on device)") == 1


def test_a_missing_image_is_an_image_error(images: Annotations, tmp_path: Path) -> None:
    """On disk it is missed at once; in memory it is there as long as the job."""
    in_memory, on_disk = (cache_of(images, kind, tmp_path) for kind in ("ram", "disk"))
    kept = np.array(in_memory(1))
    on_disk(1)
    images.image_path(1).unlink()
    with pytest.raises(MissingImageError):
        on_disk(1)
    np.testing.assert_array_equal(in_memory(1), kept)
    images.image_path(2).unlink()
    with pytest.raises(MissingImageError):
        in_memory(2)


def test_many_fill_one_cache(images: Annotations, tmp_path: Path) -> None:
    """Threads with a cache object each stand for processes: they share nothing but the file."""
    expected = [read_image(images.image_path(i)) for i in range(3)]
    wrong: list[int] = []

    def get_all() -> None:
        cache = cache_of(images, "disk", tmp_path)
        wrong.extend(i for _ in range(10) for i in range(3) if not np.array_equal(cache(i), expected[i]))

    workers = [threading.Thread(target=get_all) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert wrong == []


@pytest.mark.parametrize("kind", ["ram", "disk"])
def test_cached_images_are_reduced_as_others_are(tmp_path: Path, kind: str) -> None:
    """To the bit, whatever the format; each size of input has its own copies."""
    images = photographs(tmp_path)
    for largest in (None, (40, 40), (20, 20), (16, 30)):
        plain, cached = ImageReader(images, largest), cache_of(images, kind, tmp_path, largest)
        for i in [*range(len(images))] * 2:
            np.testing.assert_array_equal(cached(i), plain(i))
    plain = ImageReader(images, (40, 40))
    assert [plain(i).shape for i in range(3)] == [(31, 41, 3), (31, 41, 3), (31, 41, 3)]


def test_a_file_of_another_size_is_found_though_it_is_as_large_when_reduced(tmp_path: Path) -> None:
    images = photographs(tmp_path)
    load = ImageReader(images, largest=(40, 40))
    assert load(0).shape == (31, 41, 3)
    PIL.Image.new("RGB", (82, 62)).save(images.image_path(0), quality=90)
    assert read_image(images.image_path(0), 2).shape == (31, 41, 3)
    with pytest.raises(ImageError, match="82x62 now and was 81x61"):
        load(0)


def photographs(folder: Path) -> Annotations:
    """A JPEG, a PNG and a JPEG with an orientation, of 81 x 61 pixels each."""
    rng = np.random.default_rng(1)
    smooth = np.asarray(PIL.Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).resize((81, 61)))
    turned = PIL.Image.Exif()
    turned[ExifTags.Base.Orientation] = 8
    PIL.Image.fromarray(smooth).save(folder / "0.jpg", quality=90)
    PIL.Image.fromarray(smooth).save(folder / "1.png")
    PIL.Image.fromarray(np.rot90(smooth, -1)).save(folder / "2.jpg", quality=90, exif=turned)
    nothing = (
        np.empty(0, np.int64),
        np.empty((0, 4), np.float32),
        np.empty(0, bool),
        np.empty(0, np.float32),
    )
    names = ("0.jpg", "1.png", "2.jpg")
    return Annotations.of(folder, ("a",), [Record(name, 61, 81, *nothing, i) for i, name in enumerate(names)])
