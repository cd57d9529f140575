"""Label formats: what each row becomes, that every bad one is reported, and that the formats agree."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from horovod_yolo.boxes import pairwise_iou
from horovod_yolo.data import formats
from horovod_yolo.data.formats import Labels, Problem, coco, voc, yolo
from horovod_yolo.data.index import Index, assemble, list_entries, scan
from horovod_yolo.data.spec import DataSpec
from horovod_yolo.errors import UserError

SETS = Path(__file__).resolve().parents[3] / "../shared/data"
needs_sets = pytest.mark.skipif(not SETS.is_dir(), reason=f"{SETS} is not here")
H, W = 100, 200


def _yolo(text: str | bytes, num_classes: int = 3) -> tuple[Labels, list[str]]:
    data = text if isinstance(text, bytes) else text.encode()
    labels, problems = yolo.parse_labels(data, "a.txt", num_classes, H, W)
    return labels, [str(problem) for problem in problems]


def _check_labels(labels: Labels, num_classes: int) -> None:
    n = len(labels.classes)
    assert labels.boxes_xyxy.shape == (n, 4)
    assert labels.crowd.shape == labels.areas.shape == (n,)
    assert (labels.classes.dtype, labels.boxes_xyxy.dtype) == (np.int64, np.float32)
    assert (labels.crowd.dtype, labels.areas.dtype) == (np.bool_, np.float32)
    assert ((labels.classes >= 0) & (labels.classes < num_classes)).all()
    assert (labels.boxes_xyxy >= 0).all()
    assert (labels.boxes_xyxy <= [W, H, W, H]).all()
    assert (labels.boxes_xyxy[:, 2:] > labels.boxes_xyxy[:, :2]).all()


# --- YOLO rows


def test_yolo_row_is_class_centre_and_size() -> None:
    labels, problems = _yolo("1 0.5 0.5 0.2 0.4\n")
    assert problems == []
    assert labels.classes.tolist() == [1]
    np.testing.assert_allclose(labels.boxes_xyxy, [[80, 30, 120, 70]], rtol=1e-6)
    np.testing.assert_allclose(labels.areas, [40 * 40], rtol=1e-6)
    assert not labels.crowd.any()


def test_yolo_polygon_becomes_its_bounding_box() -> None:
    labels, problems = _yolo("2 0.1 0.9 0.3 0.2 0.2 0.5\n")
    assert problems == []
    np.testing.assert_allclose(labels.boxes_xyxy, [[20, 20, 60, 90]], rtol=1e-6)


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_yolo_line_ends_blank_lines_and_byte_order_mark(end: str) -> None:
    text = end.join(["\ufeff0 .5 .5 .1 .1", "", "  1\t5e-1 .5 +.2 .2  ", "0 .5 .5"])
    labels, problems = _yolo(text)
    assert labels.classes.tolist() == [0, 1]
    assert problems == ["a.txt:4: 3 columns: a row is 'class cx cy w h' or 'class x1 y1 x2 y2 x3 y3 ...'"]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("0 .5 .5 .1", "4 columns"),
        ("0 .5 .5 .1 .1 .9", "6 columns"),
        ("0 .5 .5 .1 .1 .1 .1 .1", "8 columns"),
        ("cat .5 .5 .1 .1", "'cat' is not a number"),
        ("0 .5 0,5 .1 .1", "'0,5' is not a number"),
        ("0 .5 0_5 .1 .1", "'0_5' is not a number"),
        ("0 .5 nan .1 .1", "'nan' is not a finite number"),
        ("0 .5 .5 inf .1", "'inf' is not a finite number"),
        ("0 .5 .5 .1 1e999", "'1e999' is not a finite number"),
        ("nan .5 .5 .1 .1", "'nan' is not a finite number"),
        ("1.5 .5 .5 .1 .1", "class '1.5' is not a whole number"),
        ("3 .5 .5 .1 .1", "class '3' is not in 0..2"),
        ("-1 .5 .5 .1 .1", "class '-1' is not in 0..2"),
        ("1e300 .5 .5 .1 .1", "class '1e300' is not in 0..2"),
        ("0 .5 .5 0 .1", "width 0 and height 0.1 must be positive"),
        ("0 .5 .5 .1 -.1", "width 0.1 and height -0.1 must be positive"),
        ("0 320 240 50 60", "320 is outside 0..1"),
        ("0 .5 1.01 .1 .1", "1.01 is outside 0..1"),
        ("0 -.01 .5 .1 .1", "-0.01 is outside 0..1"),
        ("0 .1 .1 .5 .1 .9 .1", "box has no area inside the 200x100 image"),
        ("0 .5 .5 1e-12 .1", "box has no area inside the 200x100 image"),
        ("0 .25 .5 .5 .5", "box repeats line 1"),
    ],
)
def test_yolo_bad_row_is_named_and_left_out(row: str, reason: str) -> None:
    labels, problems = _yolo(f"0 .25 .5 .5 .5\n{row}\n1 .5 .5 .5 .5\n")
    assert labels.classes.tolist() == [0, 1]
    assert len(problems) == 1
    assert problems[0].startswith(f"a.txt:2: {reason}")


def test_yolo_overhang_is_clipped_without_a_word() -> None:
    labels, problems = _yolo("0 0.0 0.5 0.2 1.0005\n0 1.0005 0.5 0.1 0.1\n")
    assert problems == []
    np.testing.assert_allclose(labels.boxes_xyxy, [[0, 0, 20, 100], [190.1, 45, 200, 55]], rtol=1e-5)


def test_yolo_file_full_of_rubbish_ends_its_report() -> None:
    labels, problems = _yolo("x\n" * 5000 + "0 .5 .5 .1 .1\n")
    assert len(labels.classes) == 0
    assert len(problems) == formats.MAX_PROBLEMS + 1
    assert "the rest of the file is left out" in problems[-1]


numbers = st.one_of(
    st.floats(-0.2, 1.2),
    st.sampled_from([0, 1, 0.5, "nan", "-inf", "1e400", "x", "", "0x1", "1_0"]),
    st.integers(-2, 5),
)
rows = st.lists(numbers, max_size=9).map(lambda row: " ".join(map(str, row)).encode())
label_files = st.one_of(st.binary(max_size=300), st.lists(rows, max_size=12).map(b"\n".join))


@settings(max_examples=120, deadline=None)
@given(data=label_files)
@example(data=b"0 .5 .5 .1 .1".decode().encode("utf-16"))
def test_yolo_each_row_of_any_bytes_is_a_box_or_a_problem(data: bytes) -> None:
    labels, problems = yolo.parse_labels(data, "a.txt", 3, H, W)
    _check_labels(labels, 3)
    filled = [i for i, line in enumerate(data.removeprefix(b"\xef\xbb\xbf").splitlines(), 1) if line.strip()]
    assert len(labels.classes) + len(problems) == len(filled)
    assert {problem.line for problem in problems} <= set(filled)
    for problem in problems:
        assert str(problem).startswith(f"a.txt:{problem.line}: ")
        assert "\n" not in problem.reason and len(problem.reason) < 300


@settings(max_examples=60, deadline=None)
@given(
    boxes=st.lists(
        st.tuples(st.integers(0, 2), st.floats(0, 90), st.floats(0, 90), st.floats(1, 10), st.floats(1, 10)),
        max_size=8,
        unique=True,
    )
)
def test_the_three_formats_give_the_same_labels(boxes: list[tuple[int, float, float, float, float]]) -> None:
    names = ("a", "b", "c")
    rows = [f"{c} {(x + w / 2) / W} {(y + h / 2) / H} {w / W} {h / H}" for c, x, y, w, h in boxes]
    from_yolo, _ = yolo.parse_labels("\n".join(rows).encode(), "a.txt", 3, H, W)
    annotations = [
        {"id": i, "image_id": 7, "category_id": c * 10, "bbox": [x, y, w, h]}
        for i, (c, x, y, w, h) in enumerate(boxes)
    ]
    images, _ = coco.parse(_coco_json(annotations=annotations), "a.json", names)
    from_coco, _ = coco.CocoLabels(Path("a.json"), tuple(images[0].rows)).read(names, H, W)
    objects = "".join(_voc_object(names[c], x, y, x + w, y + h) for c, x, y, w, h in boxes)
    from_voc, _ = voc.parse_annotation(_voc_xml(objects), "a.xml", names, H, W)
    assert from_coco is not None and from_voc is not None
    for labels in (from_coco, from_voc):
        _check_labels(labels, 3)
        np.testing.assert_array_equal(labels.classes, from_yolo.classes)
        np.testing.assert_allclose(labels.boxes_xyxy, from_yolo.boxes_xyxy, atol=1e-4)
        np.testing.assert_allclose(labels.areas, from_yolo.areas, atol=1e-2)


# --- YOLO places


@pytest.mark.parametrize(
    ("image", "label"),
    [
        ("/d/images/train/a.jpg", "/d/labels/train/a.txt"),
        ("/images/d/images/a.b.png", "/images/d/labels/a.b.txt"),
        ("/d/train/images/a.jpg", "/d/train/labels/a.txt"),
        ("/d/photos/a.jpg", "/d/photos/a.txt"),
        ("/d/my images/images", "/d/my images/images.txt"),
        ("/d/images/v.mp4#t=1.jpg", "/d/labels/v.mp4#t=1.txt"),
    ],
)
def test_label_path(image: str, label: str) -> None:
    assert yolo.label_path(Path(image)) == Path(label)


def test_missing_label_file_is_background_an_unreadable_one_is_not(tmp_path: Path) -> None:
    labels, problems = yolo.YoloLabels(tmp_path / "none.txt").read(["a"], H, W)
    assert labels is not None and len(labels.classes) == 0 and problems == []
    labels, problems = yolo.YoloLabels(tmp_path).read(["a"], H, W)
    assert labels is None
    assert str(problems[0]) == f"{tmp_path}: labels cannot be read: not a regular file"


def test_huge_label_file_is_reported_not_read(tmp_path: Path) -> None:
    for source, name in ((yolo.YoloLabels, "a.txt"), (voc.VocLabels, "a.xml")):
        with (tmp_path / name).open("wb") as stream:
            stream.truncate(formats.MAX_LABEL_BYTES + 1)  # sparse: takes no room
        labels, problems = source(tmp_path / name).read(["a"], H, W)
        assert labels is None
        assert "MiB that are read" in str(problems[0])


# --- COCO


def _coco_json(**changes: object) -> bytes:
    content: dict[str, object] = {
        "images": [{"id": 7, "file_name": "a.jpg", "height": H, "width": W}],
        "categories": [{"id": i * 10, "name": name} for i, name in enumerate("abc")],
        "annotations": [{"id": 0, "image_id": 7, "category_id": 10, "bbox": [10, 20, 30, 40]}],
    }
    return json.dumps(content | changes).encode()


def _coco(data: bytes, names: Sequence[str] = ("a", "b", "c")) -> tuple[Labels, list[str]]:
    images, problems = coco.parse(data, "a.json", names)
    labels, more = coco.CocoLabels(Path("a.json"), tuple(images[0].rows), images[0].stated_size).read(
        names, H, W
    )
    assert labels is not None
    return labels, [str(problem) for problem in problems + more]


def test_coco_keeps_crowd_and_stated_area() -> None:
    annotations = [
        {"id": 0, "image_id": 7, "category_id": 10, "bbox": [10, 20, 30, 40], "area": 700.5, "iscrowd": 1},
        {"id": "x", "image_id": 7, "category_id": 0.0, "bbox": [1.5, 2, 3, 4], "iscrowd": 0},
    ]
    labels, problems = _coco(_coco_json(annotations=annotations))
    assert problems == []
    assert labels.classes.tolist() == [1, 0]
    assert labels.crowd.tolist() == [True, False]
    assert labels.areas.tolist() == [700.5, 12]
    np.testing.assert_array_equal(labels.boxes_xyxy, [[10, 20, 40, 60], [1.5, 2, 4.5, 6]])


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"bbox": None}, "annotation 5: bbox is not [left, top, width, height]"),
        ({"bbox": [1, 2, 3]}, "annotation 5: bbox is not [left, top, width, height]"),
        ({"bbox": [1, 2, "3", 4]}, "annotation 5: bbox [1, 2, '3', 4] is not four finite numbers"),
        ({"bbox": [1, 2, float("nan"), 4]}, "annotation 5: bbox [1, 2, nan, 4] is not four finite numbers"),
        ({"bbox": [1, 2, 10**400, 4]}, "annotation 5: bbox [1, 2, 1000"),
        ({"bbox": [1, 2, 0, 4]}, "annotation 5: width 0 and height 4 must be positive"),
        ({"bbox": [1, 2, 3, -4]}, "annotation 5: width 3 and height -4 must be positive"),
        ({"bbox": [W, 2, 3, 4]}, "annotation 5 has no area inside the 200x100 image"),
        ({"bbox": [10, 20, 30, 40]}, "annotation 5 repeats annotation 0"),
        ({"image_id": 8}, "annotation 5: image_id is not the id of an image"),
        ({"image_id": [7]}, "annotation 5: image_id is not the id of an image"),
        ({"category_id": 11}, "annotation 5: category_id 11 is not a class"),
        ({"category_id": None}, "annotation 5: category_id None is not a class"),
    ],
)
def test_coco_bad_annotation_is_named_and_left_out(change: dict[str, object], reason: str) -> None:
    good = {"id": 0, "image_id": 7, "category_id": 10, "bbox": [10, 20, 30, 40]}
    bad = {"id": 5, "image_id": 7, "category_id": 10, "bbox": [1, 2, 3, 4]} | change
    labels, problems = _coco(_coco_json(annotations=[good, bad]))
    assert len(labels.classes) == 1
    assert len(problems) == 1
    assert problems[0].startswith(f"a.json: {reason}")


def test_coco_many_annotations_left_out_for_one_reason_make_one_problem() -> None:
    strays = [{"id": i, "image_id": 99, "category_id": 0, "bbox": [1, 2, 3, 4]} for i in range(500)]
    _, problems = coco.parse(_coco_json(annotations=strays), "a.json", ("a", "b", "c"))
    assert [str(p) for p in problems] == [
        "a.json: annotation 0 and 499 more: image_id is not the id of an image in the file"
    ]


def test_coco_image_without_id_or_name_or_with_anothers_id_is_reported() -> None:
    images = [
        {"id": 7, "file_name": "a.jpg"},
        {"id": 7, "file_name": "b.jpg"},
        {"file_name": "c.jpg"},
        {"id": 8},
        {"id": 9, "file_name": "\ud800"},
        {"id": 10, "file_name": "a\0b"},
        5,
    ]
    kept, problems = coco.parse(_coco_json(images=images), "a.json", ("a", "b", "c"))
    assert [image.file_name for image in kept] == ["a.jpg"]
    assert len(problems) == 6


def _categories(*items: tuple[object, str, str]) -> list[object]:
    return [{"id": key, "name": name, "supercategory": head} for key, name, head in items]


def test_categories_map_by_name_whatever_their_ids() -> None:
    categories = _categories((90, "b", ""), (3, "a", ""), ("k", "c ", ""))
    assert coco.map_categories(categories, {90, 3}, ("a", "b", "c"), "f") == {90: 1, 3: 0, "k": 2}


def test_categories_map_by_name_past_roboflows_unused_head() -> None:
    categories = _categories((0, "cells", "none"), (1, "rbc", "cells"), (2, "wbc", "cells"))
    assert coco.map_categories(categories, {1, 2}, ("rbc", "wbc"), "f") == {1: 0, 2: 1}
    assert coco.map_categories(categories, {1, 2}, ("red", "white"), "f") == {1: 0, 2: 1}


def test_categories_map_by_order_of_id_when_no_name_agrees() -> None:
    categories = _categories((30, "z", ""), (2, "y", ""), (11, "x", ""))
    assert coco.map_categories(categories, {2}, ("p", "q", "r"), "f") == {2: 0, 11: 1, 30: 2}


def test_a_subset_of_the_categories_may_be_trained() -> None:
    categories = _categories((1, "a", ""), (2, "b", ""))
    assert coco.map_categories(categories, {1, 2}, ("b",), "f") == {2: 0}


@pytest.mark.parametrize(
    ("names", "what"),
    [
        (("a", "bb"), "category 'b' is not in names, and name 'bb' is no category"),
        (("x",), "none of the 2 categories"),
    ],
)
def test_categories_that_fit_no_way_are_an_error(names: tuple[str, ...], what: str) -> None:
    categories = _categories((1, "a", ""), (2, "b", ""))
    with pytest.raises(UserError, match=f"^f: {what}.*data.yaml"):
        coco.map_categories(categories, {1, 2}, names, "f")


@pytest.mark.parametrize(
    "data", [b"", b"{", b"[]", b"5", b"\xff\xfe", b"{}", b'{"images": [], "annotations": 5}', b"[" * 10**5]
)
def test_what_is_no_coco_file_is_an_error(data: bytes) -> None:
    with pytest.raises(UserError, match=r"^a\.json: .*images, annotations and categories"):
        coco.parse(data, "a.json", ("a",))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 20) | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)


def _mappings(*keys: str) -> st.SearchStrategy[object]:
    usual = st.sampled_from([0, 7, 10, "a", "a.jpg", [1, 2, 3, 4], [1.5, 2.5, 1e300, 4]])
    return st.lists(
        st.fixed_dictionaries({}, optional=dict.fromkeys(keys, usual | json_values)) | json_values,
        max_size=5,
    )


@settings(max_examples=80, deadline=None)
@given(
    images=_mappings("id", "file_name", "height", "width"),
    annotations=_mappings("id", "image_id", "category_id", "bbox", "area", "iscrowd"),
    categories=_mappings("id", "name", "supercategory"),
)
def test_coco_any_values_give_valid_boxes_or_problems(
    images: object, annotations: object, categories: object
) -> None:
    data = json.dumps({"images": images, "annotations": annotations, "categories": categories}).encode()
    try:
        parsed, problems = coco.parse(data, "a.json", ("a", "b", "c"))
    except UserError:
        return
    assert all(str(problem).startswith("a.json: ") for problem in problems)
    for image in parsed:
        source = coco.CocoLabels(Path("a.json"), tuple(image.rows), image.stated_size)
        labels, _ = source.read(("a", "b", "c"), H, W)
        assert labels is not None
        _check_labels(labels, 3)
        assert pickle.loads(pickle.dumps(source)).stated_size == source.stated_size


# --- VOC


def _voc_object(name: object, *corners: object) -> str:
    tags = "".join(
        f"<{tag}>{value}</{tag}>"
        for tag, value in zip(("xmin", "ymin", "xmax", "ymax"), corners, strict=False)
    )
    return f"<object>\n<name>{name}</name><difficult>1</difficult><bndbox>{tags}</bndbox></object>\n"


def _voc_xml(
    objects: str, size: str = f"<size><width>{W}</width><height>{H}</height><depth>3</depth></size>"
) -> bytes:
    return f"<annotation>\n{size}\n{objects}</annotation>".encode()


def _voc(data: bytes) -> tuple[Labels | None, list[str]]:
    labels, problems = voc.parse_annotation(data, "a.xml", ("a", "b"), H, W)
    return labels, [str(problem) for problem in problems]


def test_voc_keeps_floats_difficult_objects_and_zero() -> None:
    labels, problems = _voc(_voc_xml(_voc_object("b", 0.0, 1.25, 30.5, 40) + _voc_object(" a ", 1, 2, 3, 4)))
    assert problems == []
    assert labels is not None
    assert labels.classes.tolist() == [1, 0]
    np.testing.assert_array_equal(labels.boxes_xyxy, [[0, 1.25, 30.5, 40], [1, 2, 3, 4]])


def test_voc_parts_of_a_person_are_not_objects() -> None:
    inner = "<object><name>a</name><bndbox><xmin>1</xmin><ymin>2</ymin><xmax>9</xmax><ymax>9</ymax></bndbox>"
    part = f"<part>{inner.removeprefix('<object>').replace('<name>a', '<name>head').replace('9', '4')}</part>"
    labels, problems = _voc(_voc_xml(f"{inner}{part}</object>"))
    assert problems == []
    assert labels is not None
    np.testing.assert_array_equal(labels.boxes_xyxy, [[1, 2, 9, 9]])


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (_voc_object("cat", 1, 2, 3, 4), "object name 'cat' is not in 'names'"),
        ("<object><bndbox/></object>\n", "object has no name"),
        (_voc_object("a", 1, 2, 3), "ymax 'is missing' is not a finite number"),
        (_voc_object("a", 1, 2, "x", 4), "xmax 'x' is not a finite number"),
        (_voc_object("a", 1, "nan", 3, 4), "ymin 'nan' is not a finite number"),
        (_voc_object("a", 5, 2, 5, 4), "box (5, 2, 5, 4) has no area"),
        (_voc_object("a", 5, 4, 9, 2), "box (5, 4, 9, 2) has no area"),
        (_voc_object("a", W, 2, W + 9, 9), "box has no area inside the 200x100 image"),
        (_voc_object("b", 1, 2, 3, 4), "box repeats line 3"),
    ],
)
def test_voc_bad_object_is_named_with_its_line_and_left_out(bad: str, reason: str) -> None:
    labels, problems = _voc(_voc_xml(_voc_object("b", 1, 2, 3, 4) + bad + _voc_object("a", 1, 2, 3, 4)))
    assert labels is not None
    assert labels.classes.tolist() == [1, 0]
    assert len(problems) == 1
    assert problems[0].startswith(f"a.xml:5: {reason}")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "a.xml:1: labels cannot be read: no element found"),
        (b"<annotation>\n<object>", "a.xml:2: labels cannot be read: no element found"),
        (b"not xml", "a.xml:1: labels cannot be read: syntax error"),
        (b"<?xml version='1.0' encoding='gbk'?><a/>", "a.xml:1: labels cannot be read: "),
        (b"<?xml version='1.0' encoding='nonsense'?><a/>", "a.xml:1: labels cannot be read: "),
    ],
)
def test_voc_broken_xml_makes_the_labels_unknown(data: bytes, reason: str) -> None:
    labels, problems = _voc(data)
    assert labels is None
    assert len(problems) == 1
    assert problems[0].startswith(reason)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_voc_entities_are_refused_before_they_grow(encoding: str) -> None:
    levels = "".join(f'<!ENTITY e{i} "{f"&e{i - 1};" * 10}">' for i in range(1, 12))
    bomb = f'<!DOCTYPE a [<!ENTITY e0 "{"x" * 100}">{levels}]>\n<annotation>&e11;</annotation>'
    labels, problems = _voc(bomb.encode(encoding))
    assert labels is None
    assert problems == [
        "a.xml:1: labels cannot be read: a document type (<!DOCTYPE ...>) is not read: it may define entities"
    ]


def test_voc_very_deep_xml_is_harmless() -> None:
    labels, problems = _voc(b"<a>" * 100_000 + b"</a>" * 100_000)
    assert labels is not None and problems == []


@settings(max_examples=80, deadline=None)
@given(
    data=st.one_of(
        st.binary(max_size=200),
        st.lists(
            st.tuples(st.sampled_from(["a", "b", "cat", ""]), *[st.floats() | st.integers(-5, 300)] * 4),
            max_size=6,
        ).map(lambda objects: _voc_xml("".join(_voc_object(*values) for values in objects))),
        st.binary(max_size=40).map(
            lambda noise: _voc_xml(_voc_object("a", 1, 2, 3, 4))[: 150 - len(noise)] + noise
        ),
    )
)
def test_voc_any_bytes_give_valid_boxes_or_problems(data: bytes) -> None:
    labels, problems = voc.parse_annotation(data, "a.xml", ("a", "b"), H, W)
    for problem in problems:
        assert str(problem).startswith(f"a.xml:{problem.line}: ")
    if labels is None:
        assert len(problems) == 1
        return
    _check_labels(labels, 2)
    assert len(labels.classes) + len(problems) == data.count(b"<object>")


def test_labels_of_another_image_size_are_noted_and_kept() -> None:
    size = "<size><width>100</width><height>200</height></size>"
    labels, problems = _voc(_voc_xml(_voc_object("a", 1, 2, 3, 4), size))
    assert labels is not None and len(labels.classes) == 1
    assert problems == ["a.xml: labels are for 100x200, the image is 200x100: kept, as pixels of the image"]
    images = [{"id": 7, "file_name": "a.jpg", "height": 10, "width": W}]
    labels, problems = _coco(_coco_json(images=images))
    assert len(labels.classes) == 1
    assert problems == ["a.json: labels are for 200x10, the image is 200x100: kept, as pixels of the image"]


def test_problem_reads_file_line_reason() -> None:
    assert str(Problem("a.txt", 3, "why")) == "a.txt:3: why"
    assert str(Problem("a.txt", None, "why")) == "a.txt: why"


# --- the same real set in two formats


def _index(root: Path, item: str, names: Sequence[str]) -> tuple[Index, list[Problem]]:
    spec = DataSpec(root / "data.yaml", root, (item,), (item,), (), tuple(names))
    records, problems = scan(list_entries(spec, "train"), spec.names, root)
    return assemble(root, spec.names, records), problems


def _voc_tree(folder: Path, images: Path, annotations: Path, stems: Sequence[str]) -> str:
    (folder / "ImageSets/Main").mkdir(parents=True)
    (folder / "ImageSets/Main/train.txt").write_text("\n".join(stems))
    (folder / "JPEGImages").symlink_to(images)
    (folder / "Annotations").symlink_to(annotations)
    return "ImageSets/Main/train.txt"


@needs_sets
def test_fruits_nuts_voc_and_coco_agree(tmp_path: Path) -> None:
    source = SETS / "fruits-nuts"
    names = ("date", "fig", "hazelnut")
    (tmp_path / "images").mkdir()
    for image in source.glob("images/*/*.jpg"):
        (tmp_path / "images" / image.name).symlink_to(image)
    shutil.copy(source / "original/coco_trainval.json", tmp_path)
    stems = [path.stem for path in (source / "original/voc").glob("*.xml")]
    item = _voc_tree(tmp_path / "voc", tmp_path / "images", source / "original/voc", stems)
    from_voc, voc_problems = _index(tmp_path / "voc", item, names)
    from_coco, coco_problems = _index(tmp_path, "coco_trainval.json", names)
    assert voc_problems == coco_problems == []
    assert len(from_voc) == len(from_coco) == 18
    extra = 0
    for a, b in zip(from_voc.records, from_coco.records, strict=True):
        assert Path(a.path).name == Path(b.path).name
        iou = pairwise_iou(torch.from_numpy(a.boxes_xyxy), torch.from_numpy(b.boxes_xyxy)).numpy()
        iou[a.classes[:, None] != b.classes[None]] = 0
        assert (iou.max(axis=1).round(2) >= 0.79).all()  # the lowest is .788 (date in 9.jpg)
        assert len(set(iou.argmax(axis=1))) == len(a.classes)
        extra += len(b.classes) - len(a.classes)
    assert extra == 1


@needs_sets
@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_bccd_yolo_and_voc_agree(tmp_path: Path, split: str) -> None:
    source = SETS / "bccd"
    names = ("RBC", "WBC", "Platelets")
    stems = (source / f"original/ImageSets/Main/{split}.txt").read_text().split()
    item = _voc_tree(tmp_path, source / "images" / split, source / "original/Annotations", stems)
    from_voc, problems = _index(tmp_path, item, names)
    from_yolo, _ = _index(source, f"images/{split}", names)
    zero_area = [problem for problem in problems if "has no area" in problem.reason]
    assert zero_area == problems
    assert {Path(problem.file).stem for problem in problems} <= {"BloodImage_00338", "BloodImage_00343"}
    assert all(problem.line is not None for problem in problems)
    _assert_equal_records(from_yolo, from_voc)


@needs_sets
@pytest.mark.parametrize("split", ["train", "val"])
def test_coco_ccby_yolo_and_json_agree(split: str) -> None:
    source = SETS / "coco-ccby"
    listing = json.loads((source / f"original/instances_{split}.json").read_text())
    names = [category["name"] for category in sorted(listing["categories"], key=lambda c: c["id"])]
    from_json, problems = _index(source, f"original/instances_{split}.json", names)
    from_yolo, _ = _index(source, f"images/{split}", names)
    assert problems == []
    assert {record.image_id for record in from_json.records} == {image["id"] for image in listing["images"]}
    assert sum(record.crowd.sum() for record in from_json.records) == sum(
        a["iscrowd"] for a in listing["annotations"]
    )
    _assert_equal_records(from_yolo, from_json)


@needs_sets
@pytest.mark.parametrize(("split", "json_name"), [("train", "train"), ("val", "valid"), ("test", "test")])
def test_rbc_roboflow_yolo_and_json_agree(tmp_path: Path, split: str, json_name: str) -> None:
    source = SETS / "rbc-roboflow"
    for image in (source / "images" / split).iterdir():
        (tmp_path / image.name).symlink_to(image)
    shutil.copy(source / f"original/{json_name}_annotations.coco.json", tmp_path / "_annotations.coco.json")
    from_json, problems = _index(tmp_path, "_annotations.coco.json", ("rbc", "wbc"))
    from_yolo, _ = _index(source, f"images/{split}", ("rbc", "wbc"))
    assert problems == []
    _assert_equal_records(from_yolo, from_json)


def _assert_equal_records(a: Index, b: Index) -> None:
    """Same images, same boxes but for crowds; the shared YOLO labels have six decimals."""
    assert [Path(r.path).name for r in a.records] == [Path(r.path).name for r in b.records]
    for x, y in zip(a.records, b.records, strict=True):
        assert (x.height, x.width) == (y.height, y.width)
        kept = ~y.crowd
        assert len(x.classes) == kept.sum()
        left = np.abs(x.boxes_xyxy[:, None] - y.boxes_xyxy[kept][None]).max(axis=-1)
        left[x.classes[:, None] != y.classes[kept][None]] = np.inf
        rows, columns = np.nonzero(left < 2e-3)
        assert sorted(rows) == sorted(columns) == list(range(len(x.classes))), "each box has one partner"
