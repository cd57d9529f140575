"""Sizes of the models without anchors, as published."""

from __future__ import annotations

import pytest

from horovod_yolo.models.detector import published_names

from .helpers import on_meta

PARAMETERS = {  # n, s, m, l, x with 80 classes
    "yolov8": (3_157_200, 11_166_560, 25_902_640, 43_691_520, 68_229_648),
    "yolo11": (2_624_080, 9_458_752, 20_114_688, 25_372_160, 56_966_176),
    "yolo26": (2_572_280, 10_009_784, 21_896_248, 26_299_704, 58_993_368),
}
KEYS = {
    "yolov8": (355, 355, 475, 595, 595),
    "yolo11": (499, 499, 649, 1015, 1015),
    "yolo26": (708, 708, 768, 1092, 1092),
}
TENSORS = {
    "yolov8": (184, 184, 244, 304, 304),
    "yolo11": (256, 256, 331, 514, 514),
    "yolo26": (366, 366, 396, 558, 558),
}


@pytest.mark.parametrize("series", PARAMETERS)
@pytest.mark.parametrize("place", range(5))
def test_parameters_tensors_and_keys(series: str, place: int) -> None:
    model = on_meta(series + "nsmlx"[place])
    parameters = list(model.parameters())
    assert sum(p.numel() for p in parameters) == PARAMETERS[series][place]
    assert len(parameters) == TENSORS[series][place]
    assert len(model.state_dict()) == KEYS[series][place]
    fixed = [name for name, p in model.named_parameters() if not p.requires_grad]
    assert fixed == ([] if series == "yolo26" else ["head.dfl.conv.weight"])


ROWS = {  # parameters of each row; - has none
    "yolov8n": "464 4672 7360 18560 49664 73984 197632 295424 460288 164608 - - 148224 - - 37248 36992"
    " - 123648 147712 - 493056 897664",
    "yolo11n": "464 4672 6640 36992 26080 147712 87040 295424 346112 164608 249728 - - 111296 - - 32096 36992"
    " - 86720 147712 - 378880 464912",
    "yolo26n": "464 4672 6640 36992 26080 147712 87040 295424 346112 164608 249728 - - 119808 - - 34304 36992"
    " - 95232 147712 - 463104 309656",
    "yolo26m": "1856 73984 111872 590336 444928 2360320 1380352 2360320 1380352 656896 990976 - - 1642496 - -"
    " 542720 590336 - 1511424 2360320 - 1974784 2921976",
}


@pytest.mark.parametrize("name", ROWS)
def test_parameters_by_row_of_the_published_table(name: str) -> None:
    model = on_meta(name)
    found = [0] * (model.head.layer + 1)
    trained = dict(model.named_parameters())
    for key, published in zip(model.state_dict(), published_names(model), strict=True):
        if key in trained:
            found[int(published.split(".")[1])] += trained[key].numel()
    assert found == [0 if word == "-" else int(word) for word in ROWS[name].split()]


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("yolov5nu", 2_654_816),
        ("yolov5su", 9_153_152),
        ("yolov3u", 103_754_144),
        ("yolov3-tinyu", 12_173_248),
    ],
)
def test_older_bodies_with_the_newer_head(name: str, parameters: int) -> None:
    assert sum(p.numel() for p in on_meta(name).parameters()) == parameters
