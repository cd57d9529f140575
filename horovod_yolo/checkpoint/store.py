"""One file that is either whole or not there.

A checkpoint is what ``torch.save`` writes, a zip archive, with the SHA-256 of all its bytes in the
archive's comment: one file, one rename, and ``torch.load(weights_only=True)`` reads it as it is.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import itertools
import os
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import torch

from horovod_yolo.checkpoint import vetting
from horovod_yolo.checkpoint.migration import FORMAT_VERSION, migrated
from horovod_yolo.io import atomic
from horovod_yolo.io.files import opened

_MARK = b"sha256:"
_COMMENT_BYTES = len(_MARK) + 64
_END_OF_ARCHIVE = b"PK\x05\x06"
_END_BYTES = 22  # the zip end record without its comment, whose length is its last two bytes


class CheckpointError(ValueError):
    """A checkpoint that cannot be used: which one and why."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = path
        self.reason = reason


class UnreadableError(CheckpointError):
    """It is not there, or cannot be read just now; so nothing is known of its content."""


def serialise(state: dict[str, Any]) -> bytes:
    """The bytes of a checkpoint file, checksum included."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    raw = buffer.getvalue()
    if raw[-_END_BYTES : -_END_BYTES + 4] != _END_OF_ARCHIVE:
        raise RuntimeError("torch.save no longer ends its archive as expected; update checkpoint/store.py")
    body = raw[:-2] + _COMMENT_BYTES.to_bytes(2, "little")
    return body + _MARK + hashlib.sha256(body).hexdigest().encode()


def write(path: Path, data: bytes) -> None:
    """Replace ``path`` by ``data`` so that a crash at any byte leaves the old file or the new one.

    Raises:
        OSError: the disk is full, read-only or gone; ``path`` is as it was.
    """
    with replacing(path) as file:
        file.write(data)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """`atomic.replacing` for the one writer of ``path``, so that a power cut afterwards takes nothing back.

    A killed process leaves a trace: the next one that writes ``path`` clears it away.
    """
    _clear_unfinished(path)
    with atomic.replacing(path) as file:
        yield file
    sync_folder(path.parent)


def _clear_unfinished(path: Path) -> None:
    head = f".{path.name}."
    for other in path.parent.iterdir():
        if other.name.startswith(head) and other.suffix == ".tmp":
            other.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Make a rename in ``folder`` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_rotating(path: Path, data: bytes, keep: int) -> None:
    """`write`, keeping the ``keep - 1`` files before it: ``last.1.pt`` is the newest of them.

    The new file is on the disk before any older one moves, so that a full disk costs no generation.

    Raises:
        OSError: as `write`.
    """
    generations = [path, *(older(path, k) for k in range(1, keep))]
    with replacing(path) as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
        for source, target in reversed(_moves(generations)):
            _link(source, target)


def _moves(generations: list[Path]) -> list[tuple[Path, Path]]:
    """Which generation takes the place of which, newest first.

    Two names of one file are what an interrupted rotation left. The moves end there: to go on would push
    out an older file, and many interruptions all of them.
    """
    moves = []
    for source, target in itertools.pairwise(generations):
        if not source.exists() or (target.exists() and source.samefile(target)):
            break
        moves.append((source, target))
    return moves


def older(path: Path, generation: int) -> Path:
    """``last.pt`` -> ``last.1.pt``."""
    return path.with_name(f"{path.stem}.{generation}{path.suffix}")


def _link(source: Path, target: Path) -> None:
    """Give a file a second name. The first stays, so at no moment is the newest checkpoint missing."""
    _clear_unfinished(target)
    temporary = atomic.unfinished_name(target)
    try:
        try:
            os.link(source, temporary)
        except OSError:  # a file system without hard links
            shutil.copyfile(source, temporary)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def is_ours(path: Path) -> bool:
    """Whether a file ends as our checkpoints do; False also where it cannot be read."""
    try:
        with opened(path) as (file, size):
            file.seek(max(0, size - _COMMENT_BYTES))
            return file.read(_COMMENT_BYTES).startswith(_MARK)
    except OSError:
        return False


def verified(path: Path) -> bytes:
    """The bytes of a checkpoint.

    Raises:
        CheckpointError: missing, damaged or not ours.
    """
    try:
        with opened(path) as (file, size):
            file.seek(max(0, size - _COMMENT_BYTES))
            comment = file.read(_COMMENT_BYTES)
            if not comment.startswith(_MARK):  # looked at first: a file may be larger than the memory
                raise CheckpointError(path, "not a checkpoint of horovod_yolo, or cut short")
            file.seek(0)
            data = file.read(size)
    except OSError as error:
        raise UnreadableError(path, error.strerror or str(error)) from None
    except MemoryError:
        raise UnreadableError(path, "does not fit into memory") from None
    if hashlib.sha256(data[:-_COMMENT_BYTES]).hexdigest().encode() != comment[len(_MARK) :]:
        raise CheckpointError(path, "damaged: its checksum does not fit its content")
    return data


def read(path: Path) -> dict[str, Any]:
    """Read a checkpoint and verify it.

    Raises:
        CheckpointError: missing, damaged, unsafe or not ours.
    """
    data = verified(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's and pickle's, about what a stranger's file holds
            vetting.require_harmless(data)
            state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        vetting.require_real_tensors(state, len(data))
    except vetting.DAMAGE as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(path, f"does not load ({reason:.200})") from None
    version = state.get("format_version") if isinstance(state, dict) else None
    if not isinstance(state, dict) or type(version) is not int or not 1 <= version <= FORMAT_VERSION:
        raise CheckpointError(path, f"not a checkpoint of format version {FORMAT_VERSION} or before")
    try:
        return migrated(state)
    except vetting.DAMAGE as error:
        raise CheckpointError(path, f"does not hold what its format needs ({error!r:.200})") from None
