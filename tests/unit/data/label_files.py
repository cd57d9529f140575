"""Labels in each format, written and read in one line, for an image of H x W pixels."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from horovod_yolo.data.formats import Labels, coco, voc, yolo

H, W = 100, 200


def check_labels(labels: Labels, num_classes: int) -> None:
    n = len(labels.classes)
    assert labels.boxes_xyxy.shape == (n, 4)
    assert labels.crowd.shape == labels.areas.shape == (n,)
    assert (labels.classes.dtype, labels.boxes_xyxy.dtype) == (np.int64, np.float32)
    assert (labels.crowd.dtype, labels.areas.dtype) == (np.bool_, np.float32)
    assert ((labels.classes >= 0) & (labels.classes < num_classes)).all()
    assert (labels.boxes_xyxy >= 0).all()
    assert (labels.boxes_xyxy <= [W, H, W, H]).all()
    assert (labels.boxes_xyxy[:, 2:] > labels.boxes_xyxy[:, :2]).all()


def read_yolo(text: str | bytes, num_classes: int = 3) -> tuple[Labels, list[str]]:
    data = text if isinstance(text, bytes) else text.encode()
    labels, problems = yolo.parse_labels(data, "a.txt", num_classes, H, W)
    return labels, [str(problem) for problem in problems]


def coco_json(**changes: object) -> bytes:
    content: dict[str, object] = {
        "images": [{"id": 7, "file_name": "a.jpg", "height": H, "width": W}],
        "categories": [{"id": i * 10, "name": name} for i, name in enumerate("abc")],
        "annotations": [{"id": 0, "image_id": 7, "category_id": 10, "bbox": [10, 20, 30, 40]}],
    }
    return json.dumps(content | changes).encode()


def read_coco(data: bytes, names: Sequence[str] = ("a", "b", "c")) -> tuple[Labels, list[str]]:
    images, problems = coco.parse(data, "a.json", names)
    labels, more = coco.CocoLabels(Path("a.json"), tuple(images[0].rows), images[0].stated_size).read(
        names, H, W
    )
    assert labels is not None
    return labels, [str(problem) for problem in problems + more]


def voc_object(name: object, *corners: object) -> str:
    tags = "".join(
        f"<{tag}>{value}</{tag}>"
        for tag, value in zip(("xmin", "ymin", "xmax", "ymax"), corners, strict=False)
    )
    return f"<object>\n<name>{name}</name><difficult>1</difficult><bndbox>{tags}</bndbox></object>\n"


def voc_xml(
    objects: str, size: str = f"<size><width>{W}</width><height>{H}</height><depth>3</depth></size>"
) -> bytes:
    return f"<annotation>\n{size}\n{objects}</annotation>".encode()


def read_voc(data: bytes) -> tuple[Labels | None, list[str]]:
    labels, problems = voc.parse_annotation(data, "a.xml", ("a", "b"), H, W)
    return labels, [str(problem) for problem in problems]
