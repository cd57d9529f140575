"""Boxes and labels on an image: readable at every size, a class always in the same colour."""

from __future__ import annotations

import colorsys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image as PillowImage
from PIL import ImageDraw, ImageFont, features

from horovod_yolo.core.types import Image
from horovod_yolo.io.fonts import dejavu, runs, shown_name

LINE_SHARE = 0.003  # of the mean side of the image
FONT_SHARE = 0.022
LEAST_LINE, LEAST_FONT = 1, 10  # pixels
SMALLEST_FONT = 7  # for a label that is wider than the image
UNABLE = "" if features.check("raqm") else "Pillow needs FriBiDi for that: apt-get install libfribidi0"
GOLDEN = 0.618033988749895  # turns of the colour wheel between classes: neighbours never look alike

Colour = tuple[int, int, int]  # BGR


@dataclass(frozen=True)
class Style:
    """How results are drawn."""

    line_thickness: int = 0  # pixels; 0: as the size of the image asks for
    labels: bool = True
    conf: bool = True


def draw(
    canvas: Image,
    boxes_xyxy: NDArray[np.floating[Any]],
    classes: NDArray[np.int64],
    scores: NDArray[np.floating[Any]],
    names: Mapping[int, str],
    style: Style,
) -> None:
    """Draw n boxes into a contiguous (H, W, 3) BGR image, the best last and so on top.

    Args:
        canvas: is changed.
        boxes_xyxy: (n, 4) in its pixels, best score first.
        classes: (n,).
        scores: (n,).
        names: of the classes.
        style: lines and labels.
    """
    mean_side = (canvas.shape[0] + canvas.shape[1]) / 2
    line = style.line_thickness or max(LEAST_LINE, round(mean_side * LINE_SHARE))
    font = max(LEAST_FONT, round(mean_side * FONT_SHARE))
    last = np.array([canvas.shape[1], canvas.shape[0]] * 2) - 1  # pixel: a line beyond it is not seen
    corners = np.minimum(boxes_xyxy.round().astype(int), last)
    worst_first = reversed(list(zip(corners, classes.tolist(), scores, strict=True)))
    labels = []
    for (left, top, right, bottom), number, score in worst_first:
        colour = colour_of(number)
        cv2.rectangle(canvas, (int(left), int(top)), (int(right), int(bottom)), colour, line)
        name = shown_name(number, names.get(number, str(number)), UNABLE)
        labels.append((f"{name} {score:.2f}" if style.conf else name, left - line // 2, top, colour))
    for text, left, top, colour in labels if style.labels else ():  # no line crosses a label
        _write(canvas, text, left, top, font, colour)


@lru_cache(maxsize=1024)
def colour_of(number: int) -> Colour:
    """The colour of a class."""
    hue = (0.58 + number * GOLDEN) % 1
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.85 if number % 2 else 0.7, 0.65 if number % 3 else 0.85)
    return round(blue * 255), round(green * 255), round(red * 255)


def _write(canvas: Image, text: str, left: int, top: int, size: int, colour: Colour) -> None:
    """A label above ``top``, or below it where there is no room; inside the image as far as it fits."""
    height, width = canvas.shape[:2]
    ink = _inked(text, size)
    while ink.shape[1] > width and size > SMALLEST_FONT:
        size -= 1
        ink = _inked(text, size)
    ink = ink[:height, :width]
    rows, columns = ink.shape
    y = top - rows if top >= rows else min(max(top, 0), height - rows)
    x = min(max(left, 0), width - columns)
    blue, green, red = colour
    dark = 0.114 * blue + 0.587 * green + 0.299 * red < 150
    share = ink[..., None].astype(np.float32) / 255
    paper = np.array(colour, np.float32)
    canvas[y : y + rows, x : x + columns] = paper + share * ((255.0 if dark else 0.0) - paper)


@lru_cache(maxsize=512)
def _inked(text: str, size: int) -> NDArray[np.uint8]:
    """(rows, columns) how much ink is where on a label, 0..255. Its height depends on the size alone."""
    ascent, descent = _font(dejavu(), size).getmetrics()
    margin = max(1, size // 8)
    pieces = [(piece, _font(face, size)) for piece, face in runs(text)]
    lengths = [font.getlength(piece) for piece, font in pieces]
    page = PillowImage.new("L", (round(sum(lengths)) + 2 * margin, ascent + descent + margin // 2))
    pen, left = ImageDraw.Draw(page), float(margin)
    for (piece, font), length in zip(pieces, lengths, strict=True):
        pen.text((left, margin // 2 + ascent), piece, fill=255, font=font, anchor="ls")
        left += length
    return np.asarray(page)


@lru_cache(maxsize=32)
def _font(face: Path, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(str(face), size)
