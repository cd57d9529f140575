"""From one image of the data set to one training or validation sample.

Every random number of a sample comes from one generator keyed by (seed, epoch, index), so a sample
is the same whichever worker or rank makes it, and after a resume. What happens, in order: mosaic (or
letterbox), random perspective, mixup, CutMix, the albumentations set, HSV, flips. Where nothing comes between
drawing and HSV, each picture changes its colours while it is drawn (`tiles`). The set of
augmentations and their defaults are those of YOLOv5's ``hyp.scratch-low``; families of models may want
them otherwise (`AugmentParams`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import cv2
import numpy as np

from horovod_yolo.core.types import Floats, Image, Ints, Letterbox, LostImage, SampleKey
from horovod_yolo.data.annotations import Annotations, Record
from horovod_yolo.data.colours import ColourChange, Rare, albumentations_set, draw_colours, draw_rare
from horovod_yolo.data.cutmix import boxes_in, free_rectangle
from horovod_yolo.data.geometry import Matrix, clip_boxes, row_of, still_visible, warp_boxes
from horovod_yolo.data.layout import mosaic, single
from horovod_yolo.data.letterbox import GREY, boxes_to_input, letterbox
from horovod_yolo.data.own_pipeline import OwnPipeline
from horovod_yolo.data.read import ImageError
from horovod_yolo.data.sampler import Stream, epoch_order, keyed_generator
from horovod_yolo.data.substitutes import Pictures
from horovod_yolo.data.tiles import draw, is_upright, reaches

Load = Callable[[int], Image]


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
    albumentations: bool = True  # the four, where there is no ``own``
    own: OwnPipeline | None = None
    turns_hue: bool = False  # adds to the hue, instead of multiplying it
    mixes_singles: bool = False  # mixup of any two images, instead of mosaics only

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
    coloured: bool = False  # hue, saturation and value are changed already


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

    def __call__(self, key: SampleKey, left_out: Collection[int] = ()) -> Sample:
        """Make the training sample that the key names, without images that are left out.

        Raises:
            ImageError: neither an image nor any of the `MOST_IN_A_ROW` from it on can be read.
        """
        pictures = Pictures(self.annotations, self.load, partial(self._order, key.epoch), left_out)
        sample = augment_pictures(key, pictures, len(self.annotations), self.params, self.seed)
        if not pictures.lost and key.index not in left_out:
            return sample
        found = pictures.lost.items()
        lost = tuple(LostImage(str(error.path), error.reason, position) for position, error in found)
        return replace(sample, lost=lost, replaced=key.index in pictures.lost or key.index in left_out)

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

    def __call__(self, key: SampleKey, left_out: Collection[int] = ()) -> Sample:
        """Make the validation sample that the key names.

        Raises:
            ImageError: its image cannot be read, or is one of those that are left out.
        """
        if key.index in left_out:
            raise ImageError(self.annotations.image_path(key.index), "lost earlier, so it is left out")
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
    again = (key.draw,) if key.draw else ()  # another sample of the image, in the same epoch
    rng = keyed_generator(seed, Stream.SAMPLE, key.epoch, key.index, *again)
    params = params.unmixed() if key.apart else params
    looks = _draw_looks(rng, params)
    scene = _scene(rng, looks, key, pictures, count, params)
    if looks.rare:
        scene = scene._replace(image=albumentations_set(looks.rare, scene.image))
    if params.own is not None:
        image, boxes_xyxy, left = params.own(scene.image, scene.boxes_xyxy, looks.seed)
        scene = scene._replace(image=image, boxes_xyxy=boxes_xyxy, classes=scene.classes[left])
    if looks.colours and not scene.coloured:
        scene = scene._replace(image=looks.colours(scene.image))
    scene = _flip(rng, scene, params)
    identity = Letterbox(key.height, key.width, 1.0, 1.0, 0.0, 0.0)
    return Sample(scene.image, scene.classes, scene.boxes_xyxy, identity, key.index)


class _Looks(NamedTuple):
    """What happens to pixels wherever they are."""

    rare: Rare | None
    colours: ColourChange | None
    at_once: ColourChange | None  # the colours, where nothing that comes before them follows the drawing
    seed: int = 0  # of the user's own pipeline


def _draw_looks(rng: np.random.Generator, params: AugmentParams) -> _Looks:
    rare = draw_rare(rng) if params.albumentations and params.own is None else None
    seed = 0 if params.own is None else int(rng.integers(2**32))
    colours = draw_colours(rng, (params.hsv_h, params.hsv_s, params.hsv_v), params.turns_hue)
    mixes = params.mixup > 0 or (params.mixes_singles and params.cutmix > 0)
    return _Looks(rare, colours, None if rare or mixes or params.own is not None else colours, seed)


def _scene(
    rng: np.random.Generator,
    looks: _Looks,
    key: SampleKey,
    pictures: Pictures,
    count: int,
    params: AugmentParams,
) -> _Scene:
    is_mosaic = bool(rng.random() < params.mosaic)
    scene = _warped(rng, looks.at_once, key, pictures, count, params, is_mosaic)
    if params.mixes_singles:
        return _mixed(rng, scene, key, pictures, count, params)
    if is_mosaic and rng.random() < params.mixup:
        partner = key._replace(index=int(rng.integers(count)))
        return _mixup(rng, scene, _warped(rng, None, partner, pictures, count, params, True))
    return scene


def _ground_truth(record: Record) -> tuple[Ints, Floats]:
    """Classes and boxes to train on: a crowd's box surrounds no single object."""
    single = ~record.crowd
    return record.classes[single], record.boxes_xyxy[single]


def _warped(
    rng: np.random.Generator,
    colours: ColourChange | None,
    key: SampleKey,
    pictures: Pictures,
    count: int,
    params: AugmentParams,
    is_mosaic: bool,
) -> _Scene:
    """One picture or four, with random rotation, zoom, shear, shift and perspective."""
    layout = mosaic(rng, key, count) if is_mosaic else single(key)
    homography, zoom = _random_homography(rng, layout.canvas, key.height, key.width, params)
    colours = colours if is_upright(homography) else None
    border = GREY if colours is None else colours.of_grey(GREY)
    image = np.full((key.height, key.width, 3), border, np.uint8)
    drawn = []
    for position, place_of in layout.pictures:
        # A partner that is out of view is not even read. The sample's own picture is: it may be lost.
        if position != key.index:
            place = place_of(*pictures.size(position))
            if not reaches(place, homography, key.height, key.width):
                continue
        picture, record = pictures.take(position)
        place = place_of(record.height, record.width)
        drawn.append((record, place.fit, draw(image, picture, place, homography, colours)))
        del picture  # the next one takes its place in the processor's cache
    objects = _objects_in_view(drawn, layout.canvas, zoom, key.height, key.width)
    return _Scene(image, *objects, colours is not None)


def _objects_in_view(
    drawn: Sequence[tuple[Record, Letterbox, Matrix]],
    canvas: tuple[int, int],
    zoom: float,
    height: int,
    width: int,
) -> tuple[Ints, Floats]:
    """Classes and boxes of pictures, each with its place on the canvas and its map from there on."""
    truths = [_ground_truth(record) for record, _, _ in drawn]
    counts = [len(classes) for classes, _ in truths]
    classes, boxes_xyxy = (np.concatenate(each) for each in zip(*truths, strict=True))
    places = np.array(
        [(fit.gain_x, fit.gain_y, fit.pad_left, fit.pad_top) for _, fit, _ in drawn], np.float32
    )
    gains, pads = (
        np.repeat(places, counts, axis=0)[:, [0, 1, 0, 1, 2, 3, 2, 3]].reshape(-1, 2, 4).swapaxes(0, 1)
    )
    before_xyxy = clip_boxes(boxes_xyxy * gains + pads, *canvas)
    maps = np.repeat(np.stack([used for _, _, used in drawn]), counts, axis=0)
    after_xyxy = clip_boxes(warp_boxes(before_xyxy, maps), height, width)
    keep = still_visible(before_xyxy * np.float32(zoom), after_xyxy)
    return classes[keep], after_xyxy[keep]


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
            scene = mix(rng, scene, _warped(rng, None, partner, pictures, count, params, is_mosaic))
    return scene


def _random_homography(
    rng: np.random.Generator, canvas: tuple[int, int], height: int, width: int, params: AugmentParams
) -> tuple[Matrix, float]:
    """Draw the map from a (rows, columns) canvas to the input, and its zoom.

    The canvas is centred, bent, rotated and zoomed, sheared, and then set down near the middle of
    the input. Coordinates are continuous: pixel i covers i to i + 1.
    """
    bend_x, bend_y, angle, zoom, shear_x, shear_y, to_x, to_y = rng.uniform(-1, 1, 8).tolist()
    bend_x, bend_y, angle = params.perspective * bend_x, params.perspective * bend_y, params.degrees * angle
    slant_x, slant_y = (math.tan(math.radians(params.shear * shear)) for shear in (shear_x, shear_y))
    zoom = 1 + params.scale * zoom
    to_x, to_y = (0.5 + params.translate * to_x) * width, (0.5 + params.translate * to_y) * height
    middle_x, middle_y = canvas[1] / 2, canvas[0] / 2
    cos, sin = zoom * math.cos(math.radians(angle)), zoom * math.sin(math.radians(angle))
    turned = [
        [cos - slant_x * sin, sin + slant_x * cos, to_x],
        [slant_y * cos - sin, slant_y * sin + cos, to_y],
        [0, 0, 1],
    ]
    depth = 1 - bend_x * middle_x - bend_y * middle_y
    bent = [[1, 0, -middle_x], [0, 1, -middle_y], [bend_x, bend_y, depth]]
    return np.array(turned, np.float64) @ np.array(bent, np.float64), zoom


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
    image, classes, boxes_xyxy, _ = scene
    height, width = image.shape[:2]
    upside_down, mirrored = (rng.random(2) < (params.flipud, params.fliplr)).tolist()
    if upside_down or mirrored:
        how = -1 if upside_down and mirrored else int(mirrored)
        image = np.asarray(cv2.flip(image, how), np.uint8)
    if upside_down:
        boxes_xyxy = row_of(0, height, 0, height) + row_of(1, -1, 1, -1) * boxes_xyxy[:, [0, 3, 2, 1]]
    if mirrored:
        boxes_xyxy = row_of(width, 0, width, 0) + row_of(-1, 1, -1, 1) * boxes_xyxy[:, [2, 1, 0, 3]]
    return _Scene(image, classes, boxes_xyxy)
