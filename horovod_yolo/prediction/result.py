"""What was found in one image, for people and their programs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
from torch import Tensor

from horovod_yolo.core.boxes import xyxy_to_xywh
from horovod_yolo.core.errors import UserError
from horovod_yolo.core.types import Detections, Image
from horovod_yolo.prediction.drawing import Style, draw

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Origin:
    """Where an image came from."""

    path: str = ""  # a file's or a stream's, without a password; ``image0`` for what was given as pixels
    source: int = 0  # place of the picture, video or stream among the sources
    number: int = 0  # of the image in its video or stream, from 1; 0: it is a picture
    fps: float = 0.0  # of that video or stream
    live: bool = False  # of a camera or a stream
    reread: Callable[[], Image] | None = field(default=None, repr=False, compare=False)


@dataclass(frozen=True)
class Boxes:
    """The n objects of an image, best score first. All tensors are on the CPU.

    Iterating gives each object as `Boxes` of one.
    """

    xyxy: Tensor  # (n, 4) float32, corners in pixels
    conf: Tensor  # (n,) float32, scores in 0..1
    cls: Tensor  # (n,) int64, class numbers
    orig_shape: tuple[int, int]  # (height, width) of the image, pixels

    @property
    def xywh(self) -> Tensor:
        """(n, 4) float32: centre and size in pixels."""
        return xyxy_to_xywh(self.xyxy)

    @property
    def xyxyn(self) -> Tensor:
        """(n, 4) float32: corners as a share of the image's width and height."""
        return self.xyxy / self._sides()

    @property
    def xywhn(self) -> Tensor:
        """(n, 4) float32: centre and size as a share of the image's width and height."""
        return self.xywh / self._sides()

    def _sides(self) -> Tensor:
        height, width = self.orig_shape
        return self.xyxy.new_tensor([width, height, width, height])

    def __len__(self) -> int:
        return int(self.conf.shape[0])

    def __getitem__(self, index: int | slice | Tensor) -> Boxes:
        rows: slice | Tensor | list[int] = [range(len(self))[index]] if isinstance(index, int) else index
        return Boxes(self.xyxy[rows], self.conf[rows], self.cls[rows], self.orig_shape)

    def __iter__(self) -> Iterator[Boxes]:
        return (self[i] for i in range(len(self)))


@dataclass(frozen=True)
class Result:
    """What was found in one image. ``len()`` counts the objects; iterating gives each as `Boxes` of one."""

    boxes: Boxes
    names: Mapping[int, str]  # of the classes, by number
    origin: Origin = Origin()
    speed: Mapping[str, float] = field(default_factory=dict)  # ms: ``preprocess``, ``inference``
    image: Image | None = field(default=None, repr=False, compare=False)  # (H, W, 3) RGB, where it is kept

    @property
    def path(self) -> str:
        """Of the image's file, video or stream; ``image0``, ``image1``, ... for what was given as pixels."""
        return self.origin.path

    @property
    def orig_shape(self) -> tuple[int, int]:
        """(height, width) of the image, pixels."""
        return self.boxes.orig_shape

    @property
    def boxes_xyxy(self) -> Tensor:
        """(n, 4) float32, corners in pixels: ``boxes.xyxy``."""
        return self.boxes.xyxy

    @property
    def scores(self) -> Tensor:
        """(n,) float32: ``boxes.conf``."""
        return self.boxes.conf

    @property
    def classes(self) -> Tensor:
        """(n,) int64: ``boxes.cls``."""
        return self.boxes.cls

    @property
    def detections(self) -> Detections:
        """The same as the metrics take it."""
        return Detections(self.boxes.xyxy, self.boxes.conf, self.boxes.cls)

    def __len__(self) -> int:
        return len(self.boxes)

    def __iter__(self) -> Iterator[Boxes]:
        return iter(self.boxes)

    def pixels(self) -> Image:
        """The image, (H, W, 3) uint8 RGB; read again where it was not kept.

        Raises:
            UserError: it is an image of a video that was not kept, or its file cannot be read any more.
        """
        if self.image is not None:
            return self.image
        if self.origin.reread is None:
            raise UserError(
                "the pixels of this image were not kept", where=self.path, fix="use predict(..., stream=True)"
            )
        return self.origin.reread()

    def plot(self, line_thickness: int = 0, *, labels: bool = True, conf: bool = True) -> NDArray[np.uint8]:
        """The image with its boxes: a new (H, W, 3) uint8 array, BGR as OpenCV shows and writes it.

        Args:
            line_thickness: of the boxes, pixels; 0: as the size of the image asks for.
            labels: write class names.
            conf: write scores behind the names.

        Raises:
            UserError: as `pixels`.
        """
        found = self.boxes
        canvas = np.ascontiguousarray(self.pixels()[..., ::-1])
        style = Style(line_thickness, labels, conf)
        draw(canvas, found.xyxy.numpy(), found.cls.numpy(), found.conf.numpy(), self.names, style)
        return canvas

    def save(self, path: str | Path, line_thickness: int = 0) -> Path:
        """Write `plot` as a picture, in the format of the path's suffix; returns the path.

        Raises:
            UserError: no such format, or it cannot be written.
        """
        path = Path(path)
        write_picture(path, self.plot(line_thickness))
        return path


def write_picture(path: Path, bgr: NDArray[np.uint8]) -> None:
    """Write (H, W, 3) BGR pixels in the format of the path's suffix.

    Raises:
        UserError: no such format, or it cannot be written.
    """
    try:
        done, encoded = cv2.imencode(path.suffix or "none", bgr)
    except cv2.error:
        done = False
    if not done:
        height, width = bgr.shape[:2]
        raise UserError(
            f"a picture of {width}x{height} pixels cannot be written so",
            where=path,
            fix="use .png",
        )
    try:
        path.write_bytes(encoded.tobytes())
    except OSError as error:
        raise unwritten(path, error) from None


def unwritten(path: Path, error: OSError) -> UserError:
    """What to say where a file of results cannot be written."""
    return UserError(
        f"cannot be written ({error.strerror or error})",
        where=path,
        fix="make room, or name another place",
    )
