"""Packs hold files as they were, whatever they are called, for us and for tar."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tarfile
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from horovod_yolo.assembly.data_state import require_same_data
from horovod_yolo.core.errors import UserError
from horovod_yolo.data.annotations import Annotations, Record
from horovod_yolo.data.formats import Entry
from horovod_yolo.data.formats.yolo import YoloLabels
from horovod_yolo.data.pack import open_index, require_shards
from horovod_yolo.data.packing import Plan, names_in_tar, piece_of, write_index, write_shard
from horovod_yolo.data.read import read_content
from horovod_yolo.data.scan import UNREAD, content_hash
from horovod_yolo.data.spec import load_data_yaml
from tests.helpers.packs import pack, state_in
from tests.helpers.scanned import annotations_of

NOTHING = (
    np.empty(0, np.int64),
    np.empty((0, 4), np.float32),
    np.empty(0, np.bool_),
    np.empty(0, np.float32),
)

NAMES = st.lists(
    st.text(st.characters(exclude_characters="/\0", exclude_categories=("Cs", "Cc", "Zl", "Zp")), min_size=1)
    .map(lambda text: text.encode()[:120].decode(errors="ignore"))
    .filter(lambda text: text.strip(" .") == text and text != ""),
    min_size=1,
    max_size=6,
    unique=True,
)


@settings(max_examples=25)
@given(
    names=NAMES,
    contents=st.lists(st.binary(min_size=1, max_size=1200), min_size=6, max_size=6),
    cut=st.data(),
)
def test_any_files_come_back_as_they_were(
    tmp_path_factory: pytest.TempPathFactory, names: list[str], contents: list[bytes], cut: st.DataObject
) -> None:
    loose, folder = tmp_path_factory.mktemp("loose"), tmp_path_factory.mktemp("pack")
    files = {f"images/{name}": content for name, content in zip(names, contents, strict=False)}
    records, entries = [], []
    for name, content in files.items():
        (loose / name).parent.mkdir(exist_ok=True)
        (loose / name).write_bytes(content)
        records.append(Record(name, 8, 8, *NOTHING, len(records)))
        entries.append(Entry(loose / name, YoloLabels(loose / "none.txt")))
    annotations = Annotations.of(loose, ("a",), records)
    annotations.file._columns |= {
        "image_content": np.array([list(content_hash(content)) for content in files.values()], np.uint8),
        "label_content": np.tile(np.frombuffer(UNREAD, np.uint8), (len(files), 1)),
    }
    ends = sorted(cut.draw(st.sets(st.integers(1, len(files) - 1))) if len(files) > 1 else ())
    starts = np.array([0, *ends, len(files)])
    every = np.arange(len(files))
    plan = Plan(
        "train", "k" * 64, annotations, entries, list(files), [""] * len(files), every, every, starts, {}
    )
    for k in range(len(plan)):
        write_shard(plan, k, folder, lambda _: None)
    pieces = [piece for k in range(len(plan)) if (piece := piece_of(plan, k, folder))]
    write_index(plan, pieces, folder)
    index = open_index(folder / "train.columns")
    require_shards(index, folder, lambda _: None)
    there = Annotations(folder, index)
    assert there.digest == annotations.digest
    assert [read_content(there.image_file(i)) for i in range(len(files))] == list(files.values())
    unpacked = {}
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            unpacked |= {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]
    assert unpacked == files


def test_names_that_are_no_utf8_are_kept(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    for split in ("train", "val"):
        (folder / "images" / split).mkdir(parents=True)
        (folder / "labels" / split).mkdir(parents=True)
        name = os.fsdecode(b"caf\xe9-" + split.encode() + b"x" * 120)
        PIL.Image.new("RGB", (20, 10)).save(folder / "images" / split / f"{name}.png")
        (folder / "labels" / split / f"{name}.txt").write_text("0 0.5 0.5 0.5 0.5\n")
    (folder / "data.yaml").write_text("train: images/train\nval: images/val\nnames: [a]\n")
    data = pack(folder / "data.yaml", tmp_path / "packed")
    require_same_data(state_in(folder / "data.yaml"), state_in(data), changed=False)
    (tmp_path / "unpacked").mkdir()
    for shard in sorted(data.parent.glob("*.tar")):
        shutil.unpack_archive(shard, tmp_path / "unpacked")
    require_same_data(
        state_in(folder / "data.yaml"), state_in(tmp_path / "unpacked" / "unpacked.yaml"), changed=False
    )


def test_tar_gives_the_loose_files_with_a_data_yaml(digits: Path, tmp_path: Path) -> None:
    (tmp_path / "loose").mkdir()
    for shard in sorted(pack(digits, tmp_path / "packed").parent.glob("*.tar")):
        subprocess.run(["tar", "xf", shard, "-C", tmp_path / "loose"], check=True)
    for path in digits.parent.rglob("*s/*/*.*"):
        assert (tmp_path / "loose" / path.relative_to(digits.parent)).read_bytes() == path.read_bytes()
    require_same_data(state_in(digits), state_in(tmp_path / "loose" / "unpacked.yaml"), changed=False)


def test_images_outside_of_the_root_are_named_from_what_they_have_in_common() -> None:
    outside = {
        split: Annotations.of(
            Path("/conf"), ("a",), [Record(f"/d/coco/images/{split}/1.jpg", 8, 8, *NOTHING, 0)]
        )
        for split in ("train", "val")
    }
    assert names_in_tar(outside) == {"train": ["images/train/1.jpg"], "val": ["images/val/1.jpg"]}
    bad = Annotations.of(Path("/conf"), ("a",), [Record("a\nb.jpg", 8, 8, *NOTHING, 0)])
    with pytest.raises(UserError, match="has a line end in its name"):
        names_in_tar({"train": bad})


def test_labels_of_coco_become_rows_that_give_the_same_boxes(tmp_path: Path) -> None:
    folder, rng = tmp_path / "coco", np.random.default_rng(0)
    (folder / "images").mkdir(parents=True)
    annotations = []
    for i in range(4):
        PIL.Image.new("RGB", (61, 47)).save(folder / "images" / f"{i}.png")
        for left, top, width, height in rng.uniform(0.5, 20, (3, 4)).tolist():
            annotations.append(
                {"id": len(annotations), "image_id": i, "category_id": 5, "bbox": [left, top, width, height]}
            )
    images = [{"id": i, "file_name": f"images/{i}.png"} for i in range(4)]
    annotations[0]["iscrowd"] = 1
    (folder / "all.json").write_text(
        json.dumps({"images": images, "annotations": annotations, "categories": [{"id": 5, "name": "a"}]})
    )
    (folder / "data.yaml").write_text("train: all.json\nval: all.json\nnames: [a]\n")
    data = pack(folder / "data.yaml", tmp_path / "packed")
    require_same_data(
        state_in(folder / "data.yaml"), state_in(data), changed=False
    )  # ids, crowds and areas, too
    loose = annotations_of(load_data_yaml(folder / "data.yaml"))
    for split in ("train", "val"):
        shutil.unpack_archive(data.with_name(f"{split}-00000.tar"), tmp_path / "unpacked")
    unpacked = annotations_of(load_data_yaml(tmp_path / "unpacked" / "unpacked.yaml"))
    assert np.array_equal(unpacked.boxes_xyxy, loose.boxes_xyxy[~loose.crowd])
