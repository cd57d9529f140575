"""COCO JSON: what annotations and categories become, and that every bad one is reported."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from horovod_yolo.core.errors import UserError
from horovod_yolo.data.formats import coco
from tests.unit.data.label_files import (
    H,
    W,
    check_labels,
    coco_json,
    read_coco,
)


def test_coco_keeps_crowd_and_stated_area() -> None:
    annotations = [
        {"id": 0, "image_id": 7, "category_id": 10, "bbox": [10, 20, 30, 40], "area": 700.5, "iscrowd": 1},
        {"id": "x", "image_id": 7, "category_id": 0.0, "bbox": [1.5, 2, 3, 4], "iscrowd": 0},
    ]
    labels, problems = read_coco(coco_json(annotations=annotations))
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
    labels, problems = read_coco(coco_json(annotations=[good, bad]))
    assert len(labels.classes) == 1
    assert len(problems) == 1
    assert problems[0].startswith(f"a.json: {reason}")


def test_coco_many_annotations_left_out_for_one_reason_make_one_problem() -> None:
    strays = [{"id": i, "image_id": 99, "category_id": 0, "bbox": [1, 2, 3, 4]} for i in range(500)]
    _, problems = coco.parse(coco_json(annotations=strays), "a.json", ("a", "b", "c"))
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
    kept, problems = coco.parse(coco_json(images=images), "a.json", ("a", "b", "c"))
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


@settings(max_examples=80)
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
        check_labels(labels, 3)
        assert pickle.loads(pickle.dumps(source)).stated_size == source.stated_size
