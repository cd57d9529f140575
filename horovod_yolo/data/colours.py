"""Changes of an image that leave everything in its place: colours, blur, contrast."""

from __future__ import annotations

import os

import cv2
import numpy as np

from horovod_yolo.core.types import Image

ALBUMENTATIONS_PROBABILITY = 0.01  # of each of the four


def albumentations_set(rng: np.random.Generator, image: Image) -> Image:
    """Apply blur, median blur, grey and CLAHE, each one time in a hundred.

    Which of them apply is drawn here, so that the slow import and the call happen only then. The
    library gets a seed of its own and touches no global random state.
    """
    chosen = rng.random(4) < ALBUMENTATIONS_PROBABILITY
    seed = int(rng.integers(2**32))
    if not chosen.any():
        return image
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # else the import asks PyPI for a newer version
    import albumentations

    transforms = (albumentations.Blur, albumentations.MedianBlur, albumentations.ToGray, albumentations.CLAHE)
    pipeline = albumentations.Compose(
        [make(p=1.0) for make, wanted in zip(transforms, chosen, strict=True) if wanted], seed=seed
    )
    return np.asarray(pipeline(image=image)["image"], np.uint8)


def change_hsv(
    rng: np.random.Generator, image: Image, strengths: tuple[float, float, float], turns_hue: bool
) -> Image:
    """Change the hue and stretch saturation and value by random factors, through 8-bit tables.

    Args:
        rng: draws the factors.
        image: (H, W, 3) RGB.
        strengths: largest relative changes of hue, saturation and value.
        turns_hue: the hue is turned by that share of the circle, either way, whatever it is; it is not
            multiplied.
    """
    strength = np.array(strengths)
    hue, saturation, value = 1 + rng.uniform(-1, 1, 3) * strength
    if not strength.any():
        return image
    levels = np.arange(256)
    tables = np.empty((1, 256, 3), np.uint8)
    # OpenCV's 8-bit hue counts in steps of two degrees.
    tables[0, :, 0] = (levels + (hue - 1) * 180) % 180 if turns_hue else (levels * hue) % 180
    tables[0, :, 1] = (levels * saturation).clip(0, 255)
    tables[0, :, 2] = (levels * value).clip(0, 255)
    hsv = cv2.LUT(cv2.cvtColor(image, cv2.COLOR_RGB2HSV), tables)
    return np.asarray(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB), np.uint8)
