"""``--cache``: one copy of the training images a host, as far as there is room."""

from __future__ import annotations

import errno
import logging
import os
import socket
from collections.abc import Callable

from horovod_yolo.assembly.hand_on import host_id
from horovod_yolo.config.schema import TrainConfig
from horovod_yolo.core.types import Image
from horovod_yolo.data.annotations import Annotations
from horovod_yolo.data.cache import ImageCache, ImageReader, disk_file, image_folder
from horovod_yolo.distributed.communicator import Communicator
from horovod_yolo.process.memory import free_memory

log = logging.getLogger(__name__)
OF_MEMORY, OF_DISK = 0.8, 0.9  # of what is free; the rest is for what else the job does


def training_images(
    config: TrainConfig, annotations: Annotations, comm: Communicator, largest: tuple[int, int]
) -> Callable[[int], Image]:
    """What gives the training images for inputs of ``largest`` (height, width). *Collective.*"""
    reader = ImageReader(annotations, largest)
    if config.cache == "ram":
        return _in_memory(reader, comm)
    return _on_disk(reader, config.cache_dir, comm) if config.cache == "disk" else reader


def _on_disk(reader: ImageReader, cache_dir: str, comm: Communicator) -> Callable[[int], Image]:
    folder = image_folder(cache_dir)
    try:
        path = disk_file(reader, folder)
        disk, there = os.statvfs(path), path.stat().st_blocks * 512
        room = there + int(OF_DISK * disk.f_bavail * disk.f_frsize)
        if room < reader.ends()[0]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        cache = ImageCache(reader, "disk", str(path), room)
    except OSError as error:
        log.warning(
            "images cannot be cached in %s (%s): they are read every time", folder, error.strerror or error
        )
        return reader
    if comm.local_rank == 0:
        _say(reader, room, f"--cache disk in {folder}")
    return cache


def _in_memory(reader: ImageReader, comm: Communicator) -> ImageCache:
    """The cache that the first rank of this host has made, or one of this rank's own. *Collective.*"""
    here = host_id()
    first = comm.allgather_object(here).index(here)
    mine, room = None, int(OF_MEMORY * free_memory())
    if first == comm.rank:
        _say(reader, room, "--cache ram")
        mine = ImageCache.in_memory(reader, room)
    address, room = comm.allgather_object((mine.address if mine else "", room))[first]
    if mine is not None:
        return mine
    try:
        return ImageCache(reader, "ram", address, room)
    except OSError:  # a process of another container, for one
        return ImageCache.in_memory(reader, room)


def _say(reader: ImageReader, room: int, what: str) -> None:
    """What is needed, and what is there, before anything is filled."""
    ends, host = reader.ends(), socket.gethostname()
    needed, free = (f"{size / 1e9:.2f} GB" for size in (int(ends[-1]), room))
    log.info("%s: %d images need %s on %s, once for all of its ranks", what, len(ends), needed, host)
    left_out = int((ends > room).sum())
    if left_out:
        log.warning("%s: %s can be used on %s, so %d images are read every time", what, free, host, left_out)
