"""Annotations say what a list of records says, whatever they hold, wherever they are opened."""

from __future__ import annotations

import dataclasses
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from horovod_yolo.core.types import Floats
from horovod_yolo.data import contents
from horovod_yolo.data.annotations import Annotations, Record

NAMES = ("cat", "wéird")
ROOT = Path("/data/set")
pixels = st.floats(0, 1e4, width=32)
names = st.text(
    st.characters(blacklist_characters="/\0", blacklist_categories=("Cs",)), min_size=1, max_size=8
)


@st.composite
def records(draw: st.DrawFn) -> Record:
    """Any image: with odd names, numbers that do not fit 64 bits, no objects."""
    n = draw(st.integers(0, 4))
    folders = draw(st.lists(names, max_size=3))
    name = draw(st.one_of(names, st.just(os.fsdecode(b"caf\xe9.jpg"))))
    return Record(
        path=draw(st.sampled_from(("", "/"))) + "/".join((*folders, name)),
        height=draw(st.integers(1, 2**31 - 1)),
        width=draw(st.integers(1, 2**31 - 1)),
        classes=draw(arrays.arrays(np.int64, n, elements=st.integers(0, 2**31 - 1))),
        boxes_xyxy=draw(arrays.arrays(np.float32, (n, 4), elements=pixels)),
        crowd=draw(arrays.arrays(np.bool_, n)),
        areas=draw(arrays.arrays(np.float32, n, elements=pixels)),
        image_id=draw(st.one_of(st.integers(), st.integers(-(2**70), 2**70), names)),
    )


def assert_equal(found: Record, expected: Record) -> None:
    for field in dataclasses.fields(Record):
        mine, theirs = getattr(found, field.name), getattr(expected, field.name)
        assert type(mine) is type(theirs)
        if isinstance(theirs, np.ndarray):
            assert mine.dtype == theirs.dtype and mine.shape == theirs.shape
        np.testing.assert_array_equal(mine, theirs)


@given(listed=st.lists(records(), max_size=6))
def test_they_are_the_list_of_records(listed: list[Record]) -> None:
    annotations = Annotations.of(ROOT, NAMES, listed)
    assert (annotations.root, annotations.names, len(annotations)) == (ROOT, NAMES, len(listed))
    for opened in (annotations, pickle.loads(pickle.dumps(annotations))):
        assert len(opened.records) == len(listed)
        for found, expected in zip(opened.records, listed, strict=True):
            assert_equal(found, expected)
        assert opened.digest == annotations.digest
    for i, record in enumerate(listed):
        assert annotations.image_path(i) == ROOT / record.path
    assert annotations.heights.tolist() == [record.height for record in listed]
    assert annotations.widths.tolist() == [record.width for record in listed]
    assert annotations.counts.tolist() == [len(record.classes) for record in listed]

    def joined(name: str) -> Floats:
        return np.concatenate([np.empty(0), *(getattr(record, name).ravel() for record in listed)])

    np.testing.assert_array_equal(annotations.classes, joined("classes"))
    np.testing.assert_array_equal(annotations.boxes_xyxy.ravel(), joined("boxes_xyxy"))
    np.testing.assert_array_equal(annotations.crowd, joined("crowd"))
    np.testing.assert_array_equal(annotations.areas, joined("areas"))


@given(listed=st.lists(records(), min_size=1, max_size=6), data=st.data())
def test_places_count_as_in_a_list(listed: list[Record], data: st.DataObject) -> None:
    found = Annotations.of(ROOT, NAMES, listed).records
    i = data.draw(st.integers(-len(listed), len(listed) - 1))
    assert_equal(found[i], listed[i])
    part = data.draw(st.slices(len(listed)))
    for mine, theirs in zip(found[part], listed[part], strict=True):
        assert_equal(mine, theirs)
    for outside in (len(listed), -len(listed) - 1):
        with pytest.raises(IndexError):
            found[outside]


@given(listed=st.lists(records(), max_size=6), objects_at_once=st.integers(1, 4))
def test_the_mark_of_an_image_is_that_of_the_image_alone(listed: list[Record], objects_at_once: int) -> None:
    alone = [Annotations.of(ROOT, NAMES, [record]).marks[0] for record in listed]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(contents, "_OBJECTS_AT_ONCE", objects_at_once)
        found = Annotations.of(ROOT, NAMES, listed).marks
    assert found.tolist() == alone


def test_a_mark_follows_from_name_size_and_objects() -> None:
    record = some(4)[3]
    others = [
        dataclasses.replace(record, path="images/0/other.jpg"),
        dataclasses.replace(record, height=record.height + 1),
        dataclasses.replace(record, width=record.width + 1),
        dataclasses.replace(record, classes=record.classes[[1, 0, 2]] + np.array([2, 0, 0])),
        dataclasses.replace(record, boxes_xyxy=np.nextafter(record.boxes_xyxy, np.float32(np.inf))),
    ]
    turned = dataclasses.replace(
        record, classes=record.classes[::-1], boxes_xyxy=record.boxes_xyxy[::-1], image_id="other"
    )
    found = Annotations.of(ROOT, NAMES, [record, turned, *others]).marks
    assert found[0] == found[1] and len(set(found.tolist())) == 1 + len(others)


def some(count: int) -> list[Record]:
    rng = np.random.default_rng(0)
    return [
        Record(
            f"images/{i % 3}/{i}.jpg",
            10 + i,
            20 + i,
            rng.integers(0, 2, i % 4),
            rng.uniform(0, 10, (i % 4, 4)).astype(np.float32),
            rng.random(i % 4) < 0.5,
            rng.uniform(0, 9, i % 4).astype(np.float32),
            i,
        )
        for i in range(count)
    ]


def test_what_is_pickled_does_not_grow() -> None:
    assert len(pickle.dumps(Annotations.of(ROOT, NAMES, some(2000)))) < 500


def test_nobody_can_change_them() -> None:
    annotations = Annotations.of(ROOT, NAMES, some(5))
    with pytest.raises(ValueError, match="read-only"):
        annotations.boxes_xyxy[0] = 0
    with pytest.raises(ValueError, match="read-only"):
        annotations.records[3].boxes_xyxy[0] = 0
    annotations.records[3].classes[0] = 7  # a copy
    assert annotations.records[3].classes[0] != 7


READ = """
import pickle, sys
annotations = pickle.load(sys.stdin.buffer)
print(annotations.digest, [record.path for record in annotations.records][-1], annotations.boxes_xyxy.sum())
"""


def test_another_process_opens_the_same_file() -> None:
    annotations = Annotations.of(ROOT, NAMES, some(7))
    command = [sys.executable, "-c", READ]
    done = subprocess.run(command, input=pickle.dumps(annotations), capture_output=True, check=True)
    expected = (annotations.digest, "images/0/6.jpg", annotations.boxes_xyxy.sum())
    assert done.stdout.decode().split() == [str(each) for each in expected]


def test_digest_is_that_of_another_format_of_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run goes on after an update that keeps the same data in other columns beside."""
    records = some(4)
    before = Annotations.of(ROOT, NAMES, records).digest
    monkeypatch.setattr("horovod_yolo.data.annotations.FORMAT_VERSION", 99)
    assert Annotations.of(ROOT, NAMES, records).digest == before


def test_digest_sees_every_field() -> None:
    records = some(4)[2:]
    first = records[0]
    changes = {
        "path": "images/9.png",
        "height": 11,
        "width": 21,
        "classes": first.classes - 1,
        "boxes_xyxy": first.boxes_xyxy + 1,
        "crowd": ~first.crowd,
        "areas": first.areas + 1,
        "image_id": "1",
    }
    assert set(changes) == {field.name for field in dataclasses.fields(Record)}
    digests = {Annotations.of(ROOT, names, records).digest for names in (NAMES, ("a", "c"))}
    for name, value in changes.items():
        changed = dataclasses.replace(first, **{name: value})
        digests.add(Annotations.of(ROOT, NAMES, [changed, *records[1:]]).digest)
    assert len(digests) == 2 + len(changes)
