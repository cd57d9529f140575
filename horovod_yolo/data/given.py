"""Images as callers of ``predict`` give them: paths, Pillow images, arrays; one, several, a folder."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import PIL.Image
from numpy.typing import NDArray

from horovod_yolo.core.errors import UserError
from horovod_yolo.core.types import Image
from horovod_yolo.data.read import IMAGE_SUFFIXES, ImageError, pixels_of, read_image

Given: TypeAlias = str | os.PathLike[str] | PIL.Image.Image | NDArray[Any]


def one_by_one(images: Given | Iterable[Given]) -> Iterable[Given]:
    """What is meant, image by image: of a folder, also among others, its images in the order of their names.

    Raises:
        UserError: a folder without images; among others when it is its turn.
    """
    if isinstance(images, (str, os.PathLike)):
        return _of_path(images)
    if isinstance(images, PIL.Image.Image) or (isinstance(images, np.ndarray) and images.ndim < 4):
        return [images]
    if not isinstance(images, Iterable):
        raise _unusable(images)
    return _each(images)


def pixels(image: Given) -> Image:
    """The pixels of one of them, (H, W, 3) uint8 RGB.

    Raises:
        UserError: it is no usable image.
    """
    try:
        if isinstance(image, (str, os.PathLike)):
            return read_image(Path(image))
        if isinstance(image, PIL.Image.Image):
            return pixels_of(image)
    except ImageError as error:
        raise UserError(error.reason, where=error.path, fix="leave it out or replace it") from None
    if not isinstance(image, np.ndarray):
        raise _unusable(image)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise UserError(f"an image is {image.dtype} {image.shape}", fix="give (H, W, 3) uint8 RGB")
    return image


def _each(images: Iterable[Given]) -> Iterator[Given]:
    for image in images:
        if isinstance(image, (str, os.PathLike)):
            yield from _of_path(image)
        else:
            yield image


def _of_path(path: str | os.PathLike[str]) -> list[Given]:
    return _of_folder(Path(path)) if Path(path).is_dir() else [path]


def _of_folder(folder: Path) -> list[Given]:
    try:
        found = sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
    except OSError as error:
        raise UserError(f"cannot be read: {error.strerror}", where=folder, fix="make it readable") from None
    if not found:
        raise UserError("no image in this folder", where=folder, fix="name a folder of images, or an image")
    return [*found]


def _unusable(image: object) -> UserError:
    return UserError(
        f"{type(image).__name__} is no image", fix="give a path, a Pillow image, an array, or a list of such"
    )
