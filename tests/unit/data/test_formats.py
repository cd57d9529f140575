"""The label formats among each other: one set gives one set of records."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from horovod_yolo.core.boxes import pairwise_iou
from horovod_yolo.data import formats
from horovod_yolo.data.annotations import Annotations
from horovod_yolo.data.formats import Problem, coco, voc, yolo
from horovod_yolo.data.spec import DataSpec
from tests.helpers.scanned import annotations_of, records_of
from tests.unit.data.label_files import (
    H,
    W,
    check_labels,
    coco_json,
    read_coco,
    read_voc,
    voc_object,
    voc_xml,
)

SETS = Path(__file__).resolve().parents[3] / "../shared/data"
needs_sets = pytest.mark.skipif(not SETS.is_dir(), reason=f"{SETS} is not here")


@settings(max_examples=60)
@given(
    boxes=st.lists(
        st.tuples(st.integers(0, 2), st.floats(0, 90), st.floats(0, 90), st.floats(1, 10), st.floats(1, 10)),
        max_size=8,
        unique=True,
    )
)
def test_the_three_formats_give_the_same_labels(boxes: list[tuple[int, float, float, float, float]]) -> None:
    names = ("a", "b", "c")
    rows = [f"{c} {(x + w / 2) / W} {(y + h / 2) / H} {w / W} {h / H}" for c, x, y, w, h in boxes]
    from_yolo, _ = yolo.parse_labels("\n".join(rows).encode(), "a.txt", 3, H, W)
    annotations = [
        {"id": i, "image_id": 7, "category_id": c * 10, "bbox": [x, y, w, h]}
        for i, (c, x, y, w, h) in enumerate(boxes)
    ]
    images, _ = coco.parse(coco_json(annotations=annotations), "a.json", names)
    from_coco, _ = coco.CocoLabels(Path("a.json"), tuple(images[0].rows)).read(names, H, W)
    objects = "".join(voc_object(names[c], x, y, x + w, y + h) for c, x, y, w, h in boxes)
    from_voc, _ = voc.parse_annotation(voc_xml(objects), "a.xml", names, H, W)
    assert from_coco is not None and from_voc is not None
    for labels in (from_coco, from_voc):
        check_labels(labels, 3)
        np.testing.assert_array_equal(labels.classes, from_yolo.classes)
        np.testing.assert_allclose(labels.boxes_xyxy, from_yolo.boxes_xyxy, atol=1e-4)
        np.testing.assert_allclose(labels.areas, from_yolo.areas, atol=1e-2)


def test_labels_of_another_image_size_are_noted_and_kept() -> None:
    size = "<size><width>100</width><height>200</height></size>"
    labels, problems = read_voc(voc_xml(voc_object("a", 1, 2, 3, 4), size))
    assert labels is not None and len(labels.classes) == 1
    rule = "its boxes are taken as pixels of the image"
    assert problems == [f"a.xml: it says that the image is 100x200, which is 200x100: {rule}"]
    images = [{"id": 7, "file_name": "a.jpg", "height": 10, "width": W}]
    labels, problems = read_coco(coco_json(images=images))
    assert len(labels.classes) == 1
    assert problems == [f"a.json: it says that the image is 200x10, which is 200x100: {rule}"]


def test_huge_label_file_is_reported_not_read(tmp_path: Path) -> None:
    for source, name in ((yolo.YoloLabels, "a.txt"), (voc.VocLabels, "a.xml")):
        with (tmp_path / name).open("wb") as stream:
            stream.truncate(formats.MAX_LABEL_BYTES + 1)  # sparse: takes no room
        labels, problems = source(tmp_path / name).read(["a"], H, W)
        assert labels is None
        assert "MiB that are read" in str(problems[0])


def test_problem_reads_file_line_reason() -> None:
    assert str(Problem("a.txt", 3, "why")) == "a.txt:3: why"
    assert str(Problem("a.txt", None, "why")) == "a.txt: why"


def _annotations(root: Path, item: str, names: Sequence[str]) -> tuple[Annotations, list[Problem]]:
    spec = DataSpec(root / "data.yaml", root, (item,), (item,), (), tuple(names))
    return annotations_of(spec), records_of(spec)[1]


def _voc_tree(folder: Path, images: Path, annotations: Path, stems: Sequence[str]) -> str:
    (folder / "ImageSets/Main").mkdir(parents=True)
    (folder / "ImageSets/Main/train.txt").write_text("\n".join(stems))
    (folder / "JPEGImages").symlink_to(images)
    (folder / "Annotations").symlink_to(annotations)
    return "ImageSets/Main/train.txt"


@needs_sets
def test_fruits_nuts_voc_and_coco_agree(tmp_path: Path) -> None:
    source = SETS / "fruits-nuts"
    names = ("date", "fig", "hazelnut")
    (tmp_path / "images").mkdir()
    for image in source.glob("images/*/*.jpg"):
        (tmp_path / "images" / image.name).symlink_to(image)
    shutil.copy(source / "original/coco_trainval.json", tmp_path)
    stems = [path.stem for path in (source / "original/voc").glob("*.xml")]
    item = _voc_tree(tmp_path / "voc", tmp_path / "images", source / "original/voc", stems)
    from_voc, voc_problems = _annotations(tmp_path / "voc", item, names)
    from_coco, coco_problems = _annotations(tmp_path, "coco_trainval.json", names)
    assert voc_problems == coco_problems == []
    assert len(from_voc) == len(from_coco) == 18
    extra = 0
    for a, b in zip(from_voc.records, from_coco.records, strict=True):
        assert Path(a.path).name == Path(b.path).name
        iou = pairwise_iou(torch.tensor(a.boxes_xyxy), torch.tensor(b.boxes_xyxy)).numpy()
        iou[a.classes[:, None] != b.classes[None]] = 0
        assert (iou.max(axis=1).round(2) >= 0.79).all()  # the lowest is .788 (date in 9.jpg)
        assert len(set(iou.argmax(axis=1))) == len(a.classes)
        extra += len(b.classes) - len(a.classes)
    assert extra == 1


@needs_sets
@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_bccd_yolo_and_voc_agree(tmp_path: Path, split: str) -> None:
    source = SETS / "bccd"
    names = ("RBC", "WBC", "Platelets")
    stems = (source / f"original/ImageSets/Main/{split}.txt").read_text().split()
    item = _voc_tree(tmp_path, source / "images" / split, source / "original/Annotations", stems)
    from_voc, problems = _annotations(tmp_path, item, names)
    from_yolo, _ = _annotations(source, f"images/{split}", names)
    zero_area = [problem for problem in problems if "has no area" in problem.reason]
    assert zero_area == problems
    assert {Path(problem.file).stem for problem in problems} <= {"BloodImage_00338", "BloodImage_00343"}
    assert all(problem.line is not None for problem in problems)
    _assert_equal_records(from_yolo, from_voc)


@needs_sets
@pytest.mark.parametrize("split", ["train", "val"])
def test_coco_ccby_yolo_and_json_agree(split: str) -> None:
    source = SETS / "coco-ccby"
    listing = json.loads((source / f"original/instances_{split}.json").read_text())
    names = [category["name"] for category in sorted(listing["categories"], key=lambda c: c["id"])]
    from_json, problems = _annotations(source, f"original/instances_{split}.json", names)
    from_yolo, _ = _annotations(source, f"images/{split}", names)
    assert problems == []
    assert {record.image_id for record in from_json.records} == {image["id"] for image in listing["images"]}
    assert sum(record.crowd.sum() for record in from_json.records) == sum(
        a["iscrowd"] for a in listing["annotations"]
    )
    _assert_equal_records(from_yolo, from_json)


@needs_sets
@pytest.mark.parametrize(("split", "json_name"), [("train", "train"), ("val", "valid"), ("test", "test")])
def test_rbc_roboflow_yolo_and_json_agree(tmp_path: Path, split: str, json_name: str) -> None:
    source = SETS / "rbc-roboflow"
    for image in (source / "images" / split).iterdir():
        (tmp_path / image.name).symlink_to(image)
    shutil.copy(source / f"original/{json_name}_annotations.coco.json", tmp_path / "_annotations.coco.json")
    from_json, problems = _annotations(tmp_path, "_annotations.coco.json", ("rbc", "wbc"))
    from_yolo, _ = _annotations(source, f"images/{split}", ("rbc", "wbc"))
    assert problems == []
    _assert_equal_records(from_yolo, from_json)


def _assert_equal_records(a: Annotations, b: Annotations) -> None:
    """Same images, same boxes but for crowds; the shared YOLO labels have six decimals."""
    assert [Path(r.path).name for r in a.records] == [Path(r.path).name for r in b.records]
    for x, y in zip(a.records, b.records, strict=True):
        assert (x.height, x.width) == (y.height, y.width)
        kept = ~y.crowd
        assert len(x.classes) == kept.sum()
        left = np.abs(x.boxes_xyxy[:, None] - y.boxes_xyxy[kept][None]).max(axis=-1)
        left[x.classes[:, None] != y.classes[kept][None]] = np.inf
        rows, columns = np.nonzero(left < 2e-3)
        assert sorted(rows) == sorted(columns) == list(range(len(x.classes))), "each box has one partner"
