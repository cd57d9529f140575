"""What a file says of itself comes back as it was, and damage ends in a line."""

from __future__ import annotations

from dataclasses import replace

import pytest

from horovod_yolo.core.errors import UserError
from horovod_yolo.export.about import About
from horovod_yolo.models.suppression import Thresholds

ABOUT = About(
    model="yolo26n",
    names=("cat", 'Größe, "x"', "dog"),
    stride=32,
    imgsz=(384, 640),
    batch=4,
    precision="fp16",
    head="one2one",
    finds_once=True,
    suppression=Thresholds(confidence=0.25, iou=0.45, most=7, multi_label=False),
    license="AGPL-3.0 (somewhere)",
    data="data.yaml",
    class_map=(("Hund", "dog"), ("x", "")),
)


def test_it_comes_back() -> None:
    for about in (ABOUT, replace(ABOUT, batch=0, suppression=None, head="", finds_once=False, class_map=())):
        assert About.of_texts(about.as_texts(), "f") == about


def test_no_licence_is_none() -> None:
    """Nothing is written over what is not stated."""
    texts = replace(ABOUT, license="").as_texts()
    assert "license" not in texts and not any("Apache" in text for text in texts.values())


def test_a_file_of_others_says_nothing_to_us() -> None:
    assert About.of_texts({"author": "Somebody", "names": "{0: 'a'}"}, "f") is None
    assert About.of_texts({}, "f") is None


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("names", "["),
        ("names", "[1]"),
        ("names", "{}"),
        ("names", '{"1": "a"}'),
        ("names", "[" * 100_000),
        ("stride", "0"),
        ("stride", "1e3"),
        ("imgsz", "[640]"),
        ("imgsz", "[0, 640]"),
        ("imgsz", "640"),
        ("batch", "-1"),
        ("nms", '{"iou": 2}'),
        ("nms", '{"confidence": 2, "iou": 0.5, "most": 1, "multi_label": true, "agnostic": false}'),
        ("class_map", "[1]"),
    ],
)
def test_damage_is_a_line(key: str, text: str) -> None:
    with pytest.raises(UserError, match=r"^best\.onnx: its metadata is damaged") as caught:
        About.of_texts({**ABOUT.as_texts(), key: text}, "best.onnx")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


def test_names_are_shown_without_codes_for_the_terminal() -> None:
    about = About.of_texts({**ABOUT.as_texts(), "names": '{"0": "a\\u001b[2J\\nb"}'}, "f")
    assert about is not None and about.names == ("a [2J b",)
