"""``--albumentations FILE``: a pipeline of the user's own, as albumentations writes it (``A.save``).

The file is data: it names transforms of the library and their numbers, and no code of anybody's runs. What is
random in a pipeline follows from a seed that each sample draws for itself.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from horovod_yolo.core.errors import UserError
from horovod_yolo.core.text import plain, unwarned
from horovod_yolo.core.types import Floats, Image, Ints
from horovod_yolo.io.plain_yaml import read_mapping

MAX_FILE_BYTES = 1 << 20
CLASS = "__class_fullname__"
_FIX = "write it with A.save(A.Compose([...]), 'pipeline.yaml', data_format='yaml')"
_TRIED_BOXES = ((8.0, 8.0, 40.0, 40.0), (20.0, 30.0, 60.0, 62.0))
_TRIES = 4  # of each transform
_FAILURES = (
    ArithmeticError,
    AttributeError,
    LookupError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
    cv2.error,
)


@dataclass(frozen=True)
class OwnPipeline:
    """A pipeline; picklable, built anew in each process that uses it.

    Attributes:
        content: what the file says, as JSON.
    """

    content: str

    @property
    def digest(self) -> str:
        """Names what the pipeline does."""
        return hashlib.sha256(self.content.encode()).hexdigest()

    def __call__(self, image: Image, boxes_xyxy: Floats, seed: int) -> tuple[Image, Floats, Ints]:
        """Change an image and its boxes.

        Where a pipeline gives another size, the result is scaled back to the image's own.

        Args:
            image: (H, W, 3) uint8 RGB.
            boxes_xyxy: (n, 4) pixels, inside the image.
            seed: of all that is random in it.

        Returns:
            The image; the boxes that are left, (m, 4) clipped to it; which of the n they are, (m,).
        """
        return _applied(_built(self.content), image, boxes_xyxy, seed)


def load_pipeline(path: Path) -> OwnPipeline:
    """Read a pipeline, build it, and try each of its transforms on a small image with boxes.

    Raises:
        UserError: the file is no such pipeline, it names what the library has not or what is no data
            (Lambda), or a transform does not give back an image of 8 bits with boxes.
    """
    content = read_mapping(path, most_bytes=MAX_FILE_BYTES, what="a pipeline of albumentations")
    if not isinstance(content.get("transform"), dict):
        raise UserError("has no 'transform'", where=path, fix=_FIX)
    own = OwnPipeline(json.dumps({"transform": content["transform"]}, sort_keys=True))
    known = _library().core.serialization.SERIALIZABLE_REGISTRY
    for name in _names(content["transform"], path):
        if name not in known:
            raise UserError(
                f"albumentations has no transform {name!r:.60}", where=path, fix=_near(name, known)
            )
    try:
        pipeline = _built(own.content)
    except _FAILURES as error:
        raise UserError(f"cannot be built: {_first(error)}", where=path, fix="mend its numbers") from error
    for leaf in _leaves(pipeline.transforms):
        _try(leaf, path)
    return own


def _names(node: Any, path: Path) -> Iterator[str]:
    """Names of all transforms, with the modules before them left out."""
    if not isinstance(node, Mapping) or not isinstance(node.get(CLASS), str):
        raise UserError(f"a transform has no {CLASS!r}", where=path, fix=_FIX)
    if node.get("__type__") == "Lambda" or node[CLASS].rpartition(".")[2] == "Lambda":
        fix = "take it out: a function is no data that a file can hold"
        raise UserError("it has a Lambda", where=path, fix=fix)
    yield node[CLASS].rpartition(".")[2] if node[CLASS].startswith("albumentations.") else node[CLASS]
    for below in node.get("transforms") or ():
        yield from _names(below, path)


def _near(name: str, known: Mapping[str, Any]) -> str:
    import difflib

    close = difflib.get_close_matches(name, list(known), n=2, cutoff=0.5)
    return f"did you mean {' or '.join(close)}?" if close else "name one of the library's own"


def _library() -> Any:
    """The slow import happens only now."""
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # else the import asks PyPI for a newer version
    import albumentations

    return albumentations


@lru_cache(maxsize=2)
def _built(content: str) -> Any:
    library = _library()
    with unwarned():  # of numbers that a file leaves out
        made = library.from_dict(json.loads(content))
    transforms = made.transforms if isinstance(made, library.Compose) else [made]
    return _composed(transforms, getattr(made, "p", 1.0) if isinstance(made, library.Compose) else 1.0)


def _composed(transforms: Sequence[Any], p: float) -> Any:
    """With boxes as we have them, whatever the file says of them."""
    library = _library()
    boxes = library.BboxParams("pascal_voc", ["places"], min_width=1.0, min_height=1.0, clip=True)
    with unwarned():  # of boxes that no transform moves
        return library.Compose(list(transforms), bbox_params=boxes, p=p)


def _applied(pipeline: Any, image: Image, boxes_xyxy: Floats, seed: int) -> tuple[Image, Floats, Ints]:
    pipeline.set_random_seed(seed)
    height, width = image.shape[:2]
    found = pipeline(image=image, bboxes=boxes_xyxy.astype(np.float64), places=np.arange(len(boxes_xyxy)))
    changed = np.ascontiguousarray(found["image"])
    if changed.dtype != np.uint8 or changed.ndim != 3 or changed.shape[2] != 3:
        raise ValueError(f"it gives {changed.dtype} of {changed.shape}, not an 8-bit colour image")
    boxes = np.asarray(found["bboxes"], np.float64).reshape(-1, 4)
    if changed.shape[:2] != (height, width):
        boxes = boxes * (np.array([width, height] * 2) / np.array([changed.shape[1], changed.shape[0]] * 2))
        changed = np.asarray(cv2.resize(changed, (width, height), interpolation=cv2.INTER_LINEAR), np.uint8)
    clipped = np.clip(boxes, 0, [width, height] * 2).astype(np.float32)
    return changed, clipped, np.asarray(found["places"], np.int64).reshape(-1)


def _leaves(transforms: Sequence[Any]) -> Iterator[Any]:
    for transform in transforms:
        below = getattr(transform, "transforms", None)
        if below is None:
            yield transform
        else:
            yield from _leaves(below)


def _try(leaf: Any, path: Path) -> None:
    """With certainty, not with its own probability."""
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    before = leaf.p
    leaf.p = 1.0
    try:
        for seed in range(_TRIES):
            _applied(_composed([leaf], 1.0), image, np.array(_TRIED_BOXES, np.float32), seed)
    except _FAILURES as error:
        what = f"{type(leaf).__name__} cannot be used: {_first(error)}"
        fix = "take it out: an image of 8 bits with its boxes goes in and must come out"
        raise UserError(what, where=path, fix=fix) from error
    finally:
        leaf.p = before


def _first(error: Exception) -> str:
    return plain(str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__)[:200]
