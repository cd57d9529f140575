"""Whatever stands in a label file: boxes inside the image, or problems, or a `UserError`; nothing else."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from horovod_yolo.core.errors import UserError
from horovod_yolo.data.formats import Folders, LabelRules, coco, voc, yolo
from horovod_yolo.data.formats.annotated import ListLabels
from tests.fuzz.mutations import fuzzed, mutated
from tests.unit.data.label_files import H, W, check_labels, coco_json, voc_object, voc_xml

ROWS = [b"0 0.5 0.5 0.2 0.2\n2 .1 .1 .3 .1 .2 .4\n", b"\xef\xbb\xbf1 1 1 1 1\r\n\r0 5e-1 0.5 0.2 0.2"]
ROW_TOKENS = [
    b"nan",
    b"-",
    b"1e999",
    b"1_0",
    b"\0",
    b"\xff",
    b"\r",
    b"\x0b",
    b"9" * 400,
    b" 0.5",
    b"0 .5 .5 1 1\n",
]
XML = [
    voc_xml(voc_object("a", 1, 2, 30, 40) + voc_object("b", 0.5, 1e1, 20, 30)),
    voc_xml(voc_object("c"), ""),
]
XML_TOKENS = [
    b"<object>",
    b"</object>",
    b"<bndbox>",
    b"<name>",
    b"&lt;",
    b"&x;",
    b"<![CDATA[",
    b"]]>",
    b"<!--",
    b"<!DOCTYPE a [<!ENTITY x 'y'>]>",
    b'<?xml version="1.0" encoding="utf-7"?>',
    b"\xff\xfe",
    b"nan",
    b"1e999",
]
JSON = [
    coco_json(),
    coco_json(
        annotations=[{"id": "x", "image_id": 7.0, "category_id": 10, "bbox": [1, 2, 3, 4.5], "iscrowd": 1}]
    ),
]
JSON_TOKENS = [
    b"[",
    b"{",
    b'{"id":',
    b"null",
    b"true",
    b"NaN",
    b"-Infinity",
    b"1e999",
    b"9" * 400,
    b'"\\ud800"',
    b"\xff",
    b'"\\u0000"',
    b'"../../x.jpg"',
]


@fuzzed
@given(mutated(ROWS, ROW_TOKENS))
def test_yolo_labels(data: bytes) -> None:
    labels, problems = yolo.parse_labels(data, "a.txt", 3, H, W)
    check_labels(labels, 3)
    assert all(len(str(problem)) < 500 for problem in problems)


@fuzzed
@given(mutated([b"10,20,30,40,2 1,1,5,5,0", b"0.5,1e1,20,30,1\t"], [b",", b" ", b"\r", b"-", *ROW_TOKENS]))
def test_boxes_of_annotation_lists(data: bytes) -> None:
    source = ListLabels(Path("a.txt"), tuple((1, text) for text in data.split()))
    labels, problems = source.read(("a", "b", "c"), H, W)
    if labels is None:
        assert problems[-1].reason.startswith("no object of the image is usable")
    else:
        check_labels(labels, 3)
    assert all(len(str(problem)) < 500 for problem in problems)


@fuzzed
@given(mutated(XML, XML_TOKENS))
def test_voc_annotations(data: bytes) -> None:
    labels, problems = voc.parse_annotation(data, "a.xml", ("a", "b"), H, W)
    if labels is None:
        assert len(problems) == 1
    else:
        check_labels(labels, 2)
    assert all(len(str(problem)) < 500 for problem in problems)


def check_coco(data: bytes) -> None:
    try:
        images, problems = coco.parse(data, "a.json", ("a", "b", "c"))
    except UserError as error:
        assert len(str(error)) < 1000 and "\n" not in str(error)
        return
    for image in images:
        labels, more = coco.CocoLabels(Path("a.json"), tuple(image.rows), image.stated_size).read((), H, W)
        problems += more
        if labels is None:
            assert more[-1].reason.startswith("no object of the image is usable")
        else:
            check_labels(labels, 3)
    assert all(len(str(problem)) < 1000 for problem in problems)


NESTED = b"[" * 900 + b"]" * 900  # json reads it; repr() of it overflows the stack


def with_nested(key: bytes) -> bytes:
    """A sound file but for the value of one key."""
    return re.sub(rb'"' + key + rb'": ("[^"]*"|\d+|\[[^]]*\])', b'"' + key + b'": ' + NESTED, coco_json())


@fuzzed
@given(mutated(JSON, JSON_TOKENS))
@example(b"[" * 100_000)
@example(b'{"a":' * 100_000)
@example(b"9" * 5000)
@example(with_nested(b"id"))
@example(with_nested(b"name"))
@example(with_nested(b"category_id"))
@example(with_nested(b"bbox"))
@example(with_nested(b"height"))
@example(coco_json(images=[{"id": 7, "file_name": "a.jpg", "height": 10**4000, "width": 1}]))
def test_coco_bytes(data: bytes) -> None:
    check_coco(data)


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(("a", 7, 10)),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)
ROW = st.fixed_dictionaries(
    {},
    optional={
        "id": VALUES,
        "image_id": st.just(7) | VALUES,
        "category_id": st.just(10) | VALUES,
        "name": VALUES,
        "bbox": st.lists(VALUES, min_size=4, max_size=4) | VALUES,
        "area": VALUES,
        "iscrowd": VALUES,
        "file_name": st.just("a.jpg") | VALUES,
        "height": VALUES,
        "width": VALUES,
        "supercategory": VALUES,
    },
)
ROWS_OF = st.lists(ROW | VALUES, max_size=4)


@fuzzed
@given(images=ROWS_OF, categories=ROWS_OF, annotations=ROWS_OF)
def test_coco_values(images: list[Any], categories: list[Any], annotations: list[Any]) -> None:
    content = {"images": images, "categories": categories, "annotations": annotations}
    check_coco(json.dumps(content).encode())


@fuzzed
@given(
    data=mutated(
        [b"./images/a.jpg\nb.png\r\n/etc/c.jpg\n", b"2007_000027\n2007_000032 -1\n"],
        [b"../", b"\0", b"\xff.jpg\n", b"~", b"\r", b" 1", b"a" * 300, b"\n", b"//", b".jpg"],
    ),
)
def test_lists_of_images(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    folder = tmp_path_factory.getbasetemp() / "lists"
    for name in ("ImageSets", "Annotations", "JPEGImages"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    file = folder / "ImageSets" / "list.txt"
    file.write_bytes(data)
    rules = LabelRules()
    for read in (
        lambda: yolo.list_file(file, folder, Folders(), ("a", "b"), rules),
        lambda: voc.list_file(file, Folders(), rules),
    ):
        try:
            entries, problems = read()
        except UserError as error:
            assert "it is binary, no text" in str(error) or "UTF-" in str(error)
            continue
        assert all(entry.named_at and entry.labels.file.is_absolute() for entry in entries)
        assert all(len(str(problem)) < 1000 for problem in problems)
