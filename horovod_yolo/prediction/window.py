"""Results on the screen, for ``--view-img``."""

from __future__ import annotations

import os
import sys

import cv2
import numpy as np
from numpy.typing import NDArray

from horovod_yolo.core.errors import UserError

LEAVE = (ord("q"), 27)  # 27: Esc


def require_window() -> None:
    """Raise `UserError` where this process cannot show images."""
    without = "leave --view-img out: the pictures are in the folder of the results"
    if not _has_windows(cv2.getBuildInformation()):
        raise UserError(
            "--view-img: opencv-python-headless cannot open windows",
            fix=f"pip uninstall opencv-python-headless && pip install opencv-python, or {without}",
        )
    if sys.platform == "linux" and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        raise UserError("--view-img: there is no display here (DISPLAY is not set)", fix=without)


def show(title: str, bgr: NDArray[np.uint8], live: bool) -> bool:
    """Show an image; a picture until a key is pressed. Whether the user wants no more (q or Esc)."""
    cv2.imshow(title, bgr)
    return cv2.waitKey(1 if live else 0) & 0xFF in LEAVE


def _has_windows(build: str) -> bool:
    """What OpenCV's build says."""
    said = [line.split(":", 1)[1].strip() for line in build.splitlines() if line.strip().startswith("GUI:")]
    return said not in ([], ["NONE"])
