"""The images of pictures and videos, one after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import TypeAlias

from horovod_yolo.core.errors import UserError
from horovod_yolo.prediction.capture import video_frames
from horovod_yolo.prediction.predict import Frame
from horovod_yolo.prediction.result import Origin
from horovod_yolo.prediction.sources import Picture, Video, pixels

Placed: TypeAlias = "tuple[int, Picture | Video]"  # with its place among all sources


def file_frames(
    sources: Iterable[Placed],
    *,
    every: int = 1,
    broken: Callable[[UserError], None] | None = None,
    stopped: Callable[[], bool] = lambda: False,
) -> Iterator[Frame]:
    """Images as they are asked for; of a video nothing but the image in hand is in memory.

    Args:
        sources: pictures and videos.
        every: of so many images of a video the first counts.
        broken: is told what cannot be read, which is then left out; None: raise it.
        stopped: asked before each image: whether to end now.
    """
    for place, source in sources:
        if stopped():
            return
        try:
            for frame in _frames_of(source, place, every):
                yield frame
                if frame.origin.number and stopped():
                    return
        except UserError as error:
            if broken is None:
                raise
            broken(error)


def _frames_of(source: Picture | Video, place: int, every: int) -> Iterator[Frame]:
    if isinstance(source, Video):
        yield from video_frames(source, place, every)
    else:
        origin = Origin(source.name, place, reread=partial(pixels, source.given))
        yield Frame(source.pixels(), origin)
