"""Copies of a data set have equal names and sizes; each is told from the others by times and inodes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from horovod_yolo.data.listing import list_entries, relative_name, survey
from horovod_yolo.data.spec import load_data_yaml


def test_sizes_and_times(tmp_path: Path) -> None:
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
    (tmp_path / "images" / "1.jpg").write_bytes(b"not looked at yet")
    (tmp_path / "labels" / "1.txt").write_text("0 .5 .5 .1 .1\n")
    (tmp_path / "data.yaml").write_text("train: images\nval: images\nnames: [a]\n")
    spec = load_data_yaml(tmp_path / "data.yaml")
    entries = list_entries(spec, "train")
    before = survey(entries, spec, "train")
    os.utime(tmp_path / "images" / "1.jpg", ns=(1, 1))
    touched = survey(entries, spec, "train")
    assert touched.sizes == before.sizes and touched.copy != before.copy
    (tmp_path / "labels" / "1.txt").write_text("0 .5 .5 .12 .1\n")
    grown = survey(entries, spec, "train")
    assert grown.sizes != before.sizes
    (tmp_path / "labels" / "1.txt").unlink()
    assert survey(entries, spec, "train").sizes not in (before.sizes, grown.sizes)


@pytest.mark.parametrize(
    ("path", "root", "name"),
    [
        ("/a/b/c.jpg", "/a", "b/c.jpg"),
        ("/a/b/c.jpg", "/a/b/", "c.jpg"),
        ("/ab/c.jpg", "/a", "/ab/c.jpg"),
        ("/c.jpg", "/", "c.jpg"),
        ("b/c.jpg", "/a", "b/c.jpg"),
    ],
)
def test_relative_name(path: str, root: str, name: str) -> None:
    assert relative_name(Path(path), Path(root)) == name
