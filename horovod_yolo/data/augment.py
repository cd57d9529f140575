"""From one image of the data set to one training or validation sample.

Every random number of a sample comes from one generator keyed by (seed, epoch, index), so a sample
is the same whichever worker or rank makes it, and after a resume. What happens, in order: mosaic (or
letterbox), random perspective, mixup, CutMix, the albumentations set, HSV, flips. The set of
augmentations and their defaults are those of YOLOv5's ``hyp.scratch-low``; families of models may want
them otherwise (`AugmentParams`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from horovod_yolo.core.types import Floats, Image, Ints, Letterbox, LostImage, SampleKey
from horovod_yolo.data.annotations import Annotations, Record
from horovod_yolo.data.colours import albumentations_set, change_hsv
from horovod_yolo.data.cutmix import boxes_in, free_rectangle
from horovod_yolo.data.letterbox import GREY, boxes_to_input, letterbox, resize_to_fit
from horovod_yolo.data.sampler import Stream, epoch_order, keyed_generator
from horovod_yolo.data.substitutes import Pictures

Load = Callable[[int], Image]
Matrix = NDArray[np.float64]  # (3, 3) homogeneous

MIN_SIDE = 2.0  # pixels; a box narrower or lower than this after the warp is dropped
MIN_AREA_SHARE = 0.1  # of the box's area before the warp (scaled alike) that must remain in view
MAX_ASPECT = 100.0


@dataclass(frozen=True)
class AugmentParams:
    """Strength of each augmentation; the names are YOLOv5's and Ultralytics' hyperparameters."""

    hsv_h: float = 0.015  # largest change of hue, relative to it or as a share of the circle
    hsv_s: float = 0.7
    hsv_v: float = 0.4
    degrees: float = 0.0  # largest rotation, either way
    translate: float = 0.1  # largest shift as a share of the input
    scale: float = 0.5  # zoom within 1 - scale .. 1 + scale
    shear: float = 0.0  # degrees
    perspective: float = 0.0  # 1 / pixel, 0 to 0.001
    flipud: float = 0.0  # probability
    fliplr: float = 0.5
    mosaic: float = 1.0
    mixup: float = 0.0
    cutmix: float = 0.0  # needs ``mixes_singles``
    albumentations: bool = True
    turns_hue: bool = False  # adds to the hue, instead of multiplying it
    mixes_singles: bool = False  # mixup of any two images, instead of mosaics only
    unmixed_from: int | None = None  # epoch from which images stay apart: no mosaic, mixup, CutMix

    def in_epoch(self, epoch: int) -> AugmentParams:
        """What holds in an epoch."""
        if self.unmixed_from is None or epoch < self.unmixed_from:
            return self
        return self.unmixed()

    def unmixed(self) -> AugmentParams:
        """The same without what puts several images together."""
        return replace(self, mosaic=0.0, mixup=0.0, cutmix=0.0)


@dataclass(frozen=True)
class Sample:
    """One image as the network will see it, with its boxes."""

    image: Image  # (height, width, 3) exactly as the key asks
    classes: Ints  # (n,)
    boxes_xyxy: Floats  # (n, 4) input pixels
    letterbox: Letterbox  # of validation samples; the identity for training samples
    index: int
    lost: tuple[LostImage, ...] = ()  # images that should have gone into it and could not be read
    replaced: bool = False  # its own image is one of them


class _Scene(NamedTuple):
    """An image with its boxes, in the image's own pixels."""

    image: Image  # (H, W, 3)
    classes: Ints  # (n,)
    boxes_xyxy: Floats  # (n, 4)


@dataclass(frozen=True)
class TrainTransform:
    """`augment` with everything but the key bound, for the loader. Picklable if ``load`` is.

    An image that cannot be read gives way to the next one of the epoch's order: ``order``, or where that is
    None the one that `StepSampler` shuffles from the same seed.
    """

    annotations: Annotations
    load: Load
    params: AugmentParams
    seed: int
    order: Ints | None = None

    def __call__(self, key: SampleKey) -> Sample:
        """Make the training sample that the key names.

        Raises:
            ImageError: neither an image nor any of the `MOST_IN_A_ROW` from it on can be read.
        """
        pictures = Pictures(self.annotations, self.load, partial(self._order, key.epoch))
        sample = augment_pictures(key, pictures, len(self.annotations), self.params, self.seed)
        if not pictures.lost:
            return sample
        lost = tuple(LostImage(str(error.path), error.reason) for error in pictures.lost.values())
        return replace(sample, lost=lost, replaced=key.index in pictures.lost)

    def _order(self, epoch: int) -> Ints:
        return (
            epoch_order(len(self.annotations), self.seed, epoch, True) if self.order is None else self.order
        )


@dataclass(frozen=True)
class EvaluationTransform:
    """`evaluation_sample` with everything but the key bound, for the loader."""

    annotations: Annotations
    load: Load
    longest_side: int | None = None
    antialias: bool = True

    def __call__(self, key: SampleKey) -> Sample:
        """Make the validation sample that the key names."""
        return evaluation_sample(key, self.annotations, self.load, self.longest_side, self.antialias)


def evaluation_sample(
    key: SampleKey,
    annotations: Annotations,
    load: Load,
    longest_side: int | None = None,
    antialias: bool = True,
) -> Sample:
    """Letterbox one image: nothing random, its boxes but no crowds, none clipped or dropped.

    Args:
        key: names the image and the input's size; the epoch is ignored.
        annotations: the data set.
        load: gives the (H, W, 3) image of a position in the data set, at its size or scaled.
        longest_side: see `letterbox`; by default the image fills the input.
        antialias: see `resize_to_fit`.
    """
    record, image = annotations.records[key.index], load(key.index)
    canvas, fit = letterbox(
        image,
        key.height,
        key.width,
        original=(record.height, record.width),
        longest_side=longest_side,
        antialias=antialias,
    )
    classes, boxes_xyxy = _ground_truth(record)
    return Sample(canvas, classes, boxes_to_input(boxes_xyxy, fit), fit, key.index)


def augment(key: SampleKey, annotations: Annotations, load: Load, params: AugmentParams, seed: int) -> Sample:
    """Make one training sample: a pure function of its arguments and the images on disk.

    Args:
        key: epoch, position in the data set, and (height, width) of the input in pixels.
        annotations: the data set; partners of mosaic and mixup come from all of it.
        load: gives the (H, W, 3) image of a position in the data set, at its size or scaled.
        params: strengths and probabilities.
        seed: of the run.

    Returns:
        A sample without crowd boxes, its boxes inside the input.

    Raises:
        ImageError: from ``load``.
    """
    return augment_pictures(key, Pictures(annotations, load), len(annotations), params, seed)


def augment_pictures(
    key: SampleKey, pictures: Pictures, count: int, params: AugmentParams, seed: int
) -> Sample:
    """`augment` with images from ``pictures``, which may put others in the place of lost ones."""
    rng, params = keyed_generator(seed, Stream.SAMPLE, key.epoch, key.index), params.in_epoch(key.epoch)
    is_mosaic = rng.random() < params.mosaic
    scene = _warped(rng, key, pictures, count, params, is_mosaic)
    if params.mixes_singles:
        scene = _mixed(rng, scene, key, pictures, count, params)
    elif is_mosaic and rng.random() < params.mixup:
        partner = key._replace(index=int(rng.integers(count)))
        scene = _mixup(rng, scene, _warped(rng, partner, pictures, count, params, True))
    image = albumentations_set(rng, scene.image) if params.albumentations else scene.image
    image = change_hsv(rng, image, (params.hsv_h, params.hsv_s, params.hsv_v), params.turns_hue)
    scene = _flip(rng, scene._replace(image=image), params)
    identity = Letterbox(key.height, key.width, 1.0, 1.0, 0.0, 0.0)
    return Sample(np.ascontiguousarray(scene.image), scene.classes, scene.boxes_xyxy, identity, key.index)


def _ground_truth(record: Record) -> tuple[Ints, Floats]:
    """Classes and boxes to train on: a crowd's box surrounds no single object."""
    single = ~record.crowd
    return record.classes[single], record.boxes_xyxy[single]


def _letterboxed(key: SampleKey, pictures: Pictures) -> _Scene:
    image, record = pictures.take(key.index)
    classes, boxes_xyxy = _ground_truth(record)
    image, fit = letterbox(image, key.height, key.width, original=(record.height, record.width))
    return _Scene(image, classes, boxes_to_input(boxes_xyxy, fit))


def _warped(
    rng: np.random.Generator,
    key: SampleKey,
    pictures: Pictures,
    count: int,
    params: AugmentParams,
    is_mosaic: bool,
) -> _Scene:
    scene = _mosaic(rng, key, pictures, count) if is_mosaic else _letterboxed(key, pictures)
    return _warp(rng, scene, key.height, key.width, params)


def _mixed(
    rng: np.random.Generator,
    scene: _Scene,
    key: SampleKey,
    pictures: Pictures,
    count: int,
    params: AugmentParams,
) -> _Scene:
    """Mixup and CutMix, each with a partner that was made as the scene was."""
    for probability, mix in ((params.mixup, _mixup), (params.cutmix, _cutmix)):
        if rng.random() < probability:
            partner, is_mosaic = key._replace(index=int(rng.integers(count))), rng.random() < params.mosaic
            scene = mix(rng, scene, _warped(rng, partner, pictures, count, params, is_mosaic))
    return scene


def _mosaic(rng: np.random.Generator, key: SampleKey, pictures: Pictures, count: int) -> _Scene:
    """Put four images around a random point of a canvas twice the input's size.

    Introduced as "Mosaic" by Bochkovskiy et al., "YOLOv4", 2020, section 3.4.
    """
    height, width = key.height, key.width
    centre_x, centre_y = (int(v) for v in rng.uniform((width / 2, height / 2), (1.5 * width, 1.5 * height)))
    positions = rng.permutation([key.index, *rng.integers(count, size=3)])
    canvas = np.full((2 * height, 2 * width, 3), GREY, np.uint8)
    classes, boxes = [], []
    for corner, position in enumerate(positions.tolist()):
        image, record = pictures.take(position)
        tile = resize_to_fit(image, height, width)
        rows, columns = tile.shape[:2]
        left = centre_x - (0 if corner % 2 else columns)
        top = centre_y - (0 if corner // 2 else rows)
        x1, x2 = max(left, 0), min(left + columns, 2 * width)
        y1, y2 = max(top, 0), min(top + rows, 2 * height)
        canvas[y1:y2, x1:x2] = tile[y1 - top : y2 - top, x1 - left : x2 - left]
        fit = Letterbox(record.height, record.width, columns / record.width, rows / record.height, left, top)
        tile_classes, tile_boxes_xyxy = _ground_truth(record)
        classes.append(tile_classes)
        boxes.append(boxes_to_input(tile_boxes_xyxy, fit))
    boxes_xyxy = _clip(np.concatenate(boxes), 2 * height, 2 * width)
    return _Scene(canvas, np.concatenate(classes), boxes_xyxy)


def _clip(boxes_xyxy: Floats, height: int, width: int) -> Floats:
    return np.asarray(np.clip(boxes_xyxy, 0, _row(width, height, width, height)), np.float32)


def _shift(x: float, y: float) -> Matrix:
    return np.array([[1, 0, x], [0, 1, y], [0, 0, 1]], np.float64)


def _random_homography(
    rng: np.random.Generator, canvas: tuple[int, int], height: int, width: int, params: AugmentParams
) -> tuple[Matrix, float]:
    """Draw the map from a (rows, columns) canvas to the input, and its zoom.

    The canvas is centred, bent, rotated and zoomed, sheared, and then set down near the middle of
    the input. Coordinates are continuous: pixel i covers i to i + 1.
    """
    bend_x, bend_y = rng.uniform(-params.perspective, params.perspective, 2)
    angle = rng.uniform(-params.degrees, params.degrees)
    zoom = float(rng.uniform(1 - params.scale, 1 + params.scale))
    shear_x, shear_y = np.tan(np.radians(rng.uniform(-params.shear, params.shear, 2)))
    to_x, to_y = rng.uniform(0.5 - params.translate, 0.5 + params.translate, 2) * (width, height)
    bend = np.array([[1, 0, 0], [0, 1, 0], [bend_x, bend_y, 1]])
    turn = np.vstack((cv2.getRotationMatrix2D((0, 0), angle, zoom), (0, 0, 1)))
    slant = np.array([[1, shear_x, 0], [shear_y, 1, 0], [0, 0, 1]])
    centre = _shift(-canvas[1] / 2, -canvas[0] / 2)
    return _shift(to_x, to_y) @ slant @ turn @ bend @ centre, zoom


def _warp(rng: np.random.Generator, scene: _Scene, height: int, width: int, params: AugmentParams) -> _Scene:
    """Random rotation, zoom, shear, shift and perspective, cut to height x width."""
    rows, columns = scene.image.shape[:2]
    homography, zoom = _random_homography(rng, (rows, columns), height, width, params)
    # OpenCV puts coordinate i on the middle of pixel i, boxes put it on the pixel's edge.
    pixels = _shift(-0.5, -0.5) @ homography @ _shift(0.5, 0.5)
    border = (GREY, GREY, GREY)
    if params.perspective:
        image = cv2.warpPerspective(
            scene.image, pixels, (width, height), flags=cv2.INTER_LINEAR, borderValue=border
        )
    else:
        image = cv2.warpAffine(
            scene.image, pixels[:2], (width, height), flags=cv2.INTER_LINEAR, borderValue=border
        )
    boxes_xyxy = _clip(_warp_boxes(scene.boxes_xyxy, homography), height, width)
    keep = _still_visible(scene.boxes_xyxy * np.float32(zoom), boxes_xyxy)
    return _Scene(np.asarray(image, np.uint8), scene.classes[keep], boxes_xyxy[keep])


def _warp_boxes(boxes_xyxy: Floats, homography: Matrix) -> Floats:
    """The upright boxes around the mapped corners of (n, 4) boxes.

    What a strong perspective puts behind the viewer goes far out in its own direction instead of
    coming back mirrored.
    """
    corners = boxes_xyxy[:, [0, 1, 2, 1, 2, 3, 0, 3]].reshape(-1, 2).astype(np.float64)
    mapped = np.column_stack((corners, np.ones(len(corners)))) @ homography.T
    points = (mapped[:, :2] / mapped[:, 2:].clip(1e-3)).reshape(-1, 4, 2)
    boxes: Floats = np.concatenate((points.min(1), points.max(1)), axis=1).astype(np.float32)
    return boxes


def _still_visible(before_xyxy: Floats, after_xyxy: Floats) -> NDArray[np.bool_]:
    """Which boxes are worth keeping after the warp, (n,): large enough, not mostly cut off, no slivers."""
    before = before_xyxy[:, 2:] - before_xyxy[:, :2]
    after = after_xyxy[:, 2:] - after_xyxy[:, :2]
    large = (after > MIN_SIDE).all(1)
    whole = after.prod(1) > MIN_AREA_SHARE * before.prod(1)
    compact = after.max(1) < MAX_ASPECT * after.min(1)
    return np.asarray(large & whole & compact)


def _mixup(rng: np.random.Generator, first: _Scene, second: _Scene) -> _Scene:
    """Blend two scenes of one size and keep the boxes of both.

    Zhang et al., "mixup: Beyond Empirical Risk Minimization", 2018; the ratio is Beta(32, 32), near 1/2.
    """
    ratio = rng.beta(32.0, 32.0)
    image = cv2.addWeighted(first.image, ratio, second.image, 1 - ratio, 0)
    classes = np.concatenate((first.classes, second.classes))
    return _Scene(np.asarray(image, np.uint8), classes, np.concatenate((first.boxes_xyxy, second.boxes_xyxy)))


def _cutmix(rng: np.random.Generator, first: _Scene, second: _Scene) -> _Scene:
    """Put a rectangle of the second scene into the first, where it hides nothing and shows something."""
    height, width = first.image.shape[:2]
    rectangle = free_rectangle(rng, first.boxes_xyxy, height, width)
    if rectangle is None:
        return first
    shown, boxes_xyxy = boxes_in(second.boxes_xyxy, rectangle)
    if not shown.any():
        return first
    left, top, right, bottom = rectangle
    image = first.image.copy()
    image[top:bottom, left:right] = second.image[top:bottom, left:right]
    classes = np.concatenate((first.classes, second.classes[shown]))
    return _Scene(image, classes, np.concatenate((first.boxes_xyxy, boxes_xyxy)))


def _flip(rng: np.random.Generator, scene: _Scene, params: AugmentParams) -> _Scene:
    image, classes, boxes_xyxy = scene
    height, width = image.shape[:2]
    upside_down, mirrored = rng.random(2) < (params.flipud, params.fliplr)
    if upside_down:
        image = image[::-1]
        boxes_xyxy = _row(0, height, 0, height) + _row(1, -1, 1, -1) * boxes_xyxy[:, [0, 3, 2, 1]]
    if mirrored:
        image = image[:, ::-1]
        boxes_xyxy = _row(width, 0, width, 0) + _row(-1, 1, -1, 1) * boxes_xyxy[:, [2, 1, 0, 3]]
    return _Scene(image, classes, boxes_xyxy)


def _row(*values: float) -> Floats:
    return np.array(values, np.float32)
