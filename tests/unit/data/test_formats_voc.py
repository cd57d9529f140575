"""VOC XML: what each object becomes, and that every bad one is reported."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from horovod_yolo.data.formats import LabelRules, voc
from horovod_yolo.data.formats.rules import FIRST
from tests.unit.data.label_files import (
    H,
    W,
    check_labels,
    read_voc,
    voc_object,
    voc_xml,
)


def test_voc_keeps_floats_difficult_objects_and_zero() -> None:
    labels, problems = read_voc(voc_xml(voc_object("b", 0.0, 1.25, 30.5, 40) + voc_object(" a ", 1, 2, 3, 4)))
    assert problems == []
    assert labels is not None
    assert labels.classes.tolist() == [1, 0]
    np.testing.assert_array_equal(labels.boxes_xyxy, [[0, 1.25, 30.5, 40], [1, 2, 3, 4]])


def test_voc_parts_of_a_person_are_not_objects() -> None:
    inner = "<object><name>a</name><bndbox><xmin>1</xmin><ymin>2</ymin><xmax>9</xmax><ymax>9</ymax></bndbox>"
    part = f"<part>{inner.removeprefix('<object>').replace('<name>a', '<name>head').replace('9', '4')}</part>"
    labels, problems = read_voc(voc_xml(f"{inner}{part}</object>"))
    assert problems == []
    assert labels is not None
    np.testing.assert_array_equal(labels.boxes_xyxy, [[1, 2, 9, 9]])


def test_voc_names_that_are_none_of_ours_are_counted() -> None:
    data = voc_xml(
        voc_object("cat", 1, 2, 3, 4) + voc_object("A", 1, 2, 3, 4) + voc_object("cat", 5, 6, 7, 8)
    )
    labels, problems = voc.parse_annotation(data, "a.xml", ("a", "b"), H, W)
    assert labels is not None and labels.classes.tolist() == [0]
    assert [(p.kind, p.about, p.count) for p in problems] == [("stranger", "cat", 2)]
    rules = LabelRules(class_map=(("Cat", "b"),))
    labels, problems = voc.parse_annotation(data, "a.xml", ("a", "b"), H, W, rules)
    assert labels is not None and labels.classes.tolist() == [1, 0, 1]
    assert [(p.kind, p.about, p.count) for p in problems] == [("mapped", "Cat", 2)]


def test_voc_image_of_bad_objects_alone_is_left_out(tmp_path: Path) -> None:
    file = tmp_path / "a.xml"
    file.write_bytes(voc_xml(voc_object("a", 5, 2, 5, 4)))
    labels, problems = voc.VocLabels(file).read(("a",), H, W)
    assert labels is None and "no object of the image is usable" in str(problems[-1])
    labels, _ = voc.VocLabels(file, LabelRules(version=FIRST)).read(("a",), H, W)
    assert labels is not None
    file.write_bytes(voc_xml(voc_object("other", 1, 2, 3, 4)))
    labels, _ = voc.VocLabels(file).read(("a",), H, W)
    assert labels is not None and len(labels.classes) == 0


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ("<object><bndbox/></object>\n", "object has no name"),
        (voc_object("a", 1, 2, 3), "ymax 'is missing' is not a finite number"),
        (voc_object("a", 1, 2, "x", 4), "xmax 'x' is not a finite number"),
        (voc_object("a", 1, "nan", 3, 4), "ymin 'nan' is not a finite number"),
        (voc_object("a", 5, 2, 5, 4), "box (5, 2, 5, 4) has no area"),
        (voc_object("a", 5, 4, 9, 2), "box (5, 4, 9, 2) has no area"),
        (voc_object("a", W, 2, W + 9, 9), "box has no area inside the 200x100 image"),
        (voc_object("b", 1, 2, 3, 4), "box repeats line 3"),
    ],
)
def test_voc_bad_object_is_named_with_its_line_and_left_out(bad: str, reason: str) -> None:
    labels, problems = read_voc(voc_xml(voc_object("b", 1, 2, 3, 4) + bad + voc_object("a", 1, 2, 3, 4)))
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
    labels, problems = read_voc(data)
    assert labels is None
    assert len(problems) == 1
    assert problems[0].startswith(reason)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_voc_entities_are_refused_before_they_grow(encoding: str) -> None:
    levels = "".join(f'<!ENTITY e{i} "{f"&e{i - 1};" * 10}">' for i in range(1, 12))
    bomb = f'<!DOCTYPE a [<!ENTITY e0 "{"x" * 100}">{levels}]>\n<annotation>&e11;</annotation>'
    labels, problems = read_voc(bomb.encode(encoding))
    assert labels is None
    assert problems == [
        "a.xml:1: labels cannot be read: a document type (<!DOCTYPE ...>) is not read: it may define entities"
    ]


def test_voc_very_deep_xml_is_harmless() -> None:
    labels, problems = read_voc(b"<a>" * 100_000 + b"</a>" * 100_000)
    assert labels is not None and problems == []


@settings(max_examples=80)
@given(
    data=st.one_of(
        st.binary(max_size=200),
        st.lists(
            st.tuples(st.sampled_from(["a", "b", "cat", ""]), *[st.floats() | st.integers(-5, 300)] * 4),
            max_size=6,
        ).map(lambda objects: voc_xml("".join(voc_object(*values) for values in objects))),
        st.binary(max_size=40).map(
            lambda noise: voc_xml(voc_object("a", 1, 2, 3, 4))[: 150 - len(noise)] + noise
        ),
    )
)
def test_voc_any_bytes_give_valid_boxes_or_problems(data: bytes) -> None:
    labels, problems = voc.parse_annotation(data, "a.xml", ("a", "b"), H, W)
    for problem in problems:
        if problem.kind != "stranger":
            assert str(problem).startswith(f"a.xml:{problem.line}: ")
    if labels is None:
        assert len(problems) == 1
        return
    check_labels(labels, 2)
    assert len(labels.classes) + sum(problem.count for problem in problems) == data.count(b"<object>")
