"""``data check``, ``data convert`` and ``data split`` on sets of each format, on one rank and on several."""

from __future__ import annotations

import base64
import json
import logging
import re
from functools import partial
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from horovod_yolo.assembly.check import Checked, CheckOptions, check_data
from horovod_yolo.assembly.data_tools import ConvertOptions, SplitOptions, convert_data, split_data
from horovod_yolo.assembly.statistics import StatsOptions, chosen, data_stats
from horovod_yolo.cli.commands import main
from horovod_yolo.core.errors import UserError
from horovod_yolo.data.conversion import FORMATS, Kind
from horovod_yolo.data.spec import load_data_yaml
from horovod_yolo.data.splitting import assign
from horovod_yolo.distributed.local import LocalCommunicator
from tests.helpers.packs import pack
from tests.helpers.scanned import annotations_of
from tests.helpers.world import run_world

ALONE = LocalCommunicator()


def files_in(folder: Path) -> dict[str, bytes | str]:
    """Content of all files but data.yaml, which has the folder's name, and where links go."""
    return {
        str(path.relative_to(folder)): str(path.readlink()) if path.is_symlink() else path.read_bytes()
        for path in folder.rglob("*")
        if not path.is_dir() and path.name != "data.yaml"
    }


def small_set(root: Path, train: str = "images") -> Path:
    """Three images: two with boxes, a polygon and a bad row, and one without a label file."""
    for name in ("1", "2", "3"):
        (root / "images").mkdir(parents=True, exist_ok=True)
        PIL.Image.new("RGB", (20, 10)).save(root / "images" / f"{name}.png")
    (root / "labels").mkdir()
    (root / "labels/1.txt").write_text("0 .5 .5 .5 .5\n1 .1 .1 .3 .1 .2 .4\n0 .5 .5 0 .5\n")
    (root / "labels/2.txt").write_text("1 .5 .5 .5 .5\n")
    (root / "data.yaml").write_text(f"train: {train}\nval: images\nnames: [cat, dog]\n")
    return root / "data.yaml"


def test_a_check_tells_all_as_json_and_as_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, file = small_set(tmp_path), tmp_path / "found.json"
    assert main(["data", "check", str(data), "--json", str(file)]) == 0
    found = json.loads(file.read_text())
    of = found["splits"]["train"]
    counts = ("images", "boxes", "images_without_boxes", "images_without_label_file")
    assert [of[name] for name in counts] == [3, 3, 1, 1]
    assert of["classes"] == [{"class": 0, "name": "cat", "boxes": 1}, {"class": 1, "name": "dog", "boxes": 2}]
    (row,) = [problem for problem in of["problems"] if problem["line"] == 3]
    assert row["file"] == str(tmp_path / "labels/1.txt") and row["kind"] == "left out"
    assert found["mistakes"] == {}
    shown = capsys.readouterr().out.splitlines()
    assert ["boxes", "3", "3"] in [line.split() for line in shown]
    assert ["boxes", "of", "dog", "2", "2"] in [line.split() for line in shown]


def test_a_check_tells_all_where_a_run_would_end(tmp_path: Path) -> None:
    data = small_set(tmp_path)
    (tmp_path / "labels/2.txt").write_text("7 .5 .5 .5 .5\n")
    told: list[Checked] = []
    with pytest.raises(UserError, match="1 rows have a class that is not in"):
        check_data(CheckOptions(data=str(data)), ALONE, told.append)
    found = told[0].as_json()
    assert set(found["mistakes"]) == {"train", "val"}
    assert [p["about"] for p in found["splits"]["val"]["problems"] if p["kind"] == "bad class"] == ["7"]


def test_ranks_find_what_one_finds(digits: Path) -> None:
    told: list[Checked] = []
    for ranks in (1, 3):
        run_world(ranks, lambda comm: check_data(CheckOptions(data=str(digits)), comm, told.append))
    assert told[0].as_json() == told[1].as_json() and len(told) == 2


@pytest.mark.parametrize("kind", FORMATS)
def test_any_number_of_ranks_converts_to_the_same_files(digits: Path, tmp_path: Path, kind: Kind) -> None:
    for ranks in (1, 3):
        options = ConvertOptions(data=str(digits), to=kind, out=tmp_path / str(ranks))
        assert run_world(ranks, partial(convert_data, options)) == [35] * ranks
    assert files_in(tmp_path / "1") == files_in(tmp_path / "3")
    before, after = (annotations_of(load_data_yaml(data)) for data in (digits, tmp_path / "1/data.yaml"))
    np.testing.assert_array_equal(after.classes, before.classes)
    np.testing.assert_allclose(after.boxes_xyxy, before.boxes_xyxy, rtol=0, atol=1e-3)


def test_what_is_not_kept_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """From YOLO the polygons; from COCO masks, crowds and areas; from VOC the marks."""
    data = small_set(tmp_path / "yolo")

    def said(data: Path, kind: Kind, folder: str) -> str:
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            convert_data(ConvertOptions(data=str(data), to=kind, out=tmp_path / folder), ALONE)
        return " ".join(line for line in caplog.messages if line.startswith("not kept"))

    # both splits are of the same images, so each is counted twice
    assert said(data, "coco", "1") == "not kept: 2 rows of polygons or key points: their boxes are kept"
    content = json.loads((tmp_path / "1/train.json").read_text())
    content["annotations"][0] |= {"segmentation": [[1, 1, 5, 5, 1, 5]], "area": 12.5}
    content["annotations"][1]["iscrowd"] = 1
    (tmp_path / "1/train.json").write_text(json.dumps(content))
    assert said(tmp_path / "1/data.yaml", "voc", "2") == (
        "not kept: 1 areas of objects other than their boxes'; 1 crowds, which are left out: the format has "
        "none; 1 objects with segmentation"
    )
    xml = tmp_path / "2/Annotations/2.xml"
    xml.write_text(xml.read_text().replace("<difficult>0", "<difficult>1"))
    assert said(tmp_path / "2/data.yaml", "list", "3") == "not kept: 2 marks that an object is difficult"
    assert said(tmp_path / "3/data.yaml", "yolo", "4") == ""


def test_a_pack_is_converted_with_copies_only(digits: Path, tmp_path: Path) -> None:
    packed = pack(digits, tmp_path / "packed")
    options = {"data": str(packed), "to": "coco", "out": tmp_path / "new"}
    with pytest.raises(UserError, match="say --copy"):
        convert_data(ConvertOptions(**options), ALONE)  # type: ignore[arg-type]
    convert_data(ConvertOptions(**options, copy=True), ALONE)  # type: ignore[arg-type]
    image = sorted((digits.parent / "images/train").iterdir())[0]
    assert (tmp_path / "new/images/train" / image.name).read_bytes() == image.read_bytes()


def test_nothing_is_written_into_a_folder_that_has_something(digits: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").touch()
    for convert in (
        lambda: convert_data(ConvertOptions(data=str(digits), to="voc", out=tmp_path), ALONE),
        lambda: split_data(SplitOptions(data=str(digits), out=tmp_path), ALONE),
    ):
        with pytest.raises(UserError, match=r"is not empty: 'mine.txt'"):
            convert()
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_split_has_each_image_once_and_leaves_all_where_it_is(digits: Path, tmp_path: Path) -> None:
    before = files_in(digits.parent)
    for ranks in (1, 2):
        options = SplitOptions(data=str(digits), out=tmp_path / str(ranks), ratio=(0.6, 0.2, 0.2), seed=4)
        sizes = run_world(ranks, partial(split_data, options))[0]
    assert sizes == {"train": 21, "val": 7, "test": 7}
    assert files_in(tmp_path / "1") == files_in(tmp_path / "2") and files_in(digits.parent) == before
    assert sorted(files_in(tmp_path / "1")) == ["test.txt", "train.txt", "val.txt"]
    spec = load_data_yaml(tmp_path / "1/data.yaml")
    old = load_data_yaml(digits)
    marks = [annotations_of(spec, split).marks for split in spec.splits]
    theirs = [annotations_of(old, split).marks for split in old.splits]
    np.testing.assert_array_equal(np.sort(np.concatenate(marks)), np.sort(np.concatenate(theirs)))


def test_a_split_keeps_label_files_and_formats_as_they_are(tmp_path: Path) -> None:
    """Copied label files are the same bytes, polygons too; COCO stays COCO, and lists stay lists."""
    data = small_set(tmp_path / "yolo")
    split_data(SplitOptions(data=str(data), out=tmp_path / "1", ratio=(2, 1), copy=True), ALONE)
    labels = {path.name: path.read_bytes() for path in (tmp_path / "1/labels").rglob("*.txt")}
    assert labels == {path.name: path.read_bytes() for path in (tmp_path / "yolo/labels").iterdir()}
    assert len([path for path in (tmp_path / "1/images").rglob("*.png") if not path.is_symlink()]) == 3
    for kind, made in (("coco", "train.json"), ("voc", "train.json"), ("list", "train.txt")):
        convert_data(ConvertOptions(data=str(data), to=kind, out=tmp_path / kind), ALONE)  # type: ignore[arg-type]
        there = tmp_path / f"{kind} split"
        split_data(SplitOptions(data=str(tmp_path / kind / "data.yaml"), out=there, ratio=(2, 1)), ALONE)
        assert (there / made).is_file()
        spec = load_data_yaml(there / "data.yaml")
        assert sum(len(annotations_of(spec, split)) for split in spec.splits) == 3


def test_every_split_has_its_share_of_a_rare_class() -> None:
    """Of 400 images 20 have the rare class: a fifth of them is in a fifth of the set, whatever the seed."""
    rng = np.random.default_rng(1)
    classes = [np.array([0] * int(rng.integers(5)) + [1] * (i % 20 == 0)) for i in range(400)]
    names = [f"{i}.jpg" for i in range(400)]
    for seed in range(5):
        split = assign(names, classes, (0.8, 0.2), seed)
        assert np.bincount(split).tolist() == [320, 80]
        assert np.bincount(split[::20]).tolist() == [16, 4]
    order = rng.permutation(400)
    again = assign([names[i] for i in order], [classes[i] for i in order], (4, 1), 4)
    np.testing.assert_array_equal(again, split[order])  # the order of the images does not matter
    assert (assign(names, classes, (0.8, 0.2), 9) != split).any()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["split", "DATA", "--out", "OUT", "--ratio", "1"], "give the shares of train, val and maybe test"),
        (["split", "DATA", "--out", "OUT", "--ratio", "0.999", "0.001"], "'val' would have no image"),
        (["split", "DATA", "--out", "OUT", "--seed", "-1"], "it must be 0 or more"),
        (["convert", "DATA", "--to", "pascal", "--out", "OUT"], "invalid choice: 'pascal'"),
        (["check"], "one data set is to be named"),
        (["check", "DATA", "--data", "OUT"], "one data set is to be named"),
    ],
)
def test_mistakes_are_one_line(
    digits: Path, tmp_path: Path, flags: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = {"DATA": str(digits), "OUT": str(tmp_path / "out")}
    assert main(["data", *(words.get(flag, flag) for flag in flags)]) == 2
    complaint = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert len(complaint) == 1 and said in complaint[0]


def test_statistics_are_one_page_without_a_network(tmp_path: Path) -> None:
    data, page = small_set(tmp_path), tmp_path / "there" / "stats.html"
    (tmp_path / "data.yaml").write_text("train: images\nval: images\nnames: [<cat>, dog, never]\n")
    options = StatsOptions(data=str(data), out=page, pictures=2)
    assert run_world(2, partial(data_stats, options)) == [page] * 2
    text = page.read_text()
    assert "<td>&lt;cat&gt;</td><td>1</td><td>1</td><td>1</td><td>1</td>" in text
    assert "<td>dog</td><td>2</td><td>2</td>" in text and "<td>never</td><td>0</td><td>0</td>" in text
    assert text.count("data:image/jpeg") == 2 and text.count("data:image/png") == 6
    assert not re.search(r"<script [^>]|<link|https?://", re.sub(r"base64,[^\"]*", "", text))
    for kind, magic in (("jpeg", b"\xff\xd8"), ("png", b"\x89PNG")):
        for found in re.findall(rf"data:image/{kind};base64,([^\"]*)", text):
            assert base64.b64decode(found).startswith(magic)


def test_pictures_show_each_class_where_they_can(digits: Path) -> None:
    annotations = annotations_of(load_data_yaml(digits))
    found = chosen(annotations, 10, seed=0)
    shown = set(np.concatenate([annotations.record(i).classes for i in found]).tolist())
    assert len(found) == len(set(found)) == 10 and shown == set(annotations.classes.tolist())
    assert chosen(annotations, 4, seed=0) == found[:4] and chosen(annotations, 10, seed=1) != found
    assert sorted(chosen(annotations, 1000, seed=0)) == list(range(len(annotations)))
