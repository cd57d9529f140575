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
from horovod_yolo.data.formats import LabelRules, coco
from horovod_yolo.data.formats.coco_categories import map_categories
from horovod_yolo.data.formats.rules import FIRST
from tests.unit.data.label_files import (
    H,
    W,
    check_labels,
    coco_json,
    read_coco,
)

RULES = LabelRules()


def test_an_id_of_two_categories_is_refused() -> None:
    """Whose the boxes are, nobody knows; the last one got them."""
    twice = [{"id": 1, "name": "red"}, {"id": 1.0, "name": "blue"}]
    with pytest.raises(UserError, match="category id 1 is that of 'red' and of 'blue'"):
        map_categories(twice, {1}, ("red", "blue"), "a.json", RULES)
    same = [{"id": 1, "name": "red"}, {"id": 1, "name": "red"}]
    assert map_categories(same, {1}, ("red", "blue"), "a.json", RULES) == {1: 0}


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


def _mapped(
    categories: list[object], used: set[int | str], names: tuple[str, ...], rules: LabelRules = RULES
) -> dict[int | str, int]:
    return map_categories(categories, used, names, "f", rules)


def test_categories_map_by_name_whatever_their_ids_case_and_spaces() -> None:
    categories = _categories((90, "B b", ""), (3, "a", ""), ("k", "c ", ""))
    assert _mapped(categories, {90, 3}, ("a", "bB", "C")) == {90: 1, 3: 0, "k": 2}


def test_cat_and_dog_are_not_exchanged() -> None:
    categories = _categories((1, "Dog", ""), (2, "Cat", ""))
    assert _mapped(categories, {1, 2}, ("cat", "dog")) == {1: 1, 2: 0}


def test_categories_map_by_name_past_roboflows_unused_head() -> None:
    categories = _categories((0, "cells", "none"), (1, "rbc", "cells"), (2, "wbc", "cells"))
    assert _mapped(categories, {1, 2}, ("rbc", "wbc")) == {1: 0, 2: 1}


def test_a_subset_of_the_categories_may_be_trained() -> None:
    categories = _categories((1, "a", ""), (2, "b", ""))
    assert _mapped(categories, {1, 2}, ("b",)) == {2: 0}
    assert _mapped(categories, {1, 2}, ("c", "b", "a")) == {1: 2, 2: 1}


def test_objects_of_other_categories_are_counted_by_name() -> None:
    annotations = [
        {"id": i, "image_id": 7, "category_id": 10 * (i % 3), "bbox": [i, 2, 3, 4]} for i in range(9)
    ]
    images, problems = coco.parse(coco_json(annotations=annotations), "a.json", ("b",))
    assert len(images[0].rows) == 3
    assert [(p.kind, p.about, p.count) for p in problems] == [
        ("other class", "a", 3),
        ("other class", "c", 3),
    ]


@pytest.mark.parametrize(
    ("names", "what"),
    [
        (("a", "bb"), r"differ: 'b' here, 'bb' there\. They are 'a', 'b'; and 'a', 'bb'"),
        (("x",), r"have no name in common\. They are 'a', 'b'; and 'x'"),
        (("x", "y"), r"have no name in common\. They are 'a', 'b'; and 'x', 'y'"),
    ],
)
def test_categories_that_fit_no_way_are_an_error(names: tuple[str, ...], what: str) -> None:
    categories = _categories((1, "a", ""), (2, "b", ""))
    with pytest.raises(UserError, match=f"^f: the categories .*data.yaml {what}.*--class-map OLD=NEW"):
        _mapped(categories, {1, 2}, names)


def test_a_class_map_of_a_name_that_is_not_there_is_noted() -> None:
    rules = LabelRules(class_map=(("Hnd", "b"), ("A", "a")))
    _, problems = coco.parse(coco_json(), "a.json", ("a", "b", "c"), rules)
    (note,) = [str(problem) for problem in problems if problem.kind == "note"]
    assert note == "a.json: --class-map Hnd=b: no category here is called 'Hnd'"


def test_a_class_map_settles_it() -> None:
    categories = _categories((1, "Katze", ""), (2, "Hund", ""), (3, "Maus", ""))
    rules = LabelRules(class_map=(("katze", "cat"), ("Hund", "dog"), ("Maus", "")))
    assert _mapped(categories, {1, 2, 3}, ("dog", "cat"), rules) == {1: 1, 2: 0}
    with pytest.raises(UserError, match="--class-map katze=cat: 'cat' is none of 'dog', 'cow'"):
        _mapped(categories, {1, 2, 3}, ("dog", "cow"), rules)


def test_a_run_of_the_first_release_goes_on_by_position() -> None:
    categories = _categories((30, "z", ""), (2, "y", ""), (11, "x", ""))
    assert _mapped(categories, {2}, ("p", "q", "r"), LabelRules(version=FIRST)) == {2: 0, 11: 1, 30: 2}


def test_categories_of_one_class_are_noted() -> None:
    categories = [{"id": 0, "name": "a"}, {"id": 1, "name": "A"}]
    _, problems = coco.parse(coco_json(categories=categories, annotations=[]), "a.json", ("a",))
    assert [(p.kind, p.reason) for p in problems] == [
        ("note", "categories 'a' (0) and 'A' (1) are one class")
    ]


def test_an_image_of_bad_annotations_alone_is_left_out_one_of_other_categories_is_not() -> None:
    unusable = {"id": 0, "image_id": 7, "category_id": 10, "bbox": [1, 2, 0, 4]}
    for wrong in (unusable, {**unusable, "category_id": 99}):
        images, problems = coco.parse(coco_json(annotations=[wrong]), "a.json", ("b",))
        labels = coco.CocoLabels(Path("a.json"), tuple(images[0].rows), None, RULES, images[0].lost)
        found, more = labels.read(("b",), H, W)
        assert found is None
        assert "no object of the image is usable" in str([*problems, *more][-1])
    other = {**unusable, "category_id": 0}
    images, _ = coco.parse(coco_json(annotations=[other]), "a.json", ("b",))
    found, _ = coco.CocoLabels(Path("a.json"), tuple(images[0].rows)).read(("b",), H, W)
    assert found is not None and len(found.classes) == 0


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
