"""What need not be done twice: the scanned index, and decoded images.

Both caches are only ever a shortcut. A damaged file is a miss, a folder that cannot be written to costs
time and a warning, and nothing is written beside the user's images. Files appear under their names complete
or not at all, so ranks and jobs may share a folder.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import tempfile
import time
import zipfile
import zlib
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
from numpy.typing import NDArray

from horovod_yolo.core.types import Image
from horovod_yolo.data.index import FORMAT_VERSION, Index, Problem, Record, relative_name
from horovod_yolo.data.read import ImageError, read_image
from horovod_yolo.io.atomic import replacing
from horovod_yolo.io.private import check_own, own_folder

INDEXES_KEPT = 64  # some 200 bytes an image each

_log = logging.getLogger(__name__)

# What NumPy, zip and our own checks raise on a damaged file.
_DAMAGE = (
    OSError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    EOFError,
    RuntimeError,  # what zipfile raises at a bit that says encrypted or patched
    zipfile.BadZipFile,
    zlib.error,
)


def default_cache_dir() -> Path:
    """``$XDG_CACHE_HOME/horovod_yolo/index``, by default below ``~/.cache``."""
    return _cache_home() / "horovod_yolo" / "index"


def load_index(folder: Path, key: str, root: Path) -> tuple[Index, list[Problem]] | None:
    """What ``save_index`` stored under this key, placed at ``root``; None when there is no sound file."""
    file = _index_file(folder, key)
    try:
        check_own(folder)
        with file.open("rb") as stream:
            arrays = np.load(stream, allow_pickle=False)
            found = _unpack({name: arrays[name] for name in arrays.files}, key, root)
    except FileNotFoundError:
        return None
    except _DAMAGE as error:
        _log.warning("cached index %s is unusable (%s): the data is scanned again", file, error)
        return None
    with contextlib.suppress(OSError):  # a folder that may only be read
        os.utime(file)  # used now: the last to be pruned
    return found


def save_index(folder: Path, key: str, index: Index, problems: Sequence[Problem]) -> None:
    """Store an index with relative paths. Failure to write is logged, not raised.

    The folder keeps the INDEXES_KEPT that were used last.
    """
    arrays = _pack(index, problems, key)
    file = _index_file(folder, key)
    try:
        _publish(file, lambda stream: np.savez(stream, **arrays))
        _prune(folder)
    except OSError as error:
        _log.warning("the index cannot be cached in %s (%s): the next start scans again", folder, error)


def image_loader(
    index: Index, kind: Literal["none", "ram", "disk"] = "none", cache_dir: str = ""
) -> Callable[[int], Image]:
    """What reads an image by its place in the index; picklable, for the loader's workers.

    It raises `ImageError` as `read_image` does, and where the image's size is no longer the index's: its
    boxes would lie elsewhere.
    """
    if kind == "none":
        return partial(_unchanged, index, partial(_read, index))
    cache = ImageCache(index, kind, Path(cache_dir) / "images" if cache_dir else None)
    return partial(_unchanged, index, cache.get)


def _read(index: Index, i: int) -> Image:
    return read_image(index.image_path(i))


def _unchanged(index: Index, load: Callable[[int], Image], i: int) -> Image:
    image, record = load(i), index.records[i]
    height, width = image.shape[:2]
    if (height, width) != (record.height, record.width):
        before = f"{record.width}x{record.height}"
        raise ImageError(index.image_path(i), f"it is {width}x{height} now and was {before} in the scan")
    return image


class ImageCache:
    """Decoded images of an index: kept in this process (``ram``) or as ``.npy`` files (``disk``).

    Disk files are named by path, size and time of the image, so a changed image is decoded anew.
    """

    def __init__(self, index: Index, kind: Literal["ram", "disk"], folder: Path | None = None) -> None:
        self._index = index
        self._kind = kind
        self._folder = folder or _cache_home() / "horovod_yolo" / "images"
        self._kept: dict[int, Image] = {}
        self._writable = True
        self._trusted = kind == "disk" and self._is_own()

    def get(self, i: int) -> Image:
        """The i-th image of the index, (H, W, 3) uint8. The caller may change it: the cache will not.

        Raises:
            ImageError: as ``read_image``.
        """
        return self._from_disk(i) if self._kind == "disk" else self._from_ram(i)

    def _is_own(self) -> bool:
        try:
            check_own(self._folder)
        except OSError as error:
            _log.warning("images are not cached in %s: %s", self._folder, error.strerror)
            return False
        return True

    def _from_ram(self, i: int) -> Image:
        if i not in self._kept:
            self._kept[i] = read_image(self._index.image_path(i))
        return self._kept[i].copy()

    def _from_disk(self, i: int) -> Image:
        path = self._index.image_path(i)
        if not path.is_file() or not self._trusted:
            return read_image(path)  # the first raises, and says why
        file = self._folder / _image_name(path)
        pixels = _load_pixels(file)
        if pixels is None:
            pixels = read_image(path)
            self._store(file, pixels)
        return pixels

    def _store(self, file: Path, pixels: Image) -> None:
        if not self._writable:
            return
        try:
            _publish(file, lambda stream: np.save(stream, pixels))
        except OSError as error:
            self._writable = False  # a full disk stays full: say it once, then decode
            _log.warning(
                "images cannot be cached in %s (%s): they are decoded every time", self._folder, error
            )


def _cache_home() -> Path:
    stated = os.environ.get("XDG_CACHE_HOME", "")
    if Path(stated).is_absolute():  # the XDG rule: a relative one is to be ignored
        return Path(stated)
    try:
        return Path.home() / ".cache"
    except RuntimeError:  # containers run as users without an account
        return Path(tempfile.gettempdir()) / f"cache-{os.getuid()}"  # by `own_folder` only this user's own


def _prune(folder: Path) -> None:
    """Remove the indexes that were not used for longest, and what killed writers left a day ago."""
    indexes = sorted(((_used(file), file) for file in folder.glob("*.npz")), reverse=True)
    yesterday = time.time() - 24 * 3600
    remains = [file for file in folder.glob(".*.tmp") if _used(file) < yesterday]
    for file in [*(file for _, file in indexes[INDEXES_KEPT:]), *remains]:
        file.unlink(missing_ok=True)


def _used(file: Path) -> float:
    """Seconds since 1970; now where another job has removed the file meanwhile."""
    try:
        return file.stat().st_mtime
    except FileNotFoundError:
        return time.time()


def _index_file(folder: Path, key: str) -> Path:
    return folder / f"{key}.npz"


def _publish(file: Path, write: Callable[[IO[bytes]], None]) -> None:
    """Write a file so that others see all of it or nothing."""
    own_folder(file.parent)
    with replacing(file) as stream:
        write(stream)


def _pack(index: Index, problems: Sequence[Problem], key: str) -> dict[str, Any]:
    records = index.records
    about = {
        "version": FORMAT_VERSION,
        "key": key,
        "names": index.names,
        "paths": [record.path for record in records],
        "image_ids": [record.image_id for record in records],
        "problems": [(relative_name(Path(p.file), index.root), p.line, p.reason) for p in problems],
    }
    return {
        "about": np.frombuffer(json.dumps(about).encode(), dtype=np.uint8),
        "sizes": np.array([(r.height, r.width) for r in records], dtype=np.int64).reshape(-1, 2),
        "counts": np.array([len(r.classes) for r in records], dtype=np.int64),
        "classes": np.concatenate([r.classes for r in records]),
        "boxes_xyxy": np.concatenate([r.boxes_xyxy for r in records]),
        "crowd": np.concatenate([r.crowd for r in records]),
        "areas": np.concatenate([r.areas for r in records]),
    }


def _unpack(arrays: dict[str, NDArray[Any]], key: str, root: Path) -> tuple[Index, list[Problem]]:
    about = json.loads(arrays["about"].tobytes())
    if (about["version"], about["key"]) != (FORMAT_VERSION, key):
        raise ValueError("it is of another version or data set")
    columns = [
        _rows(arrays[name], arrays["counts"], kind)
        for name, kind in (
            ("classes", "int64"),
            ("boxes_xyxy", "float32"),
            ("crowd", "bool"),
            ("areas", "float32"),
        )
    ]
    sizes: list[list[int]] = arrays["sizes"].tolist()
    records = tuple(
        Record(path, height, width, classes, boxes_xyxy, crowd, areas, image_id)
        for path, image_id, (height, width), classes, boxes_xyxy, crowd, areas in zip(
            about["paths"], about["image_ids"], sizes, *columns, strict=True
        )
    )
    problems = [Problem(str(root / file), line, reason) for file, line, reason in about["problems"]]
    return Index(root, tuple(about["names"]), records), problems


def _rows(flat: NDArray[Any], counts: NDArray[np.int64], kind: str) -> list[NDArray[Any]]:
    """Cut a flat column into one array an image."""
    if flat.dtype != np.dtype(kind) or len(flat) != counts.sum():
        raise ValueError("its columns do not fit together")
    return np.split(flat, np.cumsum(counts)[:-1])


def _image_name(path: Path) -> str:
    status = path.stat()
    text = f"{path.absolute()}\n{status.st_size}\n{status.st_mtime_ns}"
    name = hashlib.sha256(os.fsencode(text)).hexdigest()
    return f"{name[:2]}/{name}.npy"


def _load_pixels(file: Path) -> Image | None:
    """A stored image, mapped copy-on-write: changes stay in this process. None when there is no sound one."""
    try:
        pixels = np.load(file, mmap_mode="c", allow_pickle=False)
        if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
            raise ValueError("not an image")
    except FileNotFoundError:
        return None
    except _DAMAGE as error:
        _log.warning("cached image %s is unusable (%s): decoded again", file, error)
        return None
    return np.asarray(pixels)
