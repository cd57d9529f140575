"""Checkpoints of earlier releases, brought into the form of this one."""

from __future__ import annotations

from typing import Any

FORMAT_VERSION = 2
_TERMS_OF_1 = ("box", "obj", "cls")  # the loss terms of every model that format 1 knew, in its order


def migrated(state: dict[str, Any]) -> dict[str, Any]:
    """A checkpoint of any readable format in the present one; it may share tensors with what was given."""
    return _from_1(state) if state["format_version"] == 1 else state


def _from_1(state: dict[str, Any]) -> dict[str, Any]:
    """Format 1 held loss terms by position: in ``last_losses``, and in ``epoch_sums`` before the images."""
    state = {**state, "format_version": 2}
    if "progress" not in state:  # weights only
        return state
    progress = dict(state["progress"])
    *sums, images = progress.pop("epoch_sums")
    state["progress"] = {
        **progress,
        "epoch_losses": dict(zip(_TERMS_OF_1, sums, strict=True)),
        "epoch_images": int(images),
        "last_losses": dict(zip(_TERMS_OF_1, progress["last_losses"], strict=True)),
    }
    return state
