"""Copies of a data set on several hosts are told from each other by content, caches by time too."""

from __future__ import annotations

import os
from pathlib import Path

from horovod_yolo.data.index import content_key, list_entries
from horovod_yolo.data.spec import load_data_yaml


def test_copies_differ_in_times_only(tmp_path: Path) -> None:
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
    (tmp_path / "images" / "1.jpg").write_bytes(b"not looked at yet")
    (tmp_path / "labels" / "1.txt").write_text("0 .5 .5 .1 .1\n")
    (tmp_path / "data.yaml").write_text("train: images\nval: images\nnames: [a]\n")
    spec = load_data_yaml(tmp_path / "data.yaml")
    entries = list_entries(spec, "train")
    with_times, without = (content_key(entries, spec, "train", times=times) for times in (True, False))
    os.utime(tmp_path / "images" / "1.jpg", ns=(1, 1))
    assert content_key(entries, spec, "train") != with_times
    assert content_key(entries, spec, "train", times=False) == without
    (tmp_path / "labels" / "1.txt").write_text("0 .5 .5 .12 .1\n")
    assert content_key(entries, spec, "train", times=False) != without
