"""What label files say beside boxes: it is counted, so that a conversion can say what it does not keep."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from horovod_yolo.core.boxes import area
from horovod_yolo.data.annotations import Annotations
from horovod_yolo.data.formats import Entry, UnreadableError, lines, read_labels
from horovod_yolo.data.formats.coco import MAX_JSON_BYTES, CocoLabels
from horovod_yolo.data.formats.numbered import unnumbered
from horovod_yolo.data.formats.voc import VocLabels
from horovod_yolo.data.formats.yolo import YoloLabels
from horovod_yolo.io.files import read_bytes

_MARKED = re.compile(rb"<(difficult|truncated|occluded)>\s*1\s*</\1>")
_BESIDE_BOXES = ("segmentation", "keypoints", "attributes", "caption")
SAME_AREA = 1e-3  # of a box's


def beside_boxes(entries: Sequence[Entry]) -> Counter[str]:
    """Objects with more than a box, by what that is, in words. COCO's file is read once for all."""
    found: Counter[str] = Counter()
    files: dict[Path, None] = {}
    for entry in entries:
        source = unnumbered(entry.labels)
        if isinstance(source, CocoLabels):
            files[source.file] = None
        elif isinstance(source, (YoloLabels, VocLabels)):
            found += _of_image(source)
    for file in files:
        found += _of_coco(file)
    return found


def lost_crowds(annotations: Annotations) -> Counter[str]:
    """What only COCO holds: crowds, and areas that are not those of the boxes."""
    stated, boxes = annotations.areas, area(annotations.boxes_xyxy)
    other = ~annotations.crowd & (np.abs(stated - boxes) > SAME_AREA * boxes)
    return +Counter(
        {
            "crowds, which are left out: the format has none": int(annotations.crowd.sum()),
            "areas of objects other than their boxes'": int(other.sum()),
        }
    )


def _of_image(source: YoloLabels | VocLabels) -> Counter[str]:
    try:
        data = read_labels(source.file)
    except (FileNotFoundError, UnreadableError):  # the scan has said so
        return Counter()
    if isinstance(source, VocLabels):
        marks = (match[1].decode() for match in _MARKED.finditer(data))
        return Counter(f"marks that an object is {mark}" for mark in marks)
    rows = sum(len(line.split()) != 5 for _, line in lines(data))
    return +Counter({"rows of polygons or key points: their boxes are kept": rows})


def _of_coco(file: Path) -> Counter[str]:
    """The file was sound when it was listed."""
    annotations = json.loads(read_bytes(file, MAX_JSON_BYTES))["annotations"]
    kept = [annotation for annotation in annotations if isinstance(annotation, dict)]
    return +Counter(
        {f"objects with {key}": sum(bool(each.get(key)) for each in kept) for key in _BESIDE_BOXES}
    )
