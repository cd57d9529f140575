"""Data sets as lists of records: slow, obvious, and what the columns are compared with."""

from __future__ import annotations

from pathlib import Path

from horovod_yolo.assembly.shared_annotations import shared_annotations
from horovod_yolo.data.annotations import Annotations, Record
from horovod_yolo.data.formats import Problem
from horovod_yolo.data.listing import list_entries, relative_name, survey
from horovod_yolo.data.scan import scan
from horovod_yolo.data.spec import DataSpec
from horovod_yolo.distributed.local import LocalCommunicator
from horovod_yolo.io.atomic import replacing
from horovod_yolo.io.columns import check_columns, write_columns


def records_of(spec: DataSpec, split: str = "train") -> tuple[list[Record | None], list[Problem]]:
    """A record an entry, None where the image is left out; and all problems."""
    entries = list_entries(spec, split)
    records: list[Record | None] = []
    problems = list(entries[0].problems)
    for entry, image in zip(entries, scan(entries, spec.names), strict=True):
        problems += image.problems
        if image.labels is None:
            records.append(None)
            continue
        arrays = (image.labels.classes, image.labels.boxes_xyxy, image.labels.crowd, image.labels.areas)
        path = relative_name(entry.image, spec.root)
        records.append(Record(path, image.height, image.width, *arrays, entry.image_id))
    return records, problems


def annotations_of(spec: DataSpec, split: str = "train", folder: Path | None = None) -> Annotations:
    """The annotations of a split, as one process makes them."""
    return shared_annotations(spec, split, LocalCommunicator(), folder)


def take_as_unchanged(spec: DataSpec, split: str, folder: Path) -> None:
    """Make a cache believe that the files are as they were when it was written."""
    now = survey(list_entries(spec, split), spec, split)
    for path in folder.glob("*.columns"):
        file = check_columns(path)
        if file.about["listing"] == now.listing:
            states = {"image_state": now.image_states, "label_state": now.label_states}
            with replacing(path) as target:
                write_columns(target, file.about, {**file.columns, **states})
