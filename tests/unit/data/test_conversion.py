"""Conversion: what is written in a format reads as what it was made from."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from horovod_yolo.core.errors import UserError
from horovod_yolo.data.annotations import Annotations, Record
from horovod_yolo.data.conversion import FORMATS, Kind, NewSet, all_of, finish, require_writable, write_images
from horovod_yolo.data.formats import annotated, coco, voc, yolo
from horovod_yolo.data.spec import load_data_yaml
from horovod_yolo.data.writers import coco_content, list_line, voc_xml, yolo_rows
from tests.helpers.scanned import annotations_of

NAMES = ("cat", "großer Hund", "a<b & c")
TOLERANCE = 1e-3  # pixels: what docs/config.md promises
H, W = 37, 5000


def record_of(path: str, objects: list[tuple[int, list[float]]], crowd: tuple[int, ...] = ()) -> Record:
    boxes = np.array([box for _, box in objects], np.float32).reshape(-1, 4)
    is_crowd = np.isin(np.arange(len(objects)), crowd)
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    return Record(path, H, W, np.array([c for c, _ in objects], np.int64), boxes, is_crowd, areas, 0)


def interval(side: int) -> st.SearchStrategy[tuple[float, float]]:
    ends = st.floats(0, side, width=32)
    return st.tuples(ends, ends).map(sorted).filter(lambda pair: pair[1] - pair[0] > 2 * TOLERANCE).map(tuple)  # type: ignore[arg-type]


OBJECT = st.tuples(st.integers(0, 2), interval(W), interval(H)).map(
    lambda drawn: (drawn[0], [drawn[1][0], drawn[2][0], drawn[1][1], drawn[2][1]])
)
OBJECTS = st.lists(OBJECT, max_size=8, unique_by=lambda each: tuple(np.round(each[1], 1)))


def read_yolo(record: Record) -> object:
    return yolo.parse_labels(yolo_rows(record), "a.txt", 3, H, W)


def read_list(record: Record) -> object:
    found = annotated._LINE.fullmatch(list_line("my b.png a.jpg", record).strip())
    assert found is not None and found[1] == b"my b.png a.jpg"
    boxes = tuple((1, text) for text in (found[2] or b"").split())
    return annotated.ListLabels(Path("a.txt"), boxes).read(NAMES, H, W)


def read_voc(record: Record) -> object:
    return voc.parse_annotation(voc_xml("a&b.jpg", record, NAMES), "a.xml", NAMES, H, W)


def read_coco(record: Record) -> object:
    content = json.dumps(coco_content([("a.jpg", 7, record)], NAMES)).encode()
    (image,), problems = coco.parse(content, "a.json", NAMES)
    assert problems == [] and image.stated_size == (H, W)
    return coco.CocoLabels(Path("a.json"), tuple(image.rows)).read(NAMES, H, W)


@pytest.mark.parametrize("read", [read_yolo, read_list, read_voc, read_coco])
@given(OBJECTS, st.sets(st.integers(0, 7)))
@settings(max_examples=60)
def test_boxes_are_the_same_again(
    read: Callable[[Record], tuple[object, list[object]]],
    objects: list[tuple[int, list[float]]],
    crowd: set[int],
) -> None:
    record = record_of("a.jpg", objects, tuple(crowd))
    labels, problems = read(record)
    kept = np.full(len(objects), True) if read is read_coco else ~record.crowd
    assert problems == []
    assert_array_equal(labels.classes, record.classes[kept])  # type: ignore[attr-defined]
    assert_allclose(labels.boxes_xyxy, record.boxes_xyxy[kept], rtol=0, atol=TOLERANCE)  # type: ignore[attr-defined]
    assert_array_equal(labels.crowd, record.crowd[kept])  # type: ignore[attr-defined]


def make_set(root: Path, paths: list[str], objects: list[tuple[int, list[float]]]) -> Annotations:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        PIL.Image.new("L", (W, H)).save(root / path)
    return Annotations.of(root, NAMES, [record_of(path, objects, (1,)) for path in paths])


def write(new: NewSet, root: Path) -> Path:
    called = require_writable(new)
    for rank in range(2):
        write_images(new, called, rank, 2, lambda _: None)
    finish(new, called, root, {})
    return new.out / "data.yaml"


BOXES = [(0, [1.0, 2.0, 300.5, 30.25]), (1, [5.0, 5.0, 9.0, 9.0]), (2, [0.0, 0.0, 5000.0, 37.0])]


@pytest.mark.parametrize("copy", [False, True])
@pytest.mark.parametrize("kind", FORMATS)
def test_whole_sets_are_read_as_they_were(tmp_path: Path, kind: Kind, copy: bool) -> None:
    """Names that repeat in other folders, spaces, and a set that is moved as a whole."""
    here, there = tmp_path / "here", tmp_path / "there"
    train = make_set(here / "old", ["pictures/a/1.png", "pictures/b/1.png", "pictures/b/my 2.jpg"], BOXES)
    val = make_set(here / "old", ["elsewhere/.3.png"], BOXES)
    parts = {"train": all_of(train), "val": all_of(val)}
    write(NewSet(kind, here / "new", parts, NAMES, copy), here / "old")
    spec = load_data_yaml(here.rename(there) / "new/data.yaml")
    assert spec.names == NAMES
    for split, before in (("train", train), ("val", val)):
        after = annotations_of(spec, split)
        kept = np.full(len(before.classes), True) if kind == "coco" else ~before.crowd
        assert len(after) == len(before)
        assert_array_equal(after.classes, before.classes[kept])
        assert_allclose(after.boxes_xyxy, before.boxes_xyxy[kept], rtol=0, atol=TOLERANCE)
    images = [path for path in (there / "new").rglob("*") if path.suffix in (".png", ".jpg")]
    moved = copy or kind in ("yolo", "voc")
    assert len(images) == (4 if moved else 0) and all(path.is_symlink() != copy for path in images)


def test_names_that_a_format_cannot_hold_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    some = make_set(tmp_path / "old", ["x/1.png", "x/1.jpg"], BOXES)
    for kind, names, said in (
        ("coco", ("Cat", "cat ", "c"), "cannot be told apart by name"),
        ("voc", ("a\a", "b", "c"), "characters that XML does not hold"),
        ("yolo", NAMES, "would share the name"),
    ):
        with pytest.raises(UserError, match=said):
            require_writable(NewSet(kind, tmp_path / "new", {"train": all_of(some)}, names))  # type: ignore[arg-type]
    assert not (tmp_path / "new").exists()
