"""From data.yaml to records: what is found where, in which order, and what is reported."""

from __future__ import annotations

import itertools
import json
import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from horovod_yolo.core.errors import UserError
from horovod_yolo.data.annotations import Record
from horovod_yolo.data.listing import list_entries, survey
from horovod_yolo.data.scan import join, scan, tabulate
from horovod_yolo.data.spec import DataSpec
from tests.helpers.scanned import annotations_of, records_of

SETS = Path(__file__).resolve().parents[3] / "../shared/data"
needs_sets = pytest.mark.skipif(not SETS.is_dir(), reason=f"{SETS} is not here")
NAMES = ("a", "b")


def _image(path: Path, width: int = 20, height: int = 10) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.new("RGB", (width, height), (1, 2, 3)).save(path)
    return path


def _spec(root: Path, *train: str) -> DataSpec:
    return DataSpec(root / "data.yaml", root, train, (), (), NAMES)


def _scan(spec: DataSpec) -> tuple[list[Record | None], list[str]]:
    records, problems = records_of(spec)
    return records, [str(problem) for problem in problems if "have no label file" not in problem.reason]


def _paths(records: list[Record | None]) -> list[str | None]:
    return [record and record.path for record in records]


@pytest.fixture
def small_set(tmp_path: Path) -> DataSpec:
    """Two labelled images, a background, one broken image and a bad row."""
    for name in ("b/2.jpg", "1.png", "b/3.jpg"):
        _image(tmp_path / "images" / name)
    (tmp_path / "images/0.jpg").write_bytes(b"not an image")
    (tmp_path / "labels/b").mkdir(parents=True)
    (tmp_path / "labels/1.txt").write_text("1 .5 .5 .5 .5\n1 .5 .5 0 .5\n")
    (tmp_path / "labels/b/2.txt").write_text("0 .5 .5 .1 .1\n0 .25 .25 .1 .1\n")
    return _spec(tmp_path, "images")


def test_folder_gives_sorted_records_and_reports_the_rest(small_set: DataSpec) -> None:
    records, problems = _scan(small_set)
    assert _paths(records) == [None, "images/1.png", "images/b/2.jpg", "images/b/3.jpg"]
    assert problems == [
        f"{small_set.root}/images/0.jpg: not an image of a known format, or cut off in its header",
        f"{small_set.root}/labels/1.txt:2: width 0 and height 0.5 must be positive",
    ]
    index = annotations_of(small_set)
    assert [len(record.classes) for record in index.records] == [1, 2, 0]
    assert [record.image_id for record in index.records] == [1, 2, 3], "positions among all entries"
    assert index.image_path(1) == small_set.root / "images/b/2.jpg"
    np.testing.assert_allclose(index.records[0].boxes_xyxy, [[5, 2.5, 15, 7.5]])
    assert (index.records[0].height, index.records[0].width) == (10, 20)


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_any_split_of_the_entries_gives_the_same_rows(small_set: DataSpec, size: int) -> None:
    entries = list_entries(small_set, "train")
    whole = tabulate(list(scan(entries, NAMES)), small_set.root)
    bounds = [len(entries) * rank // size for rank in range(size + 1)]
    parts = [
        tabulate(list(scan(pickle.loads(pickle.dumps(entries[a:b])), NAMES)), small_set.root)
        for a, b in itertools.pairwise(bounds)
    ]
    joined = join(parts)
    assert joined.keys() == whole.keys()
    for name, column in whole.items():
        assert joined[name].dtype == column.dtype
        np.testing.assert_array_equal(joined[name], column)


def test_nothing_of_the_users_is_written(small_set: DataSpec) -> None:
    def state() -> dict[Path, tuple[int, int]]:
        return {
            p: (p.stat().st_size, p.stat().st_mtime_ns) for p in [small_set.root, *small_set.root.rglob("*")]
        }

    before = state()
    _scan(small_set)
    assert state() == before


def test_labels_are_taken_relative_to_the_upright_image(tmp_path: Path) -> None:
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    (tmp_path / "images").mkdir()
    (tmp_path / "labels").mkdir()
    PIL.Image.new("RGB", (40, 20)).save(tmp_path / "images/a.jpg", exif=exif)
    (tmp_path / "labels/a.txt").write_text("0 .5 .25 1 .5\n")
    (record,), _ = _scan(_spec(tmp_path, "images"))
    assert record is not None
    assert (record.height, record.width) == (40, 20)
    np.testing.assert_array_equal(record.boxes_xyxy, [[0, 0, 20, 20]])


# --- places


def test_list_file_paths_are_relative_to_it_or_to_the_root_or_absolute(tmp_path: Path) -> None:
    for name in ("lists/near/1.jpg", "lists/near/2.jpg", "images/3.jpg", "images/4.jpg"):
        _image(tmp_path / name)
    lines = ["./near/1.jpg", "near\\2.jpg", "", "images/3.jpg", str(tmp_path / "images/4.jpg")]
    (tmp_path / "lists/train.txt").write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode())
    records, problems = _scan(_spec(tmp_path, "lists/train.txt"))
    assert problems == []
    assert _paths(records) == ["images/3.jpg", "images/4.jpg", "lists/near/1.jpg", "lists/near/2.jpg"]


def test_list_file_names_its_line_for_what_is_missing_repeated_or_no_image(tmp_path: Path) -> None:
    _image(tmp_path / "1.jpg")
    file = tmp_path / "train.txt"
    file.write_bytes(b"./1.jpg\n./gone.jpg\n./1.jpg\nnotes.doc\na\0b.jpg\n")
    records, problems = _scan(_spec(tmp_path, "train.txt"))
    assert _paths(records) == ["1.jpg", None]
    assert sorted(problems) == [
        f"{file}:2: image {tmp_path}/gone.jpg does not exist",
        f"{file}:3: image {tmp_path}/1.jpg is named more than once: taken once",
        f"{file}:4: not an image file name: 'notes.doc'",
        f"{file}:5: not an image file name: 'a\\x00b.jpg'",
    ]


def test_several_items_of_different_kinds_make_one_set(tmp_path: Path) -> None:
    _image(tmp_path / "x/images/1.jpg")
    _image(tmp_path / "y/images/2.jpg")
    (tmp_path / "list.txt").write_text("./y/images/2.jpg\n./x/images/1.jpg\n")
    records, problems = _scan(_spec(tmp_path, "x/images", "list.txt"))
    assert _paths(records) == ["x/images/1.jpg", "y/images/2.jpg"]
    assert len(problems) == 1 and "list.txt:2: " in problems[0]


def test_images_outside_the_root_keep_their_whole_path(tmp_path: Path) -> None:
    _image(tmp_path / "elsewhere/1.jpg")
    (tmp_path / "root").mkdir()
    records, _ = _scan(_spec(tmp_path / "root", str(tmp_path / "elsewhere")))
    assert _paths(records) == [(tmp_path / "elsewhere/1.jpg").as_posix()]


def test_roboflows_parent_paths_mean_the_folder_beside_the_file(tmp_path: Path) -> None:
    _image(tmp_path / "set/train/images/1.jpg")
    records, _ = _scan(_spec(tmp_path / "set", "../train/images"))
    assert _paths(records) == ["train/images/1.jpg"]


def test_loops_of_links_end_and_linked_folders_count(tmp_path: Path) -> None:
    _image(tmp_path / "store/1.jpg")
    (tmp_path / "images/a").mkdir(parents=True)
    _image(tmp_path / "images/a/2.jpg")
    (tmp_path / "images/a/up").symlink_to(tmp_path / "images")
    (tmp_path / "images/self.jpg").symlink_to(tmp_path / "images/self.jpg")
    (tmp_path / "images/linked").symlink_to(tmp_path / "store")
    records, problems = _scan(_spec(tmp_path, "images"))
    assert _paths(records) == ["images/a/2.jpg", "images/linked/1.jpg", None]
    assert len(problems) == 1 and problems[0].startswith(f"{tmp_path}/images/self.jpg: ")


def test_hidden_files_and_other_files_are_not_images(tmp_path: Path) -> None:
    _image(tmp_path / "images/1.JPG")
    for name in ("._1.jpg", "notes.txt", "Thumbs.db", ".trash/2.jpg"):
        path = tmp_path / "images" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"x")
    records, problems = _scan(_spec(tmp_path, "images"))
    assert _paths(records) == ["images/1.JPG"]
    assert problems == []


def test_names_that_are_not_utf8_survive(tmp_path: Path) -> None:
    _image(tmp_path / "images" / os.fsdecode(b"caf\xe9.jpg"))
    spec = _spec(tmp_path, "images")
    records, problems = _scan(spec)
    assert records[0] is not None and problems == []
    assert len(survey(list_entries(spec, "train"), spec, "train").copy) == 64
    assert spec.root.joinpath(records[0].path).is_file()


@pytest.mark.parametrize(
    "place", ["annotations/{}", "{}", "images/{}", "images/train2017/{}", "train2017/{}", "images/train/{}"]
)
def test_coco_images_are_found_where_people_keep_them(tmp_path: Path, place: str) -> None:
    _image(tmp_path / place.format("1.jpg"))
    _coco_file(tmp_path / "annotations/instances_train2017.json", {4: "1.jpg", 9: "gone.jpg"})
    records, problems = _scan(_spec(tmp_path, "annotations/instances_train2017.json"))
    found = {record.path: record.image_id for record in records if record is not None}
    assert found == {place.format("1.jpg"): 4}
    assert len(problems) == 1
    assert problems[0].startswith(f"{tmp_path}/annotations/instances_train2017.json: image ")
    assert problems[0].endswith("gone.jpg does not exist")


def test_coco_images_found_nowhere_is_an_error_that_lists_the_places(tmp_path: Path) -> None:
    _coco_file(tmp_path / "annotations/instances_train2017.json", {4: "1.jpg"})
    with pytest.raises(UserError) as caught:
        list_entries(_spec(tmp_path, "annotations/instances_train2017.json"), "train")
    for part in (
        "'1.jpg'",
        f"{tmp_path}/annotations",
        f"{tmp_path}/images/train2017",
        f"{tmp_path}/images/train",
    ):
        assert part in str(caught.value)


def test_ids_stay_unique_when_two_coco_files_use_the_same(tmp_path: Path) -> None:
    for name in ("1.jpg", "2.jpg", "3.jpg"):
        _image(tmp_path / name)
    _coco_file(tmp_path / "a.json", {0: "1.jpg", 1: "2.jpg"})
    _coco_file(tmp_path / "b.json", {0: "3.jpg"})
    records, _ = _scan(_spec(tmp_path, "a.json", "b.json"))
    assert [record and record.image_id for record in records] == [0, 1, 2]


def _coco_file(path: Path, images: dict[int, str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "images": [{"id": key, "file_name": name, "height": 10, "width": 20} for key, name in images.items()],
        "annotations": [{"id": 0, "image_id": next(iter(images)), "category_id": 1, "bbox": [1, 2, 3, 4]}],
        "categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}],
    }
    path.write_text(json.dumps(content))


@pytest.fixture
def voc_set(tmp_path: Path) -> DataSpec:
    corners = "<xmin>1</xmin><ymin>2</ymin><xmax>3</xmax><ymax>4</ymax>"
    (tmp_path / "Annotations").mkdir()
    for stem in ("x.mp4#t=1", "x.mp4#t=2", "id 1"):
        _image(tmp_path / "JPEGImages" / f"{stem}.png")
        xml = f"<annotation><object><name>b</name><bndbox>{corners}</bndbox></object></annotation>"
        (tmp_path / "Annotations" / f"{stem}.xml").write_text(xml)
    (tmp_path / "ImageSets/Main").mkdir(parents=True)
    (tmp_path / "ImageSets/Main/train.txt").write_text("x.mp4#t=1\nx.mp4#t=2  -1\n\nid 1\nid 1 1\ngone 1\n")
    return _spec(tmp_path, "ImageSets/Main/train.txt")


def test_voc_list_with_flags_dots_spaces_and_other_suffixes(voc_set: DataSpec) -> None:
    records, problems = _scan(voc_set)
    assert _paths(records) == [
        None,
        "JPEGImages/id 1.png",
        "JPEGImages/x.mp4#t=1.png",
        "JPEGImages/x.mp4#t=2.png",
    ]
    file = voc_set.root / "ImageSets/Main/train.txt"
    assert problems == [
        f"{file}:5: image {voc_set.root}/JPEGImages/id 1.png is named more than once: taken once",
        f"{file}:6: image {voc_set.root}/JPEGImages/gone.jpg does not exist",
    ]


def test_voc_image_without_xml_is_left_out_not_background(voc_set: DataSpec) -> None:
    (voc_set.root / "Annotations/id 1.xml").unlink()
    records, problems = _scan(voc_set)
    assert records[1] is None
    assert (
        f"{voc_set.root}/Annotations/id 1.xml: labels cannot be read: No such file or directory" in problems
    )


def test_voc_without_its_folders_is_an_error(voc_set: DataSpec) -> None:
    shutil.rmtree(voc_set.root / "Annotations")
    with pytest.raises(
        UserError, match=r"there is no folder .*Annotations.*needs Annotations and JPEGImages in"
    ):
        list_entries(voc_set, "train")


# --- mistakes


def test_mistakes_name_what_where_and_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "weird.csv").write_text("x")
    (tmp_path / "list.txt").write_text("readme.md\n")
    for items, what in [
        ((), "has no 'train'.*add 'train: images/train'"),
        (("none",), "there is no folder or file .*none. relative paths start at"),
        (("empty",), "no image in empty. images end in .bmp"),
        (("list.txt",), "no image in list.txt; .*list.txt:1: not an image file name: 'readme.md'"),
        (("x" * 300,), "xxx cannot be read: File name too long. correct 'path' or 'train'"),
        (("weird.csv",), "weird.csv is none of the known kinds. give a folder of images"),
    ]:
        with pytest.raises(UserError, match=what) as caught:
            list_entries(_spec(tmp_path, *items), "train")
        assert str(tmp_path / "data.yaml") in str(caught.value)


def test_a_set_without_usable_image_or_object_is_an_error(tmp_path: Path) -> None:
    _image(tmp_path / "images/1.jpg")
    with pytest.raises(UserError, match=r"none of 1 images has a labelled object.*labels/a/b\.txt"):
        annotations_of(_spec(tmp_path, "images"))
    for name in ("1", "2"):
        (tmp_path / "images" / f"{name}.jpg").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"none of 2 images is usable.* The first: .*1\.jpg: not an image"):
        annotations_of(_spec(tmp_path, "images"))


@needs_sets
def test_published_lists_that_name_missing_images_are_reported_by_line() -> None:
    folder = SETS / "aerial-cars/original/yolo_txt"
    records, problems = _scan(_spec(folder, "test.txt"))
    lines = (folder / "test.txt").read_text().splitlines()
    assert records == [None] * len(set(lines))
    missing = [problem for problem in problems if problem.endswith("does not exist")]
    assert len(missing) == len(records)
    for problem in missing:
        number = int(problem.removeprefix(f"{folder}/test.txt:").partition(":")[0])
        assert lines[number - 1] in problem


# --- keys


def _key(spec: DataSpec) -> str:
    return survey(list_entries(spec, "train"), spec, "train").copy


def test_a_copy_has_the_same_sizes_and_digest_and_is_another_copy(
    small_set: DataSpec, tmp_path_factory: pytest.TempPathFactory
) -> None:
    moved = tmp_path_factory.mktemp("moved") / "set"
    shutil.copytree(small_set.root, moved)  # copytree keeps times
    here, there = (
        survey(list_entries(spec, "train"), spec, "train") for spec in (small_set, _spec(moved, "images"))
    )
    assert (here.sizes, here.listing) == (there.sizes, there.listing)
    assert here.copy != there.copy
    assert annotations_of(small_set).digest == annotations_of(_spec(moved, "images")).digest
    before = _key(_spec(moved, "images"))
    renamed = moved.rename(moved.with_name("renamed"))
    assert _key(_spec(renamed, "images")) == before, "the same files at another place"


def _touch(path: Path) -> None:
    os.utime(path, ns=(1, 1))


@pytest.mark.parametrize(
    "change",
    [
        lambda spec: _touch(spec.root / "images/b/2.jpg"),
        lambda spec: _touch(spec.root / "labels/b/2.txt"),
        lambda spec: (spec.root / "labels/b/2.txt").unlink(),
        lambda spec: (spec.root / "labels/b/3.txt").write_text("0 .5 .5 .1 .1\n"),
        lambda spec: _image(spec.root / "images/4.jpg"),
        lambda spec: (spec.root / "images/b/3.jpg").rename(spec.root / "images/b/5.jpg"),
    ],
)
def test_the_copy_changes_with_any_file(small_set: DataSpec, change: object) -> None:
    before = _key(small_set)
    assert _key(small_set) == before
    assert callable(change)
    change(small_set)
    assert _key(small_set) != before


def test_the_copy_changes_with_split_and_list(small_set: DataSpec) -> None:
    entries = list_entries(small_set, "train")
    keys = {
        survey(entries, small_set, "train").copy,
        survey(entries, small_set, "val").copy,
        survey(entries[:-1], small_set, "train").copy,
    }
    for text in ("./images/1.png\n", "\n./images/1.png\n"):
        (small_set.root / "list.txt").write_text(text)
        keys.add(_key(_spec(small_set.root, "list.txt")))
    assert len(keys) == 5
