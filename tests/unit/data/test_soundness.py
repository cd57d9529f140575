"""What is said of a split as a whole: the wrong classes, crowds, and labels that are not there."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from horovod_yolo.core.errors import UserError
from horovod_yolo.data.formats import LabelRules
from horovod_yolo.data.listing import require_mapped
from horovod_yolo.data.spec import load_data_yaml
from tests.helpers.scanned import annotations_of
from tests.unit.data.label_files import voc_object, voc_xml

BOX = "0.5 0.5 0.4 0.4"


def picture(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((16, 16, 3), 90, np.uint8)).save(path)
    return path


def yolo_set(root: Path, rows: list[str | None], names: str = "[red, blue, green]") -> Path:
    """A set whose i-th image has these rows; None: no label file."""
    (root / "labels").mkdir(parents=True)
    for i, row in enumerate(rows):
        picture(root / f"images/{i}.png")
        if row is not None:
            (root / f"labels/{i}.txt").write_text(row)
    data = root / "data.yaml"
    data.write_text(f"train: images\nval: images\nnames: {names}\n")
    return data


def coco_set(root: Path, crowds: list[int]) -> Path:
    for i in range(len(crowds)):
        picture(root / f"{i}.png")
    box = {"category_id": 1, "bbox": [2, 2, 8, 8], "area": 64}
    content = {
        "images": [{"id": i, "file_name": f"{i}.png", "width": 16, "height": 16} for i in range(len(crowds))],
        "categories": [{"id": 1, "name": "red"}],
        "annotations": [{"id": i, "image_id": i, "iscrowd": crowd, **box} for i, crowd in enumerate(crowds)],
    }
    (root / "a.json").write_text(json.dumps(content))
    data = root / "data.yaml"
    data.write_text("train: a.json\nval: a.json\nnames: [red]\n")
    return data


Lines = Callable[[Path], list[str]]


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Lines:
    """What is said of the training images of a set."""

    def of(data: Path) -> list[str]:
        caplog.clear()
        with caplog.at_level(logging.INFO):
            annotations_of(load_data_yaml(data))
        return [record.getMessage() for record in caplog.records]

    return of


@pytest.mark.parametrize(
    ("classes", "names", "guess"),
    [
        ("123", "[a, b, c]", "0 never occurs, 3 does: are the classes counted from 1"),
        ("1", "[a]", "0 never occurs, 1 does: are the classes counted from 1"),
        ("012", "[a, b]", "is names too short"),
        ("05", "[a, b, c]", "is names too short"),
        (["0", "-1"], "[a]", "negative numbers are no classes"),
    ],
)
def test_a_class_outside_names_ends_the_job_and_says_what_it_looks_like(
    tmp_path: Path, classes: Iterable[str], names: str, guess: str
) -> None:
    data = yolo_set(tmp_path, [f"{number} {BOX}" for number in classes], names)
    with pytest.raises(UserError, match=rf"that is not in 0\.\..*txt:1 \({guess}.*--skip-bad-classes"):
        annotations_of(load_data_yaml(data))


def test_bad_classes_are_skipped_where_the_user_says_so(tmp_path: Path) -> None:
    data = yolo_set(tmp_path, [f"0 {BOX}", f"3 {BOX}", f"1 {BOX}\n9 {BOX}"])
    found = annotations_of(load_data_yaml(data, LabelRules(skip_bad_classes=True)))
    assert [record.classes.tolist() for record in found.records] == [[0], [], [1]]


def test_crowds_alone_are_nothing_to_train_on(tmp_path: Path, lines: Lines) -> None:
    with pytest.raises(UserError, match=r"all 3 objects of train are crowds \(iscrowd 1\)"):
        annotations_of(load_data_yaml(coco_set(tmp_path / "all", [1, 1, 1])))
    said = lines(coco_set(tmp_path / "some", [0, 1, 0]))
    assert said == ["train: 3 images, 2 boxes, 1 images without; 1 crowds beside, which are not trained on"]


def test_a_set_whose_every_row_looks_like_a_box_with_key_points_is_named(
    tmp_path: Path, lines: Lines
) -> None:
    pose = "0 0.5 0.5 0.4 0.4 0.4 0.5 0.6 0.5"
    said = [line for line in lines(yolo_set(tmp_path / "pose", [pose] * 3)) if "kpt_shape" in line]
    assert said == [
        "note: all 3 rows are read as polygons of 4 corners, and look like boxes with 2 key points: if they "
        "are, write 'kpt_shape: [2, 2]' into data.yaml"
    ]
    mixed = yolo_set(tmp_path / "mixed", [pose, pose, f"0 {BOX}"])
    assert not [line for line in lines(mixed) if "kpt_shape" in line]


def test_missing_and_empty_label_files_are_counted_apart(tmp_path: Path, lines: Lines) -> None:
    data = yolo_set(tmp_path, [f"0 {BOX}", "", None, None])
    (tmp_path / "labels/nobody.txt").write_text(f"0 {BOX}")
    said = lines(data)
    assert said[0].endswith("1 boxes, 3 images without (2 have no label file, 1 no object in theirs)")
    assert any("2 of 4 images have no label file, such as 2.png, 3.png" in line for line in said)
    assert any("1 label files belong to no image, such as nobody.txt" in line for line in said)


def test_what_is_left_out_is_not_counted_as_an_image_without_labels(tmp_path: Path, lines: Lines) -> None:
    data = yolo_set(tmp_path, [f"0 {BOX}", "", None, None])
    (tmp_path / "images/3.png").write_bytes(b"no picture")
    assert lines(data)[0] == (
        "train: 3 images, 1 boxes, 2 images without (1 have no label file, 1 no object in theirs)"
    )


@pytest.mark.parametrize("second", ["images/{}.txt", "images/{}.TXT"])
@pytest.mark.parametrize("source", ["images", "list.txt"])
def test_label_files_in_two_places_are_said(tmp_path: Path, lines: Lines, second: str, source: str) -> None:
    data = yolo_set(tmp_path, [f"0 {BOX}"] * 5)
    data.write_text(data.read_text().replace("train: images", f"train: {source}"))
    (tmp_path / "list.txt").write_text("".join(f"images/{i}.png\n" for i in range(5)))
    for i in range(4):
        (tmp_path / second.format(i)).write_text(f"1 {BOX}")
    assert lines(data)[1:] == [
        f"note: {tmp_path}/labels: 4 label files are in {tmp_path}/images too, such as 0.txt, 1.txt, 2.txt: "
        "these here are taken"
    ]


@pytest.mark.parametrize("file", ["labels/classes.txt", "classes.txt", "labels/obj.names"])
def test_a_list_of_classes_beside_the_labels_that_says_otherwise_is_said(
    tmp_path: Path, lines: Lines, file: str
) -> None:
    data = yolo_set(tmp_path, [f"0 {BOX}"])
    (tmp_path / file).write_text("Red \nblue\n\ngreen\n")
    assert len(lines(data)) == 1
    (tmp_path / file).write_text("green\nred\nblue\nx\n")
    assert lines(data)[1:] == [
        f"note: {tmp_path}/{file}: it numbers the classes otherwise than names: "
        "0 is 'green' there, 'red' here; 1 is 'red' there, 'blue' here; "
        "2 is 'blue' there, 'green' here: names counts"
    ]
    (tmp_path / "list.txt").write_text("images/0.png\n")
    data.write_text(data.read_text().replace("train: images", "train: [images, list.txt]"))
    assert sum("otherwise than names" in line for line in lines(data)) == 1


def test_a_class_map_says_what_numbers_in_labels_are(tmp_path: Path, lines: Lines) -> None:
    data = yolo_set(tmp_path, [f"{i} {BOX}" for i in (0, 1, 2)])
    for pairs, classes in (
        ({"Blue": "red", "green": ""}, [0, 0]),
        ({"red": "blue", "blue": "red"}, [1, 0, 2]),
    ):
        spec = load_data_yaml(data, LabelRules(class_map=tuple(pairs.items())))
        assert annotations_of(spec).classes.tolist() == classes
        of_model = spec.for_classes(("green", "blue", "red"), "m")
        assert annotations_of(of_model).classes.tolist() == [{0: 2, 1: 1, 2: 0}[i] for i in classes]


def test_a_class_map_of_names_that_no_number_has_is_an_error(tmp_path: Path) -> None:
    data = yolo_set(tmp_path, [f"0 {BOX}"])
    spec = load_data_yaml(data, LabelRules(class_map=(("rde", "red"), ("Hund", "blue"))))
    with pytest.raises(UserError, match=r"--class-map has 'rde', 'Hund': none of the names 'red', 'blue'"):
        require_mapped(spec)
    with pytest.raises(UserError, match=r"has 'rde': none of .*, none of the weights' 'hund'"):
        require_mapped(spec, ["hund"])
    require_mapped(load_data_yaml(data, LabelRules(class_map=(("RED", "blue"), ("Hund", "red")))), ["hund"])
    in_files = load_data_yaml(coco_set(tmp_path / "coco", [0]), LabelRules(class_map=(("rde", "red"),)))
    require_mapped(in_files)  # whose categories may have any name: reading them says so


@pytest.mark.parametrize(
    ("lies_in", "said_of"),
    [("labels/TRAIN", True), ("labels", True), ("labels/test", True), ("labels/val", False)],
)
def test_label_files_in_a_neighbouring_folder_are_named(
    tmp_path: Path, lines: Lines, lies_in: str, said_of: bool
) -> None:
    """But for that of another split, whose files may well have the same names."""
    data = yolo_set(tmp_path, [f"0 {BOX}", f"0 {BOX}", f"0 {BOX}"])
    (tmp_path / "images/val").mkdir()
    for kind, end, folder in (("images", "png", "images/train"), ("labels", "txt", "labels/train")):
        (tmp_path / folder).mkdir()
        (tmp_path / lies_in).mkdir(exist_ok=True)
        for i in range(3):
            moved = folder if kind == "images" or i else lies_in
            (tmp_path / kind / f"{i}.{end}").rename(tmp_path / moved / f"{i}.{end}")
    said = [line for line in lines(data) if "names of missing label files" in line]
    expected = (
        f"note: {tmp_path / lies_in}: 1 files have the names of missing label files, such as 0.txt: not taken"
    )
    assert said == [expected] * said_of


@pytest.mark.parametrize(
    ("image", "label"),
    [
        ("images/a%20b.png", "labels/a b.txt"),
        ("images/caf\u00e9.png", "labels/cafe\u0301.txt"),
        ("images/A.png", "labels/a.TXT"),
        ("images/a.png", "Labels/a.txt"),
        ("images/x/images/a.png", "labels/x/images/a.txt"),
        ("images/x/images/a.png", "images/x/labels/a.txt"),
        ("images/a.png", "images/a.txt"),
    ],
)
def test_labels_that_are_there_are_found(tmp_path: Path, image: str, label: str) -> None:
    picture(tmp_path / image)
    (tmp_path / label).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / label).write_text(f"0 {BOX}")
    (tmp_path / "data.yaml").write_text("train: images\nval: images\nnames: [a]\n")
    assert annotations_of(load_data_yaml(tmp_path / "data.yaml")).counts.tolist() == [1]


def test_a_folder_images_above_the_data_set_is_somebody_elses(tmp_path: Path) -> None:
    root = tmp_path / "images" / "set"
    picture(root / "train/a.png")
    (tmp_path / "labels/set/train").mkdir(parents=True)
    (tmp_path / "labels/set/train/a.txt").write_text(f"1 {BOX}")
    (root / "train/a.txt").write_text(f"0 {BOX}")
    (root / "data.yaml").write_text("train: train\nval: train\nnames: [a, b]\n")
    found = annotations_of(load_data_yaml(root / "data.yaml"))
    assert found.classes.tolist() == [0]


def test_two_images_that_are_spelled_alike_share_no_label(tmp_path: Path) -> None:
    for name in ("a.png", "A.png"):
        picture(tmp_path / "images" / name)
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels/a.txt").write_text(f"0 {BOX}")
    (tmp_path / "data.yaml").write_text("train: images\nval: images\nnames: [a]\n")
    found = annotations_of(load_data_yaml(tmp_path / "data.yaml"))
    assert {record.path: len(record.classes) for record in found.records} == {
        "images/A.png": 0,
        "images/a.png": 1,
    }


def test_voc_names_that_are_none_of_ours_while_ours_do_not_occur(
    tmp_path: Path, lines: Lines, caplog: pytest.LogCaptureFixture
) -> None:
    picture(tmp_path / "JPEGImages/a.jpg")
    (tmp_path / "Annotations").mkdir()
    (tmp_path / "ImageSets").mkdir()
    (tmp_path / "ImageSets/train.txt").write_text("a\n")
    (tmp_path / "Annotations/a.xml").write_bytes(
        voc_xml(voc_object("Hund", 1, 2, 9, 9) + voc_object("cat", 2, 2, 9, 9))
    )
    data = tmp_path / "data.yaml"
    data.write_text("train: ImageSets/train.txt\nval: ImageSets/train.txt\nnames: [cat, dog]\n")
    with pytest.raises(UserError, match=r"differ: 'Hund' here, 'dog' there.*--class-map"):
        lines(data)
    rules = LabelRules(class_map=(("Hund", "dog"), ("Katz", "cat")))
    caplog.clear()
    assert annotations_of(load_data_yaml(data, rules)).classes.tolist() == [1, 0]
    assert "note: --class-map Katz=...: no object here is called 'Katz'" in caplog.messages
    assert "Hund" not in caplog.text
    data.write_text(data.read_text().replace("[cat, dog]", "[cat]"))
    assert any("left out: objects whose class is none of names: 1 of 'Hund'" in line for line in lines(data))
