"""An index is scanned once; mistakes reach all ranks."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import pytest

from horovod_yolo.assembly import datasets
from horovod_yolo.assembly.datasets import (
    MOST_PROBLEMS_SHOWN,
    require_images,
    shared_index,
)
from horovod_yolo.core.errors import UserError
from horovod_yolo.core.types import LostImage
from horovod_yolo.data.index import Fingerprint
from horovod_yolo.data.spec import load_data_yaml
from horovod_yolo.distributed.local import LocalCommunicator

LOCAL = LocalCommunicator()


class Gathers(LocalCommunicator):
    """Stands for one of several ranks: what the others would say in ``allgather_object`` is given."""

    def __init__(self, *answers: Any) -> None:
        self._answers = answers
        self.size = len(answers)

    def allgather_object(self, value: Any) -> list[Any]:
        return list(self._answers)


def copy_of(digits: Path, folder: Path) -> Path:
    """A copy of the data set that a test may spoil."""
    for source in digits.parent.rglob("*"):
        if source.is_file():
            target = folder / source.relative_to(digits.parent)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(source.read_bytes())
    return folder / digits.name


def an_image(data: Path) -> Path:
    return next(path for path in sorted(data.parent.rglob("*train*/*")) if path.suffix in (".jpg", ".png"))


def spoil(path: Path) -> None:
    """Other content under the same size and times: only who opens the file can tell."""
    before = path.stat()
    path.write_bytes(bytes(before.st_size))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_the_second_time_no_image_is_opened(
    digits: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data, cache = copy_of(digits, tmp_path / "data"), tmp_path / "cache"
    first = shared_index(load_data_yaml(data), "train", LOCAL, cache)
    spoil(an_image(data))
    with caplog.at_level(logging.WARNING):
        second = shared_index(load_data_yaml(data), "train", LOCAL, cache)
    assert second.digest == first.digest and len(second) == len(first)
    assert "left out" not in caplog.text
    without_cache = shared_index(load_data_yaml(data), "train", LOCAL, tmp_path / "other")
    assert len(without_cache) == len(first) - 1  # the spoilt image was there to be found
    assert "left out" in caplog.text


def test_a_changed_file_is_scanned_again(digits: Path, tmp_path: Path) -> None:
    data, cache = copy_of(digits, tmp_path / "data"), tmp_path / "cache"
    first = shared_index(load_data_yaml(data), "train", LOCAL, cache)
    an_image(data).write_bytes(b"no image any more")
    assert len(shared_index(load_data_yaml(data), "train", LOCAL, cache)) == len(first) - 1


def test_problems_are_reported_from_the_cache_too(
    digits: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data, cache = copy_of(digits, tmp_path / "data"), tmp_path / "cache"
    for label in (data.parent / "labels" / "train").glob("*.txt"):
        label.write_text("77 0.5 0.5 0.1 0.1\n0 0.5 0.5 0.2 0.2\n")
    texts = []
    for _ in range(2):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            shared_index(load_data_yaml(data), "train", LOCAL, cache)
        texts.append([record.getMessage() for record in caplog.records])
    assert texts[0] == texts[1]
    assert len(texts[0]) == MOST_PROBLEMS_SHOWN + 1
    assert texts[0][-1].endswith(f"{28 - MOST_PROBLEMS_SHOWN} more like these")


def test_a_set_without_a_usable_image_names_the_first_problem(digits: Path, tmp_path: Path) -> None:
    data = copy_of(digits, tmp_path / "data")
    for path in sorted((data.parent / "images" / "train").iterdir()):
        path.write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"none of 28 images is usable.*The first: "):
        shared_index(load_data_yaml(data), "train", LOCAL, tmp_path / "cache")


def look(host: str, content: str = "c", exact: str = "e", problem: str = "") -> datasets._Look:
    return datasets._Look(host, Fingerprint(content, exact), problem)


def key_of_this_host(digits: Path, *looks: datasets._Look | None) -> str:
    """What a rank takes as its key that did not look itself."""
    comm = Gathers(*looks)
    comm.local_rank = 1
    entries, key = datasets._look(load_data_yaml(digits), "train", comm, "the images")
    assert entries is None
    return key


def test_one_rank_of_each_host_looks_for_the_others(digits: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: "host2")
    assert key_of_this_host(digits, look("host1", exact="x"), None, look("host2", exact="y"), None) == "y"
    shared_name = (look("host2", exact="x"), None, look("host2", exact="y"), None)
    assert key_of_this_host(digits, *shared_name) == "", "nobody knows whose copy is whose: no shortcut"
    with pytest.raises(UserError, match=r"the images differ between hosts, host1 and host3.*same files"):
        key_of_this_host(digits, look("host1"), look("host2"), look("host3", content="d"))


def test_a_mistake_on_one_host_names_it(digits: Path) -> None:
    with pytest.raises(UserError, match=r"no images \(on host2\)$"):
        key_of_this_host(digits, look("host1"), look("host2", problem="no images"))
    with pytest.raises(UserError, match=r"no images$"):
        key_of_this_host(digits, look("host1", problem="no images"), look("host2", problem="no images"))


@pytest.mark.parametrize(
    ("lost", "of", "ends"), [(1, 5, False), (2, 5, True), (10, 100, False), (11, 100, True)]
)
def test_a_tenth_of_the_images_may_be_lost(lost: int, of: int, ends: bool, tmp_path: Path) -> None:
    comm = Gathers([LostImage("a.jpg", "gone")], [LostImage("b.jpg", "cut"), LostImage("a.jpg", "gone")])
    if not ends:
        require_images(comm, lost, of, [], tmp_path)
        return
    with pytest.raises(
        UserError, match=rf"{lost} of {of} images .* a.jpg \(gone\), b.jpg \(cut\)\. .*--resume"
    ):
        require_images(comm, lost, of, [], tmp_path)
