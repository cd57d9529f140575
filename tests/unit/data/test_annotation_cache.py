"""The cache is a shortcut: what is damaged or in the way costs time and a line, never the truth."""

from __future__ import annotations

import errno
import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from horovod_yolo.assembly import meetings, scanning
from horovod_yolo.assembly.scanning import Keeper
from horovod_yolo.data import annotation_cache
from horovod_yolo.data.annotation_cache import AnnotationCache
from horovod_yolo.data.formats import Entry
from horovod_yolo.data.listing import list_entries, survey
from horovod_yolo.data.scan import ScannedImage, tabulate, take
from horovod_yolo.data.scan import scan as real_scan
from horovod_yolo.data.spec import DataSpec, load_data_yaml
from horovod_yolo.io.columns import check_columns
from tests.helpers.scanned import annotations_of


@pytest.fixture
def spec(digits: Path) -> DataSpec:
    return load_data_yaml(digits)


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the images that scans have opened."""
    names: list[str] = []

    def scan(entries: Sequence[Entry], classes: Sequence[str]) -> Iterator[ScannedImage]:
        for entry, image in zip(entries, real_scan(entries, classes), strict=True):
            names.append(entry.image.name)
            yield image

    monkeypatch.setattr(scanning, "scan", scan)
    return names


def cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


def flipped(content: bytes) -> bytes:
    """A bit in the middle of the columns: the file opens, and only its checksum tells."""
    at = len(content) // 2
    return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]


def headless(content: bytes) -> bytes:
    return bytes(64) + content[64:]


@pytest.mark.parametrize("damage", [cut, flipped, headless, lambda content: b""])
def test_a_damaged_file_is_a_miss_with_a_line(
    spec: DataSpec,
    tmp_path: Path,
    opened: list[str],
    caplog: pytest.LogCaptureFixture,
    damage: Callable[[bytes], bytes],
) -> None:
    digest = annotations_of(spec, "train", tmp_path).digest
    (file,) = tmp_path.iterdir()
    file.write_bytes(damage(file.read_bytes()))
    opened.clear()
    with caplog.at_level(logging.WARNING):
        assert annotations_of(spec, "train", tmp_path).digest == digest
    assert len(opened) == 28
    lines = [record.getMessage() for record in caplog.records if "unusable" in record.getMessage()]
    assert lines and all(line.startswith(f"cached annotations {file} are unusable (") for line in lines)
    opened.clear()
    assert annotations_of(spec, "train", tmp_path).digest == digest and opened == []


def test_a_file_that_is_cut_while_it_is_open_is_not_the_one_that_is_mapped_elsewhere(
    spec: DataSpec, tmp_path: Path
) -> None:
    """Where others may cut a file, as in a folder of somebody else, a copy is mapped."""
    digest = annotations_of(spec, "train", tmp_path).digest
    (file,) = tmp_path.iterdir()
    if os.geteuid() != 0:
        pytest.skip("only root can give a file away")
    os.chown(file, 12345, 12345)
    found = annotations_of(spec, "train", tmp_path)
    file.write_bytes(b"")
    assert found.digest == digest and found.boxes_xyxy.sum() > 0


def test_a_disk_that_takes_no_more_costs_a_line(
    spec: DataSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: object) -> str:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(annotation_cache, "write_columns", full)
    with caplog.at_level(logging.WARNING):
        found = annotations_of(spec, "train", tmp_path)
    assert len(found) == 28 and not [*tmp_path.iterdir()]
    words = "the annotations are kept in memory, and the next start scans again"
    line = f"{tmp_path} takes no more (No space left on device): {words}"
    assert [text for record in caplog.records if "takes" in (text := record.getMessage())] == [line]


def test_a_scan_that_is_killed_goes_on_where_it_was(
    spec: DataSpec, tmp_path: Path, opened: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scanning, "ENTRIES_OF_A_PART", 5)
    monkeypatch.setattr(scanning, "SECONDS_BETWEEN_PIECES", 0.0)
    monkeypatch.setattr(meetings, "SECONDS_BETWEEN_MEETINGS", 0.01)
    counted = scanning.scan

    class KilledError(Exception): ...

    def killed(entries: Sequence[Entry], classes: Sequence[str]) -> Iterator[ScannedImage]:
        for i, image in enumerate(counted(entries, classes)):
            if i == 17:
                while not any(path.suffix == ".piece" for path in tmp_path.iterdir()):
                    time.sleep(0.01)
                raise KilledError
            yield image

    monkeypatch.setattr(scanning, "scan", killed)
    with pytest.raises(KilledError):
        annotations_of(spec, "train", tmp_path)
    pieces = [path for path in tmp_path.iterdir() if path.suffix == ".piece"]
    assert pieces
    monkeypatch.setattr(scanning, "scan", counted)
    opened.clear()
    found = annotations_of(spec, "train", tmp_path)
    assert 28 - 17 <= len(opened) <= 28 - 5
    assert found.digest == annotations_of(spec).digest
    assert [path.suffix for path in tmp_path.iterdir()] == [".columns"], "the pieces are no use any more"


def test_a_piece_has_all_that_came_since_the_last(
    spec: DataSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entries = list_entries(spec, "train")
    table = tabulate([*real_scan(entries, spec.names)], spec.root)
    cache, surveyed = AnnotationCache(tmp_path), survey(entries, spec, "train")
    collector = scanning._Collector(Keeper(surveyed, cache.find(surveyed, spec.root, "train"), cache))
    for i, seconds in enumerate((1e9, 0.0, 0.0)):
        monkeypatch.setattr(scanning, "SECONDS_BETWEEN_PIECES", seconds)
        rows = np.arange(9 * i, 9 * i + 9)
        collector.add([(rows, take(table, rows))])
        known = AnnotationCache(tmp_path).find(surveyed, spec.root, "train")
        assert np.flatnonzero(known.rows).tolist() == ([*range(9 * i + 9)] if i else [])
    sizes = sorted(len(check_columns(path)["position"]) for path in tmp_path.iterdir())
    assert sizes == [9, 18], "each row is saved once"


def test_of_many_files_the_last_used_are_kept(
    spec: DataSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(annotation_cache, "FILES_KEPT", 2)
    entries = list_entries(spec, "train")
    table = tabulate([*real_scan(entries, spec.names)], spec.root)
    surveyed = survey(entries, spec, "train")
    for i in range(4):
        AnnotationCache(tmp_path).keep(surveyed, spec.root, f"split{i}", spec.names, table)
        newest = max(tmp_path.iterdir(), key=lambda path: path.stat().st_mtime_ns)
        os.utime(newest, (1e9 + i, 1e9 + i))
    left = sorted(path.stat().st_mtime for path in tmp_path.iterdir())
    assert left == [1e9 + 2, 1e9 + 3]
