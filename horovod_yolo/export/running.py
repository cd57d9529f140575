"""Exported files as functions, whatever runs them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from horovod_yolo.core.errors import UserError
from horovod_yolo.core.text import one_line
from horovod_yolo.core.types import Floats

Sides = tuple[int, int, int]  # images, height and width of an input, pixels; 0: any


class Runner(Protocol):
    """An exported network that is ready to compute."""

    texts: Mapping[str, str]  # the file's metadata
    sides: Sides

    def __call__(self, images: Floats) -> tuple[Floats, ...]:
        """(B, 3, H, W) RGB in 0..1 -> (boxes_xyxy (B, M, 4), scores (B, M, C)) or (detections (B, T, 6),)."""


@dataclass(frozen=True)
class ExportedFile:
    """An exported file as it was read: what rank 0 sends to the others.

    Attributes:
        path: where it was, for messages.
        kind: ``onnx``, ``torchscript`` or ``openvino``.
        parts: its bytes; OpenVINO has two files.
    """

    path: str
    kind: str
    parts: tuple[bytes, ...]


def refused(path: str, error: BaseException) -> UserError:
    """What to say where the program that runs a file does not take it."""
    reason = one_line(str(error)) or type(error).__name__
    return UserError(f"it cannot be run ({reason:.160})", where=path, fix="export it again")
