"""OpenCV's videos, cameras and streams, quietly opened."""

from __future__ import annotations

import logging
import math
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from horovod_yolo.core.errors import UserError
from horovod_yolo.core.types import Image
from horovod_yolo.prediction.predict import Frame
from horovod_yolo.prediction.result import Origin
from horovod_yolo.prediction.sources import Live, Video

log = logging.getLogger(__name__)
SURELY_SEEN = 0.95  # of the images that a video says it has
OPEN_TIMEOUT_MS = 10_000
READ_TIMEOUT_MS = 4_000
DEFAULT_FPS = 30.0  # where a video does not say
MOST_FPS = 1000.0
_SILENT = -8  # FFmpeg's AV_LOG_QUIET
_FFMPEG_LEVEL = "OPENCV_FFMPEG_LOGLEVEL"  # read once, when the process opens its first video


def open_capture(address: str | int) -> cv2.VideoCapture:
    """Open a camera, a stream or a video; whether that went well, ``isOpened`` tells."""
    with quiet:
        if isinstance(address, int):
            return cv2.VideoCapture(address, cv2.CAP_V4L2 if sys.platform == "linux" else cv2.CAP_ANY)
        limits = [
            *(cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, OPEN_TIMEOUT_MS),
            *(cv2.CAP_PROP_READ_TIMEOUT_MSEC, READ_TIMEOUT_MS),
        ]
        return cv2.VideoCapture(address, cv2.CAP_FFMPEG, limits)


def frames_per_second(capture: cv2.VideoCapture) -> float:
    """As the video says, or a usual number."""
    said = capture.get(cv2.CAP_PROP_FPS)
    return said if math.isfinite(said) and 0 < said <= MOST_FPS else DEFAULT_FPS


def retrieve(capture: cv2.VideoCapture) -> Image | None:
    """The image that was grabbed, (H, W, 3) RGB; None where it cannot be decoded."""
    decoded, bgr = capture.retrieve()
    return np.asarray(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB), np.uint8) if decoded else None


def video_frames(video: Video, source: int, every: int = 1) -> Iterator[Frame]:
    """The images of a video, one by one; of each ``every`` the first.

    Raises:
        UserError: it is missing or no video that OpenCV can read.
    """
    remote = "://" in video.address
    if not remote and not Path(video.address).is_file():
        raise UserError("no such file", where=video.name, fix="leave it out or replace it")
    capture = open_capture(video.address if remote else str(Path(video.address).absolute()))
    try:
        number, fps = 0, frames_per_second(capture) / every
        while capture.isOpened() and capture.grab():
            number += 1
            if (number - 1) % every == 0 and (image := retrieve(capture)) is not None:
                yield Frame(image, Origin(video.name, source, number, fps))
        _require_whole(video, number, capture)
    finally:
        capture.release()


def _require_whole(video: Video, seen: int, capture: cv2.VideoCapture) -> None:
    """Raise where nothing was seen of a video; warn where it says that it has many more images."""
    if seen == 0:
        raise UserError(
            "OpenCV can read no image of this video", where=video.name, fix="leave it out or replace it"
        )
    said = capture.get(cv2.CAP_PROP_FRAME_COUNT)  # in some formats an estimate
    if math.isfinite(said) and seen < SURELY_SEEN * said:
        log.warning("%s: cut off or damaged: %d of %d images could be read", video.name, seen, said)


def require_open(capture: cv2.VideoCapture, live: Live) -> None:
    """Raise `UserError` where a camera or a stream was not opened."""
    if capture.isOpened():
        return
    if isinstance(live.address, int):
        raise UserError(
            f"no such camera: {live.address}",
            fix="see ls /dev/video*; has another program it?",
        )
    raise UserError("this stream cannot be opened", where=live.name, fix="check the address")


class _Quiet:
    """Inside, OpenCV and FFmpeg write nothing: what they find out is said in a line. For several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._level = 0
        self._variable: str | None = None

    def __enter__(self) -> None:
        with self._lock:
            if self._inside == 0:
                self._level, self._variable = cv2.setLogLevel(0), os.environ.get(_FFMPEG_LEVEL)
                os.environ.setdefault(_FFMPEG_LEVEL, str(_SILENT))
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                cv2.setLogLevel(self._level)
                if self._variable is None:
                    del os.environ[_FFMPEG_LEVEL]


quiet = _Quiet()
