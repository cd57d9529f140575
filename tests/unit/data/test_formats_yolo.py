"""YOLO txt: what each row becomes, where labels lie, and that every bad row is reported."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from horovod_yolo.data import formats
from horovod_yolo.data.formats import LabelRules, text, yolo
from horovod_yolo.data.formats.rules import FIRST
from tests.unit.data.label_files import (
    H,
    W,
    check_labels,
    read_yolo,
)


def test_yolo_row_is_class_centre_and_size() -> None:
    labels, problems = read_yolo("1 0.5 0.5 0.2 0.4\n")
    assert problems == []
    assert labels.classes.tolist() == [1]
    np.testing.assert_allclose(labels.boxes_xyxy, [[80, 30, 120, 70]], rtol=1e-6)
    np.testing.assert_allclose(labels.areas, [40 * 40], rtol=1e-6)
    assert not labels.crowd.any()


def test_yolo_polygon_becomes_its_bounding_box() -> None:
    labels, problems = read_yolo("2 0.1 0.9 0.3 0.2 0.2 0.5\n")
    assert problems == []
    np.testing.assert_allclose(labels.boxes_xyxy, [[20, 20, 60, 90]], rtol=1e-6)


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_yolo_line_ends_blank_lines_and_byte_order_mark(end: str) -> None:
    text = end.join(["\ufeff0 .5 .5 .1 .1", "", "  1\t5e-1 .5 +.2 .2  ", "0 .5 .5"])
    labels, problems = read_yolo(text)
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
    labels, problems = read_yolo(f"0 .25 .5 .5 .5\n{row}\n1 .5 .5 .5 .5\n")
    assert labels.classes.tolist() == [0, 1]
    assert len(problems) == 1
    assert problems[0].startswith(f"a.txt:2: {reason}")


@pytest.mark.parametrize("columns", [b" .5 .25" * 1_000_000, b" x" * 2_000_000], ids=["numbers", "words"])
def test_a_row_of_millions_of_columns_is_a_short_problem(
    monkeypatch: pytest.MonkeyPatch, columns: bytes
) -> None:
    """None of them is looked at: there may be as many as a file has room for."""
    looked_at: list[bytes] = []
    monkeypatch.setattr(yolo, "float", lambda text: looked_at.append(text) or float(text), raising=False)
    labels, problems = read_yolo(b"0" + columns + b"\n1 .5 .5 .5 .5\n")
    assert problems == ["a.txt:1: 2000001 columns: more than 100001 are not read"]
    assert (labels.classes.size, len(looked_at)) == (1, 5)


def test_the_first_column_that_is_no_number_is_named() -> None:
    good = " .5" * 9_998
    for bad in ("x", "1_0", "nan", "1e999"):
        labels, (problem,) = read_yolo(f"0{good} {bad} 2_0\n1 .5 .5 .5 .5\n")
        assert labels.classes.tolist() == [1] and problem.startswith(f"a.txt:1: '{bad}' is not a")
    labels, problems = read_yolo(f"0 .1 .2 .3 .2{good} .5 .9\n")  # a polygon, and no box with key points
    assert (labels.classes.tolist(), problems) == ([0], [])
    np.testing.assert_allclose(labels.boxes_xyxy, [[20, 20, 100, 90]], rtol=1e-6)


def test_yolo_overhang_is_clipped_without_a_word() -> None:
    labels, problems = read_yolo("0 0.0 0.5 0.2 1.0005\n0 1.0005 0.5 0.1 0.1\n")
    assert problems == []
    np.testing.assert_allclose(labels.boxes_xyxy, [[0, 0, 20, 100], [190.1, 45, 200, 55]], rtol=1e-5)


def test_yolo_file_full_of_rubbish_ends_its_report() -> None:
    labels, problems = read_yolo("x\n" * 5000 + "0 .5 .5 .1 .1\n")
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


@settings(max_examples=120)
@given(data=label_files)
@example(data=b"0 .5 .5 .1 .1".decode().encode("utf-16"))
def test_yolo_each_row_of_any_bytes_is_a_box_or_a_problem(data: bytes) -> None:
    labels, problems = yolo.parse_labels(data, "a.txt", 3, H, W)
    check_labels(labels, 3)
    filled = [i for i, line in enumerate(data.removeprefix(b"\xef\xbb\xbf").splitlines(), 1) if line.strip()]
    assert len(labels.classes) + len(problems) == len(filled)
    assert {problem.line for problem in problems} <= set(filled)
    for problem in problems:
        assert str(problem).startswith(f"a.txt:{problem.line}: ")
        assert "\n" not in problem.reason and len(problem.reason) < 300


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


@pytest.mark.parametrize("end", [b"\n", b"\r", b"\r\n"])
@pytest.mark.parametrize("at_once", [1, 5, 6, 7, 1000])
def test_lines_are_numbered_alike_however_many_are_looked_at_at_once(
    monkeypatch: pytest.MonkeyPatch, end: bytes, at_once: int
) -> None:
    monkeypatch.setattr(text, "_BYTES_AT_ONCE", at_once)
    data = b"\xef\xbb\xbf" + end.join([b"a", b"", b" bc ", b"", b"", b"d e", b"f"])
    assert list(text.lines(data)) == [(1, b"a"), (3, b"bc"), (6, b"d e"), (7, b"f")]
    assert list(text.lines(data + end)) == list(text.lines(data))


@pytest.mark.parametrize(
    ("row", "about"), [("3 .5 .5 .1 .1", "3"), ("-1 .5 .5 .1 .1", "-1"), ("7.0 .5 .5 .1 .1", "7.0")]
)
def test_a_class_that_is_none_of_names_is_told_from_other_mistakes(row: str, about: str) -> None:
    _, problems = yolo.parse_labels(row.encode(), "a.txt", 3, H, W)
    assert [(p.kind, p.about) for p in problems] == [("bad class", about)]


POSE = "0 0.5 0.5 0.4 0.4 0.4 0.5 2 0.6 0.5 1 0.3 0.5 0 0.7 0.6 2"


@pytest.mark.parametrize("row", [POSE, "0 0.5 0.5 0.4 0.4 0.4 0.5 1", "0 .5 .5 .4 .4 .4 .5 1 .6 .5 1"])
def test_key_points_are_no_polygon(row: str) -> None:
    labels, (problem,) = yolo.parse_labels(row.encode(), "a.txt", 1, H, W)
    points = (len(row.split()) - 5) // 3
    assert len(labels.classes) == 0
    assert f"kpt_shape: [{points}, 3]" in problem.reason or len(row.split()) == 8
    labels, problems = yolo.parse_labels(row.encode(), "a.txt", 1, H, W, LabelRules(keypoints=(points, 3)))
    assert problems == []
    np.testing.assert_allclose(labels.boxes_xyxy, [[60, 30, 140, 70]], rtol=1e-6)


def test_with_kpt_shape_a_polygon_is_a_mistake_and_a_plain_box_is_none() -> None:
    rules = LabelRules(keypoints=(2, 2))
    labels, problems = yolo.parse_labels(
        b"0 .5 .5 .4 .4\n0 .5 .5 .4 .2 .1 .1 .2 .2\n", "a.txt", 1, H, W, rules
    )
    assert len(labels.classes) == 2 and problems == []
    _, (problem,) = yolo.parse_labels(b"0 .1 .1 .5 .1 .5 .5", "a.txt", 1, H, W, rules)
    assert "7 columns: with kpt_shape [2, 2] a row is" in problem.reason


PLAIN = "0 .5 .5 .4 .4"
TWO = f"{PLAIN} .4 .5 .6 .5"


@pytest.mark.parametrize(
    ("rows", "suspected"),
    [
        ([TWO], [("pose", "2", 1)]),
        ([TWO, f"{PLAIN} 0 0 .6 .5"], [("pose", "2", 2)]),  # of a point that is not seen: 0 0
        ([TWO, PLAIN], []),
        ([TWO, f"{PLAIN} .4 .5 .6 .5 .5 .6"], []),  # of another length
        ([f"{PLAIN} .9 .5 .6 .5"], []),  # beyond the box
        (["0 .8 .8 .9 .8 .9 .9 .8 .9"], []),  # the box would reach beyond the image
    ],
)
def test_rows_that_may_be_boxes_with_points_of_two_numbers_are_counted(
    rows: list[str], suspected: list[tuple[str, str, int]]
) -> None:
    data = "\n".join(rows).encode()
    labels, problems = yolo.parse_labels(data, "a.txt", 1, H, W)
    assert len(labels.classes) == len(rows)
    assert [(p.kind, p.about, p.count) for p in problems] == suspected
    rules = LabelRules(keypoints=(2, 2))
    labels, problems = yolo.parse_labels(TWO.encode(), "a.txt", 1, H, W, rules)
    assert problems == []
    np.testing.assert_allclose(labels.boxes_xyxy, [[60, 30, 140, 70]], rtol=1e-6)


def test_polygons_that_touch_the_edge_stay_polygons() -> None:
    labels, problems = read_yolo("0 0.1 0.2 0.9 0.9 0.5 0.5 1 0.2 0.1 0\n")
    assert problems == [] and len(labels.classes) == 1


def test_an_image_whose_every_row_is_bad_is_no_background(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    for content, usable in ((b"0 .5 .5 0 .1\n", False), (b"", True), (b"9 .5 .5 .1 .1\n", True)):
        file.write_bytes(content)
        labels, _ = yolo.YoloLabels(file).read(["a"], H, W)
        assert (labels is not None) == usable
        labels, _ = yolo.YoloLabels(file, LabelRules(version=FIRST)).read(["a"], H, W)
        assert labels is not None, "as the run began"


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_encodings_are_named(tmp_path: Path, encoding: str) -> None:
    file = tmp_path / "a.txt"
    file.write_text("0 0.5 0.5 0.1 0.1\n" * 3, encoding=encoding)
    labels, (problem,) = yolo.YoloLabels(file).read(["a"], H, W)
    assert labels is None
    assert f"it is {encoding[:6].upper()} text: save it as UTF-8" in problem.reason


def test_rows_separated_by_commas_say_so() -> None:
    _, problems = read_yolo("0,0.5,0.5,0.1,0.1\n")
    assert problems[0].endswith("separated by spaces")
    labels, problems = read_yolo("0\t0.5\t0.5 0.1\t0.1 \t\n")
    assert len(labels.classes) == 1 and problems == []
