"""``--cache`` over ranks: one copy a host, which says what it needs and takes no more than there is."""

from __future__ import annotations

import logging
import pickle
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from horovod_yolo.assembly import image_cache
from horovod_yolo.assembly.image_cache import training_images
from horovod_yolo.config.schema import TrainConfig
from horovod_yolo.core.types import Image
from horovod_yolo.data.annotations import Annotations, Record
from horovod_yolo.data.read import read_image
from horovod_yolo.distributed.communicator import Communicator
from tests.helpers.world import run_world

COUNT, SIDE = 6, 40


@pytest.fixture
def images(tmp_path: Path) -> Annotations:
    rng = np.random.default_rng(0)
    nothing = (
        np.empty(0, np.int64),
        np.empty((0, 4), np.float32),
        np.empty(0, bool),
        np.empty(0, np.float32),
    )
    for i in range(COUNT):
        PIL.Image.fromarray(rng.integers(0, 256, (SIDE, SIDE, 3), np.uint8)).save(tmp_path / f"{i}.png")
    records = [Record(f"{i}.png", SIDE, SIDE, *nothing, i) for i in range(COUNT)]
    return Annotations.of(tmp_path, ("a",), records)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The images that were decoded for a cache, in order."""
    found: list[str] = []

    def reading(path: Path, *more: object) -> Image:
        found.append(path.name)
        return read_image(path, *more)  # type: ignore[arg-type]

    monkeypatch.setattr("horovod_yolo.data.cache.read_image", reading)
    return found


def config(tmp_path: Path, cache: str) -> TrainConfig:
    return TrainConfig(data="", cfg="yolov5n", cache=cache, cache_dir=str(tmp_path / "cache"))  # type: ignore[arg-type]


@pytest.mark.parametrize("cache", ["ram", "disk"])
def test_ranks_and_their_workers_share_one_copy(
    images: Annotations, tmp_path: Path, reads: list[str], cache: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Each image is decoded once on a host, whoever needs it first."""

    def job(comm: Communicator) -> list[Image]:
        load = training_images(config(tmp_path, cache), images, comm, (20, 20))
        own = [load(i) for i in range(comm.rank, COUNT, comm.size)]
        assert len(own) == 2
        comm.allgather_object(None)
        of_a_worker = pickle.loads(pickle.dumps(load))
        taken = [np.array(of_a_worker(i)) for i in range(COUNT)]
        comm.allgather_object(None)  # the first rank's file is open until all have done with it
        return taken

    with caplog.at_level(logging.INFO):
        found = run_world(3, job)
    assert sorted(reads) == [f"{i}.png" for i in range(COUNT)]
    for taken in found:
        for i in range(COUNT):
            np.testing.assert_array_equal(taken[i], read_image(images.image_path(i), 2))
    assert caplog.text.count("6 images need 0.00 GB") == 1


def test_what_does_not_fit_is_said_and_read_every_time(
    images: Annotations,
    tmp_path: Path,
    reads: list[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    of_four = 4 * 20 * 20 * 3
    monkeypatch.setattr(image_cache, "free_memory", lambda: int(of_four / image_cache.OF_MEMORY) + 1)

    def job(comm: Communicator) -> None:
        load = training_images(config(tmp_path, "ram"), images, comm, (20, 20))
        for i in [*range(COUNT)] * 2:
            np.testing.assert_array_equal(load(i), read_image(images.image_path(i), 2))
        comm.allgather_object(None)

    run_world(2, job)
    assert sorted(reads) == sorted([f"{i}.png" for i in range(4)] + ["4.png", "5.png"] * 4)
    assert caplog.text.count("so 2 images are read every time") == 1


def test_a_folder_that_cannot_be_written_to_is_said(
    images: Annotations, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")

    def job(comm: Communicator) -> Image:
        return training_images(config(tmp_path, "disk"), images, comm, (40, 40))(0)

    (image,) = run_world(1, job)
    np.testing.assert_array_equal(image, read_image(images.image_path(0)))
    assert f"images cannot be cached in {tmp_path / 'cache' / 'images'}" in caplog.text
