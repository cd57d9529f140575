"""Annotation lists: a line an image, its boxes behind the name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from horovod_yolo.assembly.data_state import require_same_data
from horovod_yolo.assembly.shared_annotations import shared_annotations
from horovod_yolo.core.errors import UserError
from horovod_yolo.data.formats import LabelRules
from horovod_yolo.data.spec import DataSpec, load_data_yaml
from tests.helpers.packs import pack, state_in
from tests.helpers.scanned import annotations_of, records_of
from tests.helpers.world import run_world

NAMES = ("a", "b")


def _set(root: Path, text: str, *, names: tuple[str, ...] = NAMES, images: str = "1.jpg 2.jpg") -> DataSpec:
    for name in images.split():
        (root / "images").mkdir(parents=True, exist_ok=True)
        PIL.Image.new("RGB", (20, 10)).save(root / "images" / name)
    (root / "lists").mkdir(exist_ok=True)
    (root / "lists/train.txt").write_text(text)
    return DataSpec(root / "data.yaml", root, ("lists/train.txt",), (), (), names)


def _read(spec: DataSpec) -> tuple[dict[str, list[list[float]]], list[str]]:
    """Class and corners of the boxes of each image that is used; the problems without the folder."""
    records, problems = records_of(spec)
    found = {
        record.path: np.column_stack((record.classes, record.boxes_xyxy)).tolist()
        for record in records
        if record is not None
    }
    return found, [str(problem).replace(f"{spec.root}/", "") for problem in problems]


def test_boxes_are_pixels_and_a_line_without_is_background(tmp_path: Path) -> None:
    text = "images/1.jpg 1,2,11,8,0 0.5,0,3,4.25,1\nimages/2.jpg\n"
    found, problems = _read(_set(tmp_path, text))
    assert found == {"images/1.jpg": [[0, 1, 2, 11, 8], [1, 0.5, 0, 3, 4.25]], "images/2.jpg": []}
    assert problems == []


def test_paths_are_found_as_in_other_lists_and_may_have_spaces(tmp_path: Path) -> None:
    spec = _set(tmp_path, "")
    (tmp_path / "my images").mkdir()
    PIL.Image.new("RGB", (20, 10)).save(tmp_path / "my images/a 1,2.jpg")
    text = (
        f"{tmp_path}/images/1.jpg 1,2,3,4,0\n./../images/2.jpg 1,2,3,4,1\nmy images/a 1,2.jpg\t1,2,3,4,1\r\n"
    )
    (tmp_path / "lists/train.txt").write_text(text)
    found, problems = _read(spec)
    assert len(found) == 3 and all(len(boxes) == 1 for boxes in found.values()) and problems == []


def test_lines_of_one_image_are_put_together(tmp_path: Path) -> None:
    found, problems = _read(_set(tmp_path, "images/1.jpg 1,2,3,4,0\nimages/1.jpg 5,5,9,9,1\n"))
    assert found == {"images/1.jpg": [[0, 1, 2, 3, 4], [1, 5, 5, 9, 9]]} and problems == []


@pytest.mark.parametrize(
    ("box", "said"),
    [
        ("1,2,3,4", "box '1,2,3,4' is not x1,y1,x2,y2,class without spaces"),
        ("1,2,x,4,0", "box '1,2,x,4,0' is not five finite numbers"),
        ("1,2,1_0,4,0", "box '1,2,1_0,4,0' is not five finite numbers"),
        ("1,2,nan,4,0", "box '1,2,nan,4,0' is not five finite numbers"),
        ("1,2,3,4,0.5", "class '0.5' is not a whole number"),
        ("1,2,3,4,2", "class '2' is not in 0..1"),
        ("3,2,1,4,0", "box '3,2,1,4,0' has no area: x2 and y2 must exceed x1 and y1"),
        ("30,2,40,4,0", "box '30,2,40,4,0' has no area inside the 20x10 image"),
        ("1,2,3,4,1", "box '1,2,3,4,1' repeats line 2"),
    ],
)
def test_what_is_left_out_is_said_with_its_line(tmp_path: Path, box: str, said: str) -> None:
    found, problems = _read(_set(tmp_path, f"\nimages/1.jpg 1,2,3,4,1 {box}\n"))
    assert found == {"images/1.jpg": [[1, 1, 2, 3, 4]]}
    assert problems == [f"lists/train.txt:2: {said}"]


def test_a_line_that_names_no_image_is_said(tmp_path: Path) -> None:
    _, problems = _read(_set(tmp_path, "images/1.jpg 1,2,3,4,0\nnotes 1,2,3,4,0\n"))
    assert problems == ["lists/train.txt:2: not an image file name with boxes behind it: 'notes 1,2,3,4,0'"]


def test_bad_classes_end_a_run(tmp_path: Path) -> None:
    spec = _set(tmp_path, "images/1.jpg 1,2,3,4,1 1,2,3,5,2\n")
    with pytest.raises(UserError, match=r"1 rows have a class that is not in 0\.\.1: 2"):
        annotations_of(spec)


def test_the_list_of_images_alone_stays_one_of_label_files(tmp_path: Path) -> None:
    spec = _set(tmp_path, "images/1.jpg\nimages/2.jpg\n")
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels/1.txt").write_text("1 .5 .5 .5 .5\n")
    found, _ = _read(spec)
    assert found == {"images/1.jpg": [[1, 5, 2.5, 15, 7.5]], "images/2.jpg": []}


def test_the_class_map_is_about_the_names_of_the_numbers(tmp_path: Path) -> None:
    spec = _set(tmp_path, "images/1.jpg 1,2,3,4,0 5,5,9,9,1\n")
    mapped = DataSpec(**{**vars(spec), "rules": LabelRules(class_map=(("a", "b"),))})
    assert annotations_of(mapped).classes.tolist() == [1, 1]


def _as_list(data: Path, folder: Path) -> Path:
    """The digits set with annotation lists, on the same images."""
    spec = load_data_yaml(data)
    for split in spec.splits:
        rows = []
        for record in annotations_of(spec, split).records:
            boxes = np.column_stack((record.boxes_xyxy, record.classes)).tolist()
            rows.append(" ".join([record.path, *(",".join(map(repr, box)) for box in boxes)]))
        (folder / f"{split}.txt").write_text("\n".join(rows))
    names = ", ".join(f"'{name}'" for name in spec.names)
    file = folder / "data.yaml"
    file.write_text(
        f"path: {spec.root}\ntrain: {folder}/train.txt\nval: {folder}/val.txt\nnames: [{names}]\n"
    )
    return file


def test_a_run_has_the_same_data_as_with_label_files(digits: Path, tmp_path: Path) -> None:
    """On one rank and on three, from the cache, and packed."""
    there = _as_list(digits, tmp_path)
    plain, spec = annotations_of(load_data_yaml(digits)), load_data_yaml(there)
    cache = tmp_path / "cache"
    cache.mkdir()
    for ranks in (3, 1):
        for found in run_world(ranks, lambda comm: shared_annotations(spec, "train", comm, cache)):
            assert found.digest == plain.digest
    require_same_data(state_in(digits), state_in(pack(there, tmp_path / "packed")), changed=False)
    (tmp_path / "train.txt").write_text((tmp_path / "train.txt").read_text() + "\n\n")
    assert annotations_of(spec, folder=cache).digest == plain.digest
    lines = (tmp_path / "train.txt").read_text().splitlines()
    (tmp_path / "train.txt").write_text("\n".join(lines[1:]))
    assert len(annotations_of(spec, folder=cache)) == len(plain) - 1  # a changed list is read again
