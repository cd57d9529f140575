"""Annotations as the files of other formats: YOLO txt, VOC XML, COCO JSON, annotation lists.

Boxes are written so that reading them again gives the same pixels, to a thousandth of one at worst. YOLO, VOC
and lists have no crowds, which are not trained on: they are left out, and COCO's areas with them.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import Any
from xml.sax.saxutils import escape

import numpy as np

from horovod_yolo.core.boxes import xyxy_to_ltwh
from horovod_yolo.data.annotations import Record


def yolo_rows(record: Record) -> bytes:
    """``class cx cy w h`` of each object, as shares of the image's size."""
    boxes = record.boxes_xyxy.astype(np.float64) / ([record.width, record.height] * 2)
    rows = []
    for class_id, (x1, y1, x2, y2) in _single(record, boxes):
        rows.append(f"{class_id} {(x1 + x2) / 2!r} {(y1 + y2) / 2!r} {x2 - x1!r} {y2 - y1!r}\n")
    return "".join(rows).encode()


def list_line(name: str, record: Record) -> bytes:
    """A line of an annotation list: the image, and ``x1,y1,x2,y2,class`` in pixels of each object."""
    boxes = (
        ",".join(f"{value:.9g}" for value in (*box, class_id))
        for class_id, box in _single(record, record.boxes_xyxy)
    )
    return b" ".join([os.fsencode(name), *(box.encode() for box in boxes)]) + b"\n"


def voc_xml(name: str, record: Record, names: Sequence[str]) -> bytes:
    """The XML of one image, called ``name``; ``names`` are those of the classes."""
    objects = "".join(
        f"  <object>\n    <name>{escape(names[class_id])}</name>\n    <difficult>0</difficult>\n"
        f"    <bndbox><xmin>{x1:.9g}</xmin><ymin>{y1:.9g}</ymin><xmax>{x2:.9g}</xmax><ymax>{y2:.9g}</ymax>"
        "</bndbox>\n  </object>\n"
        for class_id, (x1, y1, x2, y2) in _single(record, record.boxes_xyxy)
    )
    size = f"<width>{record.width}</width><height>{record.height}</height><depth>3</depth>"
    head = f"  <filename>{escape(name)}</filename>\n  <size>{size}</size>\n"
    return f"<annotation>\n{head}{objects}</annotation>\n".encode(errors="replace")


def coco_content(
    images: Iterable[tuple[str, int | str, Record]], names: Sequence[str]
) -> dict[str, list[dict[str, Any]]]:
    """The content of a COCO JSON.

    Args:
        images: the ``file_name``, the id and the record of each.
        names: of the classes, whose numbers are the ids of the categories.
    """
    content: dict[str, list[dict[str, Any]]] = {
        "images": [],
        "annotations": [],
        "categories": [{"id": i, "name": name} for i, name in enumerate(names)],
    }
    for file_name, image_id, record in images:
        of_image = {"id": image_id, "file_name": file_name, "width": record.width, "height": record.height}
        content["images"].append(of_image)
        boxes = xyxy_to_ltwh(record.boxes_xyxy.astype(np.float64)).tolist()
        columns = (record.classes.tolist(), boxes, record.areas.tolist(), record.crowd.tolist())
        for class_id, box, area, crowd in zip(*columns, strict=True):
            content["annotations"].append(
                {
                    "id": len(content["annotations"]) + 1,
                    "image_id": image_id,
                    "category_id": class_id,
                    "bbox": box,
                    "area": area,
                    "iscrowd": int(crowd),
                }
            )
    return content


def _single(record: Record, boxes: Any) -> Iterable[tuple[int, list[float]]]:
    """Class and box of each object that is no crowd."""
    single = ~record.crowd
    return zip(record.classes[single].tolist(), boxes[single].tolist(), strict=True)
