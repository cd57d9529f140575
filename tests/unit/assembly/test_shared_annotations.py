"""Annotations are scanned once by all ranks, kept by every host, and read again only where a file changed."""

from __future__ import annotations

import gc
import logging
import os
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from horovod_yolo.assembly import scanning
from horovod_yolo.assembly.shared_annotations import shared_annotations
from horovod_yolo.core.errors import UserError
from horovod_yolo.data import annotation_cache
from horovod_yolo.data.annotations import Annotations
from horovod_yolo.data.formats import Entry
from horovod_yolo.data.listing import list_entries
from horovod_yolo.data.soundness import MOST_SHOWN
from horovod_yolo.data.spec import DataSpec, load_data_yaml
from horovod_yolo.distributed.communicator import Communicator
from horovod_yolo.distributed.local import LocalCommunicator
from tests.helpers.world import run_world, world_outcomes

LOCAL = LocalCommunicator()


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


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the images that scans have opened."""
    names: list[str] = []

    def scan(entries: Sequence[Entry], classes: Sequence[str]) -> object:
        names.extend(entry.image.name for entry in entries)
        return real(entries, classes)

    real = scanning.scan
    monkeypatch.setattr(scanning, "scan", scan)
    return names


def annotations_of(data: Path, cache: Path | None, comm: Communicator = LOCAL) -> Annotations:
    return shared_annotations(load_data_yaml(data), "train", comm, cache)


def test_the_second_time_no_file_is_opened(digits: Path, tmp_path: Path, opened: list[str]) -> None:
    data, cache = copy_of(digits, tmp_path / "data"), tmp_path / "cache"
    first = annotations_of(data, cache)
    assert len(opened) == 28
    again = annotations_of(data, cache)
    assert len(opened) == 28
    assert (again.file.key, again.digest) == (first.file.key, first.digest)


def test_only_what_changed_is_opened_again(
    digits: Path, tmp_path: Path, opened: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(annotation_cache, "ROWS_AT_ONCE", 8)
    data, cache = copy_of(digits, tmp_path / "data"), tmp_path / "cache"
    first = annotations_of(data, cache)
    opened.clear()
    image = an_image(data)
    label = data.parent / "labels" / "train" / f"{first.records[9].path.split('/')[-1][:-4]}.txt"
    image.write_bytes(b"no image any more")
    label.write_text("0 .5 .5 .25 .25\n")
    changed = annotations_of(data, cache)
    assert sorted(opened) == sorted([image.name, Path(first.records[9].path).name])
    assert len(changed) == len(first) - 1
    assert changed.digest == annotations_of(data, None).digest
    shutil.copy(image.with_name(Path(first.records[3].path).name), image.with_name("aaa.jpg"))
    opened.clear()
    longer = annotations_of(data, cache)
    assert "aaa.jpg" in opened and len(opened) <= 2, "one is new, and one was no image"
    assert longer.digest == annotations_of(data, None).digest


@pytest.mark.parametrize("size", [1, 2])
def test_a_part_of_what_is_known_needs_no_scan(
    digits: Path, tmp_path: Path, opened: list[str], size: int
) -> None:
    """Images that are gone: all others are known, and no file holds just them."""
    data, cache = copy_of(digits, tmp_path / "data"), tmp_path / "cache"
    annotations_of(data, cache)
    opened.clear()
    for image in sorted((data.parent / "images" / "train").iterdir())[:6]:
        image.unlink()
    for _ in range(2):
        found = run_world(size, lambda comm: annotations_of(data, cache, comm).digest)
        assert set(found) == {annotations_of(data, None).digest}
    assert len(opened) == 2 * 22, "by the scans without a cache only"


def test_sets_that_differ_in_classes_only_share_nothing(digits: Path, tmp_path: Path) -> None:
    """Names, sizes and times of all files are equal, as after ``cp -p`` or out of an archive."""
    data = copy_of(digits, tmp_path / "1")
    shutil.copytree(tmp_path / "1", tmp_path / "2")
    for label in (tmp_path / "2" / "labels" / "train").glob("*.txt"):
        before = label.stat()
        if before.st_size:  # else it is of an image without objects
            words = label.read_text().split(" ", 1)
            label.write_text(f"{(int(words[0]) + 1) % 10} {words[1]}")
        os.utime(label, ns=(before.st_atime_ns, before.st_mtime_ns))
        assert label.stat().st_size == before.st_size
    cache = tmp_path / "cache"
    here, there = (annotations_of(tmp_path / name / data.name, cache) for name in ("1", "2"))
    assert here.digest != there.digest
    for found in (here, there):
        assert found.digest == annotations_of(found.root / data.name, None).digest


def test_other_content_of_the_same_size_and_times_is_noticed(
    digits: Path, tmp_path: Path, opened: list[str]
) -> None:
    data, cache = copy_of(digits, tmp_path / "data"), tmp_path / "cache"
    first = annotations_of(data, cache)
    image = an_image(data)
    before = image.stat()
    image.write_bytes(bytes(before.st_size))
    os.utime(image, ns=(before.st_atime_ns, before.st_mtime_ns))
    opened.clear()
    assert len(annotations_of(data, cache)) == len(first) - 1
    assert opened == [image.name]


def test_a_copy_elsewhere_is_read_once(digits: Path, tmp_path: Path, opened: list[str]) -> None:
    cache = tmp_path / "cache"
    digests = set()
    for name in ("1", "2", "1", "2"):
        data = tmp_path / name / digits.name
        if not data.exists():
            copy_of(digits, tmp_path / name)
        digests.add(annotations_of(data, cache).digest)
    assert len(opened) == 2 * 28 and len(digests) == 1


def test_problems_are_reported_from_the_cache_too(
    digits: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data, cache = copy_of(digits, tmp_path / "data"), tmp_path / "cache"
    for label in (data.parent / "labels" / "train").glob("*.txt"):
        label.write_text("0 0.5 0.5 0 0.1\n0 0.5 0.5 0.2 0.2\n")
    texts = []
    for _ in range(2):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            annotations_of(data, cache)
        texts.append([record.getMessage() for record in caplog.records])
    assert texts[0] == texts[1]
    assert len(texts[0]) == MOST_SHOWN + 1
    assert texts[0][-1].endswith(f"{28 - MOST_SHOWN} more like these")


def test_a_set_without_a_usable_image_names_the_first_problem(digits: Path, tmp_path: Path) -> None:
    data = copy_of(digits, tmp_path / "data")
    for path in sorted((data.parent / "images" / "train").iterdir()):
        path.write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"none of 28 images is usable.*The first: "):
        annotations_of(data, tmp_path / "cache")


def test_a_scan_says_how_far_it_is(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    clock = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    progress = scanning._Progress("train", 10_000)
    with caplog.at_level(logging.INFO):
        for clock[0], done, aloud in (
            *((110.0, 5, True), (120.0, 1000, False), (120.0, 1000, True), (130.0, 1600, True)),
            *((160.0, 0, True), (200.0, 9000, True), (300.0, 10_000, True)),
        ):
            progress.show(done, aloud)
    assert caplog.messages == [
        "scan of train: 1000 of 10000 images, 50 a second, 3 min left",
        "scan of train: 0 of 10000 images, 0 a second, none yet",
        "scan of train: 9000 of 10000 images, 90 a second, 11 s left",
    ]


def test_the_collector_lets_entries_alone(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would look at millions of them again and again, while the rank shows no sign of life."""

    def listed(spec: DataSpec, split: str) -> list[Entry]:
        enabled.append(gc.isenabled())
        entries = list_entries(spec, split)
        lists.append(entries)
        return entries

    enabled: list[bool] = []
    lists: list[list[Entry]] = []
    monkeypatch.setattr("horovod_yolo.assembly.shared_annotations.list_entries", listed)
    run_world(3, lambda comm: annotations_of(digits, tmp_path, comm), hosts=(3,))
    assert enabled == [False] * 3 and gc.isenabled()
    assert lists == [[]] * 3 and gc.get_freeze_count() == 0


# --- many ranks


def test_ranks_divide_the_scan_and_each_host_keeps_all_of_it(
    digits: Path, tmp_path: Path, opened: list[str]
) -> None:
    alone = annotations_of(digits, None)

    def job(comm: Communicator) -> tuple[str, str]:
        host = comm.rank - comm.local_rank
        found = annotations_of(digits, tmp_path / f"host{host}", comm)
        return found.digest, found.file.key

    opened.clear()
    found = run_world(5, job, hosts=(2, 3))
    assert {digest for digest, _ in found} == {alone.digest}
    assert sorted(opened) == sorted(Path(record.path).name for record in alone.records)
    opened.clear()
    assert run_world(5, job, hosts=(2, 3)) == found and opened == []
    shutil.rmtree(tmp_path / "host2")
    assert {digest for digest, _ in run_world(5, job, hosts=(2, 3))} == {alone.digest}
    assert opened == [], "the rows come from the host that has them"
    assert run_world(5, job, hosts=(2, 3)) and opened == []


def test_a_host_that_knows_less_gets_the_rows_of_the_best(
    digits: Path, tmp_path: Path, opened: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scanning, "ROWS_OF_A_MESSAGE", 5)
    data = copy_of(digits, tmp_path / "data")
    annotations_of(data, tmp_path / "host0")
    an_image(data).write_bytes(b"no image any more")

    def job(comm: Communicator) -> str:
        return annotations_of(data, tmp_path / f"host{comm.rank}", comm).digest

    opened.clear()
    assert set(run_world(3, job, hosts=(1, 1, 1))) == {annotations_of(data, None).digest}
    assert len(opened) == 1 + 28


def test_copies_on_hosts_are_each_read_and_compared(digits: Path, tmp_path: Path, opened: list[str]) -> None:
    for host in ("host0", "host2"):
        copy_of(digits, tmp_path / host)

    def job(comm: Communicator) -> str:
        host = f"host{comm.rank - comm.local_rank}"
        return annotations_of(tmp_path / host / digits.name, tmp_path / host / "cache", comm).digest

    assert len(set(run_world(4, job, hosts=(2, 2)))) == 1
    assert len(opened) == 2 * 28
    label = next((tmp_path / "host2" / "labels" / "train").glob("*.txt"))
    text = label.read_text()
    label.write_text(text.replace(text[-3], "1" if text[-3] != "1" else "2"))
    assert len(label.read_text()) == len(text)
    for outcome in world_outcomes(4, job, hosts=(2, 2)):
        assert isinstance(outcome, UserError)
        assert "train images or labels differ between hosts" in str(outcome)
    label.write_text(text + "\n")
    opened.clear()
    for outcome in world_outcomes(4, job, hosts=(2, 2)):
        assert isinstance(outcome, UserError)
    assert opened == [], "sizes differ: nothing needs to be opened"


def test_a_mistake_on_one_host_is_everyones_and_names_it(digits: Path, tmp_path: Path) -> None:
    copy_of(digits, tmp_path / "host0")
    copy_of(digits, tmp_path / "host1")
    shutil.rmtree(tmp_path / "host1" / "images" / "train")

    def job(comm: Communicator) -> None:
        annotations_of(tmp_path / f"host{comm.rank}" / digits.name, None, comm)

    for outcome in world_outcomes(2, job, hosts=(1, 1)):
        assert isinstance(outcome, UserError)
        assert "host1/images/train" in str(outcome) and " (on " in str(outcome)
