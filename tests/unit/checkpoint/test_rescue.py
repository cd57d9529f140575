"""Survivors bring the last commit to the disk once, and know whether it is there."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from horovod_yolo.checkpoint import store
from horovod_yolo.checkpoint.migration import FORMAT_VERSION
from horovod_yolo.checkpoint.rescue import save_at_last, save_once

State = dict[str, object]


def state(step: int, epoch: int = 1) -> State:
    return {"format_version": FORMAT_VERSION, "step": step, "epoch": epoch}


def test_many_survivors_write_one_file(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: save_once(tmp_path, state(7)), range(8)))
    assert store.read(tmp_path / "weights" / "last.pt")["step"] == 7
    assert [path.name for path in (tmp_path / "weights").glob("*.pt")] == ["last.pt"]


def test_what_is_older_makes_way_and_what_is_newer_stays(tmp_path: Path) -> None:
    save_once(tmp_path, state(7))
    save_once(tmp_path, state(9))
    assert store.read(tmp_path / "weights" / "last.pt")["step"] == 9
    assert store.read(tmp_path / "weights" / "last.1.pt")["step"] == 7
    assert save_at_last(tmp_path, state(8)) == tmp_path / "weights" / "last.pt"
    assert store.read(tmp_path / "weights" / "last.pt")["step"] == 9


def test_the_end_of_an_epoch_is_newer_than_its_last_step(tmp_path: Path) -> None:
    save_once(tmp_path, state(9, epoch=1))
    save_once(tmp_path, state(9, epoch=2))
    assert store.read(tmp_path / "weights" / "last.pt")["epoch"] == 2


def test_at_last_it_is_written_where_the_writer_died(tmp_path: Path) -> None:
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / ".saving-1-7").touch()  # its maker is no more
    save_once(tmp_path, state(7))
    assert not (tmp_path / "weights" / "last.pt").exists()
    assert save_at_last(tmp_path, state(7)) == tmp_path / "weights" / "last.pt"


def test_a_folder_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "weights").write_text("a file")
    save_once(tmp_path, state(7))
    assert save_at_last(tmp_path, state(7)) is None
