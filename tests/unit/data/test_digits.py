from __future__ import annotations

import hashlib
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml

from horovod_yolo.core.errors import UserError
from horovod_yolo.data import digits
from horovod_yolo.data.digits import make_digits
from horovod_yolo.data.sampler import Stream, keyed_generator

IMAGES, SIZE = 40, 160


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "digits"
    make_digits(folder, IMAGES, SIZE, seed=1)
    return folder


def contents(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def rows(folder: Path, split: str = "*") -> np.ndarray:
    text = "".join(path.read_text() for path in sorted((folder / "labels").glob(f"{split}/*.txt")))
    return np.array([line.split() for line in text.splitlines()], np.float64)


def test_the_layout_is_that_of_yolo(made: Path) -> None:
    spec = yaml.safe_load((made / "data.yaml").read_text())
    assert spec["path"] == "."
    assert spec["nc"] == 10 and spec["names"] == {digit: str(digit) for digit in range(10)}
    for split, count in (("train", 32), ("val", 8)):
        images = sorted((made / spec[split]).glob("*.jpg"))
        labels = sorted((made / "labels" / split).glob("*.txt"))
        assert [path.stem for path in images] == [path.stem for path in labels]
        assert len(images) == count
        assert all(cv2.imread(str(path)).shape == (SIZE, SIZE, 3) for path in images)
    assert {path.name for path in made.iterdir()} == {"images", "labels", "data.yaml", "README.txt"}


def test_labels_are_boxes_inside_the_image(made: Path) -> None:
    table = rows(made)
    assert set(table[:, 0]) == set(range(10))
    centre, size = table[:, 1:3], table[:, 3:5]
    assert ((centre - size / 2) > -1e-5).all() and ((centre + size / 2) < 1 + 1e-5).all()
    assert (size * SIZE >= 2).all() and size.max() < 0.5


def test_pictures_have_no_to_eight_digits_some_overlapping_some_small(tmp_path: Path) -> None:
    sources = digits._sources("train", 0)
    pictures = [digits._picture(keyed_generator(0, Stream.DIGITS, 9, i), sources, SIZE) for i in range(150)]
    counts = np.array([len(picture.classes) for picture in pictures])
    assert counts.min() == 0 and counts.max() == 8
    heights = np.concatenate([p.boxes_xyxy[:, 3] - p.boxes_xyxy[:, 1] for p in pictures]) / SIZE
    assert 0.03 < (heights < 0.1).mean() < 0.15
    overlapping = 0
    for picture in pictures:
        low, high = picture.boxes_xyxy[:, None, :2], picture.boxes_xyxy[None, :, 2:]
        meet = (low < high).all(2) & (low < high).all(2).T
        overlapping += int(np.triu(meet, 1).sum())
    assert overlapping > 10


def test_boxes_are_tight_around_the_ink(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a flat background everything that is not background is ink."""
    grey = np.full((SIZE, SIZE, 3), 90, np.uint8)
    monkeypatch.setattr(digits, "_background", lambda *_: grey.copy())
    monkeypatch.setattr(digits, "MAX_DIGITS", 1)
    sources = digits._sources("val", 0)
    checked = 0
    for i in range(60):
        picture = digits._picture(keyed_generator(1, Stream.DIGITS, 8, i), sources, SIZE)
        if not len(picture.classes):
            assert (picture.image == 90).all()
            continue
        difference = np.abs(picture.image.astype(int) - 90).max(2)
        ink = difference > difference.max() / 2
        found = digits._extent(ink)
        assert np.abs(picture.boxes_xyxy[0] - found).max() <= 1
        checked += 1
    assert checked > 40


def test_upright_digits_are_not_mirrored_or_turned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digits, "MAX_ROTATION", 1e-9)
    scan = np.zeros((8, 8), np.float32)
    scan[0:8, 1:3] = scan[6:8, 1:7] = 1  # an L
    sprite = digits._sprite(np.random.default_rng(0), scan, 80.0)
    rows_, columns = sprite.shape
    assert 75 <= rows_ <= 85 and 55 <= columns <= 65
    assert sprite[: rows_ // 2, : columns // 4].mean() > 0.8
    assert sprite[: rows_ // 2, columns // 2 :].max() == 0
    assert sprite[-rows_ // 6 :, columns // 2 : -5].mean() > 0.8


def test_training_and_validation_share_no_digit_and_no_background() -> None:
    train, val = digits._sources("train", 3), digits._sources("val", 3)
    assert len(train.classes) + len(val.classes) == 1797
    everything = {digit.tobytes() for digit in np.concatenate((train.digits, val.digits))}
    assert len(everything) == 1797  # all scans differ, so disjoint rows are disjoint digits
    for photo, left, right in zip(digits.PHOTOS, train.photos, val.photos, strict=True):
        assert np.array_equal(np.hstack((left, right)), digits._read_photo(photo))


def test_the_same_arguments_give_the_same_bytes(made: Path, tmp_path: Path) -> None:
    np.random.seed(5)
    digits._sources.cache_clear()
    make_digits(tmp_path / "again", IMAGES, SIZE, seed=1)
    assert contents(tmp_path / "again") == contents(made)
    make_digits(tmp_path / "other", IMAGES, SIZE, seed=2)
    assert contents(tmp_path / "other")["images/train/00000.jpg"] != contents(made)["images/train/00000.jpg"]


def test_its_own_output_and_an_empty_folder_are_replaced(tmp_path: Path) -> None:
    out = tmp_path / "new" / "digits"
    out.mkdir(parents=True)
    make_digits(out, 10, 64)
    make_digits(out, 5, 64)
    assert len(contents(out)) == 2 * 5 + 2
    assert [path.name for path in out.parent.iterdir()] == ["digits"]


@pytest.mark.parametrize("name", ["notes.txt", "README.txt"])
def test_files_of_the_user_are_never_touched(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("mine")
    with pytest.raises(UserError, match="holds other files"):
        make_digits(tmp_path, 5, 64)
    assert contents(tmp_path).keys() == {name}
    with pytest.raises(UserError, match="holds other files"):
        make_digits(tmp_path / name, 5, 64)  # a file where the folder should be


def test_a_failure_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    make_digits(tmp_path / "digits", 5, 64)
    before = contents(tmp_path)
    monkeypatch.setattr(digits, "_write_label", full)
    with pytest.raises(UserError, match="No space left"):
        make_digits(tmp_path / "digits", 6, 64)
    assert contents(tmp_path) == before


@pytest.mark.parametrize(("images", "size"), [(4, 320), (600, 32)])
def test_impossible_numbers_are_refused(tmp_path: Path, images: int, size: int) -> None:
    with pytest.raises(UserError, match="cannot make"):
        make_digits(tmp_path / "digits", images, size)


def test_the_readme_credits_every_source(made: Path) -> None:
    text = (made / "README.txt").read_text()
    assert all(photo.file in text and photo.credit in text for photo in digits.PHOTOS)
    assert "CC BY 2.0" in text and "UCI" in text
