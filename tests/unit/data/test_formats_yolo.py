"""YOLO txt: what each row becomes, where labels lie, and that every bad row is reported."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from horovod_yolo.data import formats
from horovod_yolo.data.formats import yolo
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
    monkeypatch.setattr(formats, "_BYTES_AT_ONCE", at_once)
    data = b"\xef\xbb\xbf" + end.join([b"a", b"", b" bc ", b"", b"", b"d e", b"f"])
    assert list(formats.lines(data)) == [(1, b"a"), (3, b"bc"), (6, b"d e"), (7, b"f")]
    assert list(formats.lines(data + end)) == list(formats.lines(data))
