"""Cached images: what comes back is the file's, and nothing that happens to the cache stops the program."""

from __future__ import annotations

import logging
import threading
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from PIL import ExifTags

from horovod_yolo.data.annotations import Annotations, Record
from horovod_yolo.data.cache import ImageCache, ImageReader, image_loader
from horovod_yolo.data.read import ImageError, MissingImageError, read_image


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


@pytest.mark.parametrize("kind", ["ram", "disk"])
def test_cached_images_are_those_of_the_files(images: Annotations, tmp_path: Path, kind: str) -> None:
    cache = ImageCache(ImageReader(images), kind, tmp_path / "cache")  # type: ignore[arg-type]
    expected = [read_image(images.image_path(i)) for i in range(3)]
    for _ in range(2):
        for i in (2, 0, 1, 0):
            pixels = cache.get(i)
            np.testing.assert_array_equal(pixels, expected[i])
            assert pixels.dtype == np.uint8
    with pytest.raises(ValueError, match="read-only"):
        cache.get(0)[:] = 0
    assert {path.parent.name for path in tmp_path.rglob("*.npy")} <= {
        p.name[:2] for p in tmp_path.rglob("*.npy")
    }
    assert sorted(path.name for path in images.root.iterdir()) == ["0.png", "1.png", "2.png"]


@pytest.mark.parametrize("kind", ["ram", "disk"])
def test_second_get_decodes_nothing(
    images: Annotations, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    cache = ImageCache(ImageReader(images), kind, tmp_path / "cache")  # type: ignore[arg-type]
    first = np.array(cache.get(0))
    monkeypatch.setattr("horovod_yolo.data.cache.read_image", lambda *_: pytest.fail("decoded again"))
    np.testing.assert_array_equal(cache.get(0), first)


def test_disk_cache_follows_a_changed_image(images: Annotations, tmp_path: Path) -> None:
    cache = ImageCache(ImageReader(images), "disk", tmp_path / "cache")
    cache.get(0)
    PIL.Image.new("RGB", (12, 8), (9, 8, 7)).save(images.image_path(0))
    assert (cache.get(0) == (9, 8, 7)).all()
    PIL.Image.new("RGB", (11, 8), (9, 8, 7)).save(images.image_path(0))
    with pytest.raises(ImageError, match="11x8 now and was 12x8"):
        cache.get(0)


@pytest.mark.parametrize("kind", ["ram", "disk"])
def test_cached_images_are_reduced_as_others_are(tmp_path: Path, kind: str) -> None:
    """To the bit, whatever the format; each size of input has its own copies."""
    images = photographs(tmp_path)
    for largest in (None, (40, 40), (20, 20), (16, 30)):
        plain = image_loader(images, largest=largest)
        cached = image_loader(images, kind, str(tmp_path / "cache"), largest)  # type: ignore[arg-type]
        for i in [*range(len(images))] * 2:
            np.testing.assert_array_equal(cached(i), plain(i))
    assert [plain(i).shape for i in range(3)] == [(31, 41, 3), (31, 41, 3), (31, 41, 3)]


def test_a_file_of_another_size_is_found_though_it_is_as_large_when_reduced(tmp_path: Path) -> None:
    images = photographs(tmp_path)
    load = image_loader(images, largest=(40, 40))
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


@pytest.mark.parametrize("content", [b"", b"rubbish", b"\x93NUMPY\x01\x00"])
def test_damaged_disk_image_is_decoded_again(
    images: Annotations, tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    cache = ImageCache(ImageReader(images), "disk", tmp_path / "cache")
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
    images: Annotations, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    cache = ImageCache(ImageReader(images), "disk", tmp_path / "cache")
    with caplog.at_level(logging.WARNING):
        for i in (0, 1, 2, 0):
            np.testing.assert_array_equal(cache.get(i), read_image(images.image_path(i)))
    assert caplog.text.count("cannot be cached") == 1


@pytest.mark.parametrize("kind", ["ram", "disk"])
def test_missing_image_is_an_image_error(images: Annotations, tmp_path: Path, kind: str) -> None:
    images.image_path(1).unlink()
    with pytest.raises(MissingImageError):
        ImageCache(ImageReader(images), kind, tmp_path / "cache").get(1)  # type: ignore[arg-type]


def test_disk_cache_is_shared(images: Annotations, tmp_path: Path) -> None:
    """Threads with a cache object each stand for processes: they share nothing but the folder."""
    expected = [read_image(images.image_path(i)) for i in range(3)]
    wrong: list[int] = []

    def get_all() -> None:
        cache = ImageCache(ImageReader(images), "disk", tmp_path / "cache")
        wrong.extend(i for _ in range(10) for i in range(3) if not np.array_equal(cache.get(i), expected[i]))

    workers = [threading.Thread(target=get_all) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert wrong == []
    assert len([path for path in (tmp_path / "cache").rglob("*") if path.is_file()]) == 3
