"""The built-in data set: real handwritten digits on real photographs, made on the spot.

Nothing is downloaded. The digits are scikit-learn's ``load_digits`` (UCI, 1797 scans of 8 x 8), the
photographs are those that ship inside the scikit-image and scikit-learn wheels. Training and
validation share neither a digit nor a pixel of background: a fifth of the digits and the right third
of every photograph are kept for validation.
"""

from __future__ import annotations

import errno
import shutil
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from horovod_yolo.core.boxes import xyxy_to_xywh
from horovod_yolo.core.errors import UserError
from horovod_yolo.core.types import Floats, Image, Ints
from horovod_yolo.data.sampler import Stream, keyed_generator
from horovod_yolo.io.atomic import unfinished_name

TITLE = "Handwritten digits on photographs, made by horovod_yolo"
VALIDATION_SHARE = 0.2  # of the images and of the digits
TRAINING_WIDTH = 2 / 3  # of every photograph, from the left
EMPTY_SHARE = 0.04  # of the images, roughly
MAX_DIGITS = 8  # in one image
MAX_ROTATION = 20.0  # degrees either way, so that 6 and 9 stay apart
CROWDING = 0.65  # how near the number of digits in an image comes to the most
OVERLAP_SHARE = 0.3  # of the digits may lie on others
MAX_HIDDEN = 0.3  # of a digit's ink, each time another one lies on it
TRIES = 10  # to find a place for a digit
SIZES = ((0.14, 0.38), (0.055, 0.14))  # height of a digit as a share of the image: usual, small
SMALL_SHARE = 0.1  # of the digits

Alpha = NDArray[np.float32]  # (h, w) coverage by ink, 0 to 1


class _Photo(NamedTuple):
    package: str
    file: str
    credit: str


PHOTOS = (
    _Photo("skimage.data", "astronaut.png", "NASA (Eileen Collins), public domain"),
    _Photo("skimage.data", "chelsea.png", "Stefan van der Walt, CC0"),
    _Photo("skimage.data", "coffee.png", "Rachel Michetti, CC0"),
    _Photo("skimage.data", "rocket.jpg", "SpaceX, public domain"),
    _Photo("skimage.data", "hubble_deep_field.jpg", "NASA, public domain"),
    _Photo("skimage.data", "camera.png", "Lav Varshney, CC0"),
    _Photo("skimage.data", "brick.png", "CC0Textures, CC0"),
    _Photo("skimage.data", "grass.png", "linolafett (DeviantArt), CC0"),
    _Photo("skimage.data", "gravel.png", "CC0Textures, CC0"),
    _Photo("sklearn.datasets.images", "china.jpg", "danielbuechele (Flickr), CC BY 2.0, cropped and altered"),
    _Photo("sklearn.datasets.images", "flower.jpg", "vultilion (Flickr), CC BY 2.0, cropped and altered"),
)


@dataclass(frozen=True)
class _Sources:
    """What one half of the data set is made of."""

    digits: NDArray[np.float32]  # (n, 8, 8), 0 to 1
    classes: Ints  # (n,)
    photos: tuple[Image, ...]  # each (H, W, 3)


class _Picture(NamedTuple):
    image: Image  # (size, size, 3)
    classes: Ints  # (n,)
    boxes_xyxy: Floats  # (n, 4)


def make_digits(
    out: Path, images: int = 600, size: int = 320, seed: int = 0, *, replace: bool = True
) -> None:
    """Write the data set as a folder in YOLO's layout, ready for ``--data out/data.yaml``.

    The folder appears complete or not at all. The same arguments give the same bytes.

    Args:
        out: folder to create.
        images: of training and validation together; a fifth is for validation.
        size: height and width of an image, pixels.
        seed: of everything random.
        replace: an earlier data set of this function, also one that another process makes meanwhile; else
            that one stays.

    Raises:
        UserError: ``out`` holds something else or cannot be written, a number is out of range, or the
            packages that ship the pictures are not installed.
    """
    require_pictures()
    if images < 5 or size < 64:
        raise UserError(
            f"cannot make {images} images of {size} px", fix="Ask for 5 or more, of 64 px or more"
        )
    _refuse_foreign(out)
    unfinished = unfinished_name(out.absolute())
    try:
        unfinished.mkdir(parents=True)
        _write_all(unfinished, images, size, seed)
        if replace and out.exists():
            shutil.rmtree(out)
        _rename(unfinished, out, keep=not replace)
    except OSError as error:
        raise UserError(f"cannot write: {error.strerror}", where=out, fix="Name another folder") from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _rename(unfinished: Path, out: Path, *, keep: bool) -> None:
    """Put it in its place, where an earlier one is kept or an error."""
    try:
        unfinished.rename(out)
    except OSError as error:
        if not keep or error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise


def require_pictures() -> None:
    """Raise `UserError` where the packages that digits and photographs come from are not installed."""
    wanted = {"skimage": "scikit-image", "sklearn": "scikit-learn"}
    if missing := [package for module, package in wanted.items() if find_spec(module) is None]:
        raise UserError(
            f"the built-in data set needs the pictures in {' and '.join(missing)}",
            fix=f"pip install {' '.join(missing)}, which are the extra [demo]",
        )


def _refuse_foreign(out: Path) -> None:
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    readme = out / "README.txt"
    if not readme.is_file() or not readme.read_text(errors="replace").startswith(TITLE):
        raise UserError("holds other files", where=out, fix="Name a new or empty folder")


def _write_all(folder: Path, images: int, size: int, seed: int) -> None:
    validation = round(images * VALIDATION_SHARE)
    for number, (split, count) in enumerate((("train", images - validation), ("val", validation))):
        sources = _sources(split, seed)
        (folder / "images" / split).mkdir(parents=True)
        (folder / "labels" / split).mkdir(parents=True)
        for i in range(count):
            picture = _picture(keyed_generator(seed, Stream.DIGITS, number, i), sources, size)
            name = f"{i:05d}"
            _write_image(folder / "images" / split / f"{name}.jpg", picture.image)
            _write_label(folder / "labels" / split / f"{name}.txt", picture, size)
    names = "".join(f"  {digit}: '{digit}'\n" for digit in range(10))
    yaml = f"# {TITLE}\npath: .\ntrain: images/train\nval: images/val\nnc: 10\nnames:\n{names}"
    (folder / "data.yaml").write_text(yaml)
    (folder / "README.txt").write_text(_readme(images, size, seed))


def _write_image(path: Path, image: Image) -> None:
    _, data = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), (cv2.IMWRITE_JPEG_QUALITY, 92))
    path.write_bytes(data.tobytes())


def _write_label(path: Path, picture: _Picture, size: int) -> None:
    boxes_xywhn = xyxy_to_xywh(picture.boxes_xyxy) / size
    rows = zip(picture.classes.tolist(), boxes_xywhn.tolist(), strict=True)
    path.write_text("".join(f"{c} {x:.6f} {y:.6f} {w:.6f} {h:.6f}\n" for c, (x, y, w, h) in rows))


def _readme(images: int, size: int, seed: int) -> str:
    credits = "".join(f"  {photo.package}/{photo.file}: {photo.credit}\n" for photo in PHOTOS)
    return (
        f"{TITLE}\n\n"
        f"{images} images of {size} x {size} pixels, seed {seed}, a fifth of them for validation.\n"
        "Training and validation share neither a digit nor a pixel of background: validation has a fifth of\n"
        "the digits and the right third of every photograph. Boxes surround a digit's visible ink.\n"
        "A mirrored digit is another sign: train with fliplr: 0.\n\n"
        "Digits: Optical Recognition of Handwritten Digits, E. Alpaydin and C. Kaynak, UCI Machine Learning\n"
        "Repository, CC BY 4.0, doi 10.24432/C50P49, as scikit-learn ships them; scaled up.\n"
        f"Photographs, from the wheels of scikit-image and scikit-learn:\n{credits}"
    )


@lru_cache(maxsize=2)
def _sources(split: str, seed: int) -> _Sources:
    from sklearn.datasets import load_digits  # slow to import, and needed here only

    everything = load_digits()
    order = keyed_generator(seed, Stream.DIGITS).permutation(len(everything.target))
    held_out = round(len(order) * VALIDATION_SHARE)
    mine = order[held_out:] if split == "train" else order[:held_out]
    return _Sources(
        everything.images[mine].astype(np.float32) / 16,
        everything.target[mine].astype(np.int64),
        tuple(_half(_read_photo(photo), split) for photo in PHOTOS),
    )


def _read_photo(photo: _Photo) -> Image:
    data = (files(photo.package) / photo.file).read_bytes()
    bgr = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    assert bgr is not None, photo
    return np.asarray(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB), np.uint8)


def _half(photo: Image, split: str) -> Image:
    border = round(photo.shape[1] * TRAINING_WIDTH)
    return photo[:, :border] if split == "train" else photo[:, border:]


def _picture(rng: np.random.Generator, sources: _Sources, size: int) -> _Picture:
    """Paste 0 to MAX_DIGITS digits onto a background; later ones lie on top of earlier ones."""
    image = _background(rng, sources.photos, size)
    owner = np.full((size, size), -1)  # which digit's ink each pixel shows
    classes: list[int] = []
    wanted = 0 if rng.random() < EMPTY_SHARE else 1 + int(rng.binomial(MAX_DIGITS - 1, CROWDING))
    for _ in range(wanted):
        which = int(rng.integers(len(sources.classes)))
        alpha = _sprite(rng, sources.digits[which], _height(rng) * size)
        may_hide = MAX_HIDDEN if rng.random() < OVERLAP_SHARE else 0.0
        spot = _free_spot(rng, owner, alpha > 0.5, may_hide)
        if spot is None:
            continue
        owner[spot][alpha > 0.5] = len(classes)
        classes.append(int(sources.classes[which]))
        _ink(rng, image[spot], alpha)
    boxes = [_extent(owner == digit) for digit in range(len(classes))]
    return _Picture(image, np.array(classes, np.int64), np.array(boxes, np.float32).reshape(-1, 4))


def _free_spot(
    rng: np.random.Generator, owner: Ints, ink: NDArray[np.bool_], may_hide: float
) -> tuple[slice, slice] | None:
    """Try some places for (h, w) ink until no digit of ``owner`` loses more than its share to it."""
    whole = np.bincount(owner[owner >= 0], minlength=1)
    for _ in range(TRIES):
        y, x = (int(rng.integers(0, len(owner) - side)) for side in ink.shape)
        spot = (slice(y, y + ink.shape[0]), slice(x, x + ink.shape[1]))
        covered = owner[spot][ink]
        hidden = np.bincount(covered[covered >= 0], minlength=len(whole))
        if (hidden <= may_hide * whole).all():
            return spot
    return None


def _background(rng: np.random.Generator, photos: tuple[Image, ...], size: int) -> Image:
    """A random square of a random photograph, mirrored half the time, darker or brighter."""
    photo = photos[int(rng.integers(len(photos)))]
    side = int(min(photo.shape[:2]) * rng.uniform(0.6, 1.0))
    y, x = (int(rng.integers(0, length - side + 1)) for length in photo.shape[:2])
    crop = photo[y : y + side, x : x + side]
    if rng.random() < 0.5:
        crop = crop[:, ::-1]
    square = cv2.resize(crop, (size, size), interpolation=cv2.INTER_AREA if side > size else cv2.INTER_CUBIC)
    return np.asarray(cv2.convertScaleAbs(square, alpha=rng.uniform(0.7, 1.1)), np.uint8)


def _height(rng: np.random.Generator) -> float:
    """Share of the image's height: usual ones mostly, evenly spread on a log scale."""
    low, high = SIZES[int(rng.random() < SMALL_SHARE)]
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def _sprite(rng: np.random.Generator, digit: NDArray[np.float32], height: float) -> Alpha:
    """Turn an 8 x 8 scan into smooth ink of about the wanted height in pixels, cut to its extent."""
    zoom, angle = height / 8, rng.uniform(-MAX_ROTATION, MAX_ROTATION)
    side = int(np.ceil(height * 1.6)) + 4
    matrix = np.asarray(cv2.getRotationMatrix2D((3.5, 3.5), angle, zoom), np.float64)
    matrix[:, 2] += (side - 1) / 2 - 3.5
    smooth = cv2.warpAffine(digit, matrix, (side, side), flags=cv2.INTER_CUBIC)
    alpha = np.clip((smooth - 0.35) / 0.3, 0, 1).astype(np.float32)
    x1, y1, x2, y2 = (int(v) for v in _extent(alpha > 0.5))
    return alpha[y1:y2, x1:x2]


def _extent(mask: NDArray[np.bool_]) -> tuple[float, float, float, float]:
    """x1, y1, x2, y2 around the True pixels of an (H, W) mask that has some."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)


def _ink(rng: np.random.Generator, patch: Image, alpha: Alpha) -> None:
    """Paint a digit on a patch of the picture, in place, in a colour unlike what is behind it."""
    behind = float(patch.mean())
    contrast = rng.uniform(100, 170)
    grey = behind + contrast if behind < 115 else behind - contrast
    colour = np.clip(grey + rng.uniform(-35, 35, 3), 0, 255)
    cover = alpha[..., None] * rng.uniform(0.85, 1.0)
    patch[:] = np.rint(patch * (1 - cover) + colour * cover).astype(np.uint8)
