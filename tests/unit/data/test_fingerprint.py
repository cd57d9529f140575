"""Copies of a data set on several hosts are told from each other by content, caches by time too."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from horovod_yolo.data.index import fingerprint, list_entries, relative_name
from horovod_yolo.data.spec import load_data_yaml


def test_copies_differ_in_times_only(tmp_path: Path) -> None:
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
    (tmp_path / "images" / "1.jpg").write_bytes(b"not looked at yet")
    (tmp_path / "labels" / "1.txt").write_text("0 .5 .5 .1 .1\n")
    (tmp_path / "data.yaml").write_text("train: images\nval: images\nnames: [a]\n")
    spec = load_data_yaml(tmp_path / "data.yaml")
    entries = list_entries(spec, "train")
    before = fingerprint(entries, spec, "train")
    os.utime(tmp_path / "images" / "1.jpg", ns=(1, 1))
    touched = fingerprint(entries, spec, "train")
    assert touched.content == before.content and touched.exact != before.exact
    (tmp_path / "labels" / "1.txt").write_text("0 .5 .5 .12 .1\n")
    grown = fingerprint(entries, spec, "train")
    assert grown.content != before.content
    (tmp_path / "labels" / "1.txt").unlink()
    assert fingerprint(entries, spec, "train").content not in (before.content, grown.content)


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
