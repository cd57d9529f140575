"""Image files to pixels: one way for every format, always (H, W, 3) uint8 RGB as a viewer would show it.

- EXIF orientation is applied; a missing, damaged or impossible one counts as upright.
- Grey, palette and 1-bit images get three channels. Alpha is dropped, not composited: the colours stored
  below transparent pixels come back, as they do with OpenCV, which YOLO users' models were trained through.
- Deeper grey (16-bit PNG, PGM and TIFF, 12-bit TIFF) keeps the top 8 of the bits the file *declares*,
  never of the range its pixels happen to fill: brightness stays comparable between images. 12-bit data
  stored in a file that declares 16 bits therefore comes out dark. Floating point pixels declare no range:
  refused.
- Animations and multi-picture files give their first frame.
- A file is broken when Pillow says so (truncated included). OpenCV decodes the complete, ordinary JPEG
  only, where its pixels are the same and it is faster.
"""

from __future__ import annotations

import io
import stat
import struct
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
import PIL.Image
from numpy.typing import NDArray
from PIL import ExifTags

from horovod_yolo.core.types import Image
from horovod_yolo.data import jpeg
from horovod_yolo.data.shards import ImageFile
from horovod_yolo.io.files import opened

MAX_PIXELS = 178_956_970  # Pillow's own limit for a "decompression bomb": 1 GiB at 6 bytes a pixel
MAX_FILE_BYTES = 1 << 30
MAX_SCANS = 500  # of a progressive JPEG: usual ones have ten, and each may cost a pass over all pixels
IMAGE_SUFFIXES = frozenset(
    (
        ".bmp",
        ".gif",
        ".jfif",
        ".jp2",
        ".jpeg",
        ".jpg",
        ".mpo",
        ".pgm",
        ".png",
        ".ppm",
        ".tif",
        ".tiff",
        ".webp",
    )
)

# Never "whatever Pillow finds": its EPS reader, for one, starts Ghostscript on the file.
_FORMATS = ("JPEG", "PNG", "BMP", "GIF", "JPEG2000", "PPM", "TIFF", "WEBP")
_DEEP_GREY_MODES = frozenset(("I", "I;16", "I;16B", "I;16L"))
_MODES = frozenset(("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr")) | _DEEP_GREY_MODES
# OpenCV's decoder leaves the higher frequencies of each block out. Without the bit of BGR the names say grey.
_REDUCED = {
    1: 0,
    2: cv2.IMREAD_REDUCED_GRAYSCALE_2,
    4: cv2.IMREAD_REDUCED_GRAYSCALE_4,
    8: cv2.IMREAD_REDUCED_GRAYSCALE_8,
}
_RGB = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION

# What Pillow's readers let through when a file is damaged, beside OSError.
_DAMAGE = (
    OSError,
    ValueError,
    SyntaxError,
    TypeError,
    LookupError,
    AttributeError,
    ArithmeticError,
    EOFError,
    MemoryError,
    RuntimeError,
    struct.error,
    zlib.error,
    PIL.Image.DecompressionBombError,
)

_UPRIGHT: dict[int, Callable[[NDArray[np.uint8]], NDArray[np.uint8]]] = {
    2: lambda pixels: pixels[:, ::-1],
    3: lambda pixels: pixels[::-1, ::-1],
    4: lambda pixels: pixels[::-1],
    5: lambda pixels: pixels.swapaxes(0, 1),
    6: lambda pixels: pixels[::-1].swapaxes(0, 1),
    7: lambda pixels: pixels[::-1, ::-1].swapaxes(0, 1),
    8: lambda pixels: pixels[:, ::-1].swapaxes(0, 1),
}


class ImageError(ValueError):
    """A file that is no usable image. ``path`` and ``reason`` say which and why."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = path
        self.reason = reason

    def __reduce__(self) -> tuple[type[ImageError], tuple[Path, str]]:
        return type(self), (self.path, self.reason)  # crosses from loader workers to the trainer


class MissingImageError(ImageError):
    """There is no such file."""


def read_image(file: ImageFile, reduction: int = 1, expected: tuple[int, int] | None = None) -> Image:
    """The pixels of an image file: (H, W, 3) uint8 RGB, upright, contiguous.

    Args:
        file: its path, its place in a pack, or a copy.
        reduction: 1, 2, 4 or 8: a pixel stands for as many of the file's, across and down. H and W are
            rounded up: the last pixel of a row or column may stand for fewer. A JPEG is decoded at that size.
        expected: (height, width) in pixels that the file must have.

    Raises:
        ImageError: the file is missing, no image, broken, truncated, larger than MAX_PIXELS, not as expected.
    """
    path, source = _named(file)
    plain = _read_plain_jpeg(path, source, reduction, expected)
    if plain is not None:
        return plain
    with quiet(), _opened(path, source) as image:
        size, pixels, done = image.size, None, reduction
        if image.format in ("JPEG", "MPO"):
            turned = _orientation(image) != 1  # then the part of a pixel would come first
            done = 1 if turned and any(side % reduction for side in size) else reduction
            pixels = _decode_ordinary_jpeg(source, image, done)
        if pixels is None:
            image.load()
            size, pixels, done = image.size, _rgb8(image), 1
        orientation = _orientation(image)
        _require_expected(path, _upright_size(size, orientation), expected)
        upright = _UPRIGHT.get(orientation)
    if upright is not None:
        pixels = upright(pixels)
    return np.ascontiguousarray(pixels if done == reduction else _reduced(pixels, reduction))


def _named(file: ImageFile) -> tuple[Path, Path | io.BytesIO]:
    """What a file is called, and what is read: an image in a pack whole, for a part of it has no checksum."""
    if isinstance(file, Path):
        return file, file
    return file.path, io.BytesIO(read_content(file))


def _read_plain_jpeg(
    path: Path, source: Path | io.BytesIO, reduction: int, expected: tuple[int, int] | None
) -> Image | None:
    """What a training set has most of, without Pillow; None for anything else, and for what may be wrong."""
    if isinstance(source, Path):
        try:
            with opened(source) as (file, size):
                start = file.read(len(jpeg.START)) if size <= MAX_FILE_BYTES else b""
                content = start + file.read(size - len(start)) if start == jpeg.START else b""
        except OSError:
            return None  # who reads it otherwise says why
    else:
        content = source.getvalue()
    found = jpeg.plain_size(content, MAX_SCANS)
    if found is None or found[0] * found[1] > MAX_PIXELS:
        return None
    _require_expected(path, found, expected)
    return _decode(np.frombuffer(content, np.uint8), found, reduction)


def _require_expected(path: Path, size: tuple[int, int], expected: tuple[int, int] | None) -> None:
    if expected is not None and size != expected:
        before, now = (f"{width}x{height}" for height, width in (expected, size))
        raise ImageError(path, f"it is {now} now and was {before} in the scan")


def _reduced(pixels: NDArray[np.uint8], reduction: int) -> NDArray[np.uint8]:
    """Averages over squares; those at the right and the lower edge may be cut off."""
    rows, columns = (-(-side // reduction) for side in pixels.shape[:2])
    below, beside = rows * reduction - pixels.shape[0], columns * reduction - pixels.shape[1]
    if below or beside:
        pixels = np.asarray(cv2.copyMakeBorder(pixels, 0, below, 0, beside, cv2.BORDER_REPLICATE), np.uint8)
    return np.asarray(cv2.resize(pixels, (columns, rows), interpolation=cv2.INTER_AREA), np.uint8)


def pixels_of(image: PIL.Image.Image) -> Image:
    """The pixels of an image that Pillow has opened or made, as `read_image` gives those of its file.

    Raises:
        ImageError: as ``read_image``.
    """
    path = Path(getattr(image, "filename", "") or f"<{type(image).__name__}>")
    try:
        _require_supported(path, image, path if path.is_file() else None)
        image.load()
        upright = _UPRIGHT.get(_orientation(image))
        found = _rgb8(image)
    except _DAMAGE as error:
        if isinstance(error, ImageError):
            raise
        raise ImageError(path, f"cannot be decoded: {error}") from error
    return np.ascontiguousarray(found if upright is None else upright(found))


def image_size(path: Path) -> tuple[int, int]:
    """(height, width) of the upright image, from the header where the format allows.

    A PNG may keep its orientation behind the pixels, and Pillow turns a TIFF upright only when it loads it:
    these two are decoded.

    Raises:
        ImageError: as ``read_image``, but damage behind the header may go unseen.
    """
    with quiet(), _opened(path, path) as image:
        if image.format in ("PNG", "TIFF"):
            image.load()
        return _upright_size(image.size, _orientation(image))


def verify_image(path: Path) -> tuple[int, int]:
    """(height, width) of the upright image after decoding all of it: what passes here, ``read_image`` reads.

    Raises:
        ImageError: as ``read_image``.
    """
    with quiet():
        return verify_content(path, read_content(path))


def read_content(file: ImageFile) -> bytes:
    """The bytes of an image file.

    Raises:
        ImageError: it is missing, empty, unreadable, no regular file, too large, or damaged in its pack.
    """
    path = file if isinstance(file, Path) else file.path
    try:
        if not isinstance(file, Path):
            return file.read()
        with opened(path) as (stream, size):
            _require_size(path, size)
            return stream.read(size)
    except FileNotFoundError as error:
        reason = "no such file" if file is path else f"its shard {error.filename} is gone"
        raise MissingImageError(path, reason) from error
    except (OSError, ValueError) as error:
        if isinstance(error, ImageError):
            raise
        raise ImageError(path, f"cannot be read: {getattr(error, 'strerror', None) or error}") from error


def verify_content(path: Path, content: bytes) -> tuple[int, int]:
    """`verify_image` of a file that was read. Call it within ``quiet``.

    JPEGs are decoded at an eighth of their size. That still walks every coefficient, so truncation is
    found, in about a tenth of the time.
    """
    with _opened(path, io.BytesIO(content)) as image:
        if image.format not in ("JPEG", "MPO"):
            image.load()
            return _upright_size(image.size, _orientation(image))
        width, height = image.size
        image.draft("L", (max(1, width // 8), max(1, height // 8)))
        image.load()
        return _upright_size((width, height), _orientation(image))


@contextmanager
def quiet() -> Iterator[None]:
    """Inside, Pillow does not warn of odd EXIF and palettes: not the user's concern.

    Warnings are the whole process's: threads that decode are started and ended within one such block.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextmanager
def _opened(path: Path, source: Path | io.BytesIO) -> Iterator[PIL.Image.Image]:
    """The image with its header read and checked; whatever goes wrong inside becomes an ImageError."""
    try:
        if isinstance(source, Path):
            status = source.stat()
            if not stat.S_ISREG(status.st_mode):  # a pipe would block for ever
                raise ImageError(path, "not a regular file")
            _require_size(path, status.st_size)
        with PIL.Image.open(source, formats=_FORMATS) as image:
            _require_supported(path, image, source)
            yield image
    except ImageError:
        raise
    except FileNotFoundError as error:
        raise MissingImageError(path, "no such file") from error
    except PIL.UnidentifiedImageError as error:
        raise ImageError(path, "not an image of a known format, or cut off in its header") from error
    except _DAMAGE as error:
        reason = str(error) or type(error).__name__
        raise ImageError(path, f"cannot be decoded: {reason}") from error


def _require_size(path: Path, size: int) -> None:
    if size == 0:
        raise ImageError(path, "the file is empty")
    if size > MAX_FILE_BYTES:
        sizes = f"{size >> 20} MiB is more than the {MAX_FILE_BYTES >> 20} MiB"
        raise ImageError(path, f"{sizes} that are read")


def _require_supported(path: Path, image: PIL.Image.Image, source: Path | io.BytesIO | None) -> None:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise ImageError(path, f"{width}x{height} pixels are more than the {MAX_PIXELS} that are read")
    if width < 1 or height < 1:
        raise ImageError(path, "it has no pixels")
    if image.mode not in _MODES:
        raise ImageError(path, f"pixels of kind {image.mode} have no defined conversion to 8-bit RGB")
    if image.mode in _DEEP_GREY_MODES and not 8 <= _declared_bits(image) <= 32:
        raise ImageError(path, f"{_declared_bits(image)} bits a pixel do not fit pixels of kind {image.mode}")
    if "progressive" in image.info and source is not None:
        content = source.read_bytes() if isinstance(source, Path) else source.getvalue()
        if content.count(jpeg.SCAN) > MAX_SCANS:
            raise ImageError(path, f"it has more than {MAX_SCANS} scans")


def _decode_ordinary_jpeg(
    source: Path | io.BytesIO, image: PIL.Image.Image, reduction: int
) -> NDArray[np.uint8] | None:
    """The fast path; None where Pillow has to decide.

    OpenCV paints the missing part of a truncated JPEG grey and says nothing. The end marker cannot occur
    inside compressed data, so a file that ends with it is not truncated.
    """
    if image.mode not in ("RGB", "L"):
        return None
    if isinstance(source, Path):
        data = np.fromfile(source, dtype=np.uint8)
    else:
        data = np.frombuffer(source.getbuffer(), np.uint8)
    if data[-2:].tobytes() != jpeg.END:
        return None
    return _decode(data, image.size[::-1], reduction)


def _decode(data: NDArray[np.uint8], size: tuple[int, int], reduction: int) -> NDArray[np.uint8] | None:
    """The pixels of a complete JPEG of that (height, width), as stored; None where OpenCV sees none."""
    try:
        rgb = cv2.imdecode(data, _REDUCED[reduction] | _RGB)
    except cv2.error:
        return None
    if rgb is None or rgb.shape[:2] != tuple(-(-side // reduction) for side in size):
        return None
    return np.asarray(rgb, np.uint8)


def _rgb8(image: PIL.Image.Image) -> NDArray[np.uint8]:
    if image.mode not in _DEEP_GREY_MODES:
        return np.array(image.convert("RGB"))  # a copy: what Pillow lends cannot be written to
    shift = _declared_bits(image) - 8
    grey = np.clip(np.asarray(image) >> shift, 0, 255).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=-1)


def _declared_bits(image: PIL.Image.Image) -> int:
    """Depth of a grey image. Pillow stretches PGM to 16 bits itself; only TIFF has other depths."""
    tags = getattr(image, "tag_v2", {})
    (bits, *_) = tags.get(ExifTags.Base.BitsPerSample, (16,))
    return int(bits)


def _upright_size(size: tuple[int, int], orientation: int) -> tuple[int, int]:
    """Pillow's (width, height) as stored -> (height, width) as shown."""
    width, height = size
    return (width, height) if orientation >= 5 else (height, width)


def _orientation(image: PIL.Image.Image) -> int:
    """EXIF orientation, 1 to 8; cameras and tools write broken EXIF into sound images, so 1 when in doubt."""
    try:
        value = image.getexif().get(ExifTags.Base.Orientation, 1)
    except _DAMAGE:
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1
