"""Copies of a data set have equal names and sizes; each is told from the others by times and inodes."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import numpy as np
import pytest

from horovod_yolo.data import listing
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


@pytest.mark.parametrize(("quick", "threads"), [(1e9, False), (-1.0, True)])
def test_threads_look_at_files_only_where_that_is_slow(
    digits: Path, monkeypatch: pytest.MonkeyPatch, quick: float, threads: bool
) -> None:
    spec = load_data_yaml(digits)
    entries = list_entries(spec, "train")
    whole = survey(entries, spec, "train")
    seen: set[threading.Thread] = set()
    advanced: list[int] = []

    def states(part: list[listing.Entry]) -> listing.States:
        seen.add(threading.current_thread())
        return real(part)

    real = listing._states
    monkeypatch.setattr(listing, "_states", states)
    monkeypatch.setattr(listing, "ENTRIES_AT_ONCE", 3)
    monkeypatch.setattr(listing, "PARTS_AT_ONCE", 2)
    monkeypatch.setattr(listing, "SECONDS_OF_A_QUICK_PART", quick)
    pieces = survey(entries, spec, "train", advanced.append)
    np.testing.assert_array_equal(pieces.image_states, whole.image_states)
    np.testing.assert_array_equal(pieces.label_states, whole.label_states)
    assert advanced == [3] * 9 + [1]
    assert (len(seen) > 1) == threads


@pytest.mark.parametrize("run", [1, 4, 1000])
def test_a_list_in_any_order_gives_one_order(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: int
) -> None:
    images = sorted(str(entry.image) for entry in list_entries(load_data_yaml(digits), "train"))
    shuffled = np.random.default_rng(0).permutation([*images, images[3]]).tolist()
    (tmp_path / "train.txt").write_text("\n".join(shuffled))
    (tmp_path / "data.yaml").write_text("train: train.txt\nval: train.txt\nnames: [a]\n")
    monkeypatch.setattr(listing, "ENTRIES_OF_A_RUN", run)
    entries = list_entries(load_data_yaml(tmp_path / "data.yaml"), "train")
    assert [str(entry.image) for entry in entries] == images
    assert [entry.image_id for entry in entries] == list(range(28))
    (twice,) = (problem for problem in entries[0].problems if "more than once" in problem.reason)
    assert twice.line == len(shuffled) - shuffled[::-1].index(images[3]), "the later line is named"
