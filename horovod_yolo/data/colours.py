"""Changes of an image that leave everything in its place: colours, blur, contrast."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from horovod_yolo.core.types import Image

ALBUMENTATIONS_PROBABILITY = 0.01  # of each of the four
_OPPOSITE = np.array(
    [[3.0], [5.0], [1.0]]
)  # of red, green, blue: cyan, magenta, yellow in sixths of the circle


class Rare(NamedTuple):
    """Which of the four of albumentations an image gets, and the seed of what they draw themselves."""

    chosen: tuple[bool, ...]
    seed: int


def draw_rare(rng: np.random.Generator) -> Rare | None:
    """Blur, median blur, grey and CLAHE, each one time in a hundred; None for none of them."""
    chosen = rng.random(4) < ALBUMENTATIONS_PROBABILITY
    seed = int(rng.integers(2**32))
    return Rare(tuple(chosen.tolist()), seed) if chosen.any() else None


def albumentations_set(rare: Rare, image: Image) -> Image:
    """Apply what was drawn.

    The slow import happens only now. The library gets a seed of its own and touches no global random state.
    """
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # else the import asks PyPI for a newer version
    import albumentations

    transforms = (albumentations.Blur, albumentations.MedianBlur, albumentations.ToGray, albumentations.CLAHE)
    pipeline = albumentations.Compose(
        [make(p=1.0) for make, wanted in zip(transforms, rare.chosen, strict=True) if wanted], seed=rare.seed
    )
    return np.asarray(pipeline(image=image)["image"], np.uint8)


@dataclass(frozen=True, eq=False)
class ColourChange:
    """Another hue, more or less saturation and value, the same for every pixel of a sample.

    Attributes:
        absences: (3, 256) of red, green and blue, for each old hue: the share of the chroma that its new
            colour lacks.
        saturation: factor.
        value: factor.
    """

    absences: NDArray[np.uint8]
    saturation: float
    value: float

    def __call__(self, image: Image, out: Image | None = None) -> Image:
        """The changed (H, W, 3) RGB image, in ``out`` where given, which may be the image itself.

        Plane by plane: value - chroma * absence is the way back from HSV, without a table of colours or a
        second conversion.
        """
        height, width = image.shape[:2]
        planes = np.empty((6, height, width), np.uint8)
        hue, saturation, value, *rgb = planes
        hsv = np.empty_like(image)
        cv2.split(cv2.cvtColor(image, cv2.COLOR_RGB2HSV_FULL, hsv), [hue, saturation, value])
        cv2.convertScaleAbs(value, value, self.value)
        chroma = cv2.multiply(saturation, value, saturation, self.saturation / 255)
        cv2.min(chroma, value, chroma)  # which is where saturation ends
        for absence, plane in zip(self.absences, rgb, strict=True):
            cv2.LUT(hue, absence, plane)
            cv2.multiply(plane, chroma, plane, 1 / 255)
            cv2.subtract(value, plane, plane)
        return np.asarray(cv2.merge(rgb, hsv if out is None else out), np.uint8)

    def of_grey(self, level: int) -> int:
        """The changed level of a pixel with three equal channels."""
        return min(255, round(level * self.value))


def draw_colours(
    rng: np.random.Generator, strengths: tuple[float, float, float], turns_hue: bool
) -> ColourChange | None:
    """Random factors of hue, saturation and value; None where all strengths are 0.

    Args:
        rng: draws the factors.
        strengths: largest relative changes of hue, saturation and value.
        turns_hue: the hue is turned by that share of the circle, either way, whatever it is; it is not
            multiplied.
    """
    strength = np.array(strengths)
    hue, saturation, value = (1 + rng.uniform(-1, 1, 3) * strength).tolist()
    return ColourChange(_absences(hue, turns_hue), saturation, value) if strength.any() else None


def _absences(hue: float, turns_hue: bool) -> NDArray[np.uint8]:
    """Of red, green and blue in 256 hues that are changed.

    Pure blue lacks all of red and nothing of blue. Between neighbouring primary and secondary colours one
    channel changes evenly and the others stay: Smith, "Color Gamut Transform Pairs", 1978.
    """
    levels = np.arange(256) / 256
    turned = 6 * (levels + (hue - 1) if turns_hue else levels * hue)
    away = np.abs((turned - _OPPOSITE + 3) % 6 - 3)
    return np.asarray(np.rint((2 - away).clip(0, 1) * 255), np.uint8)
