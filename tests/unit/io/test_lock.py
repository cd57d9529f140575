"""A lock file: kept alive by its owner, taken from one who is gone, never from one who may be alive."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from horovod_yolo.io import lock
from horovod_yolo.io.lock import FileLock, HeldError, Verdict


@pytest.fixture(autouse=True)
def _hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "SECONDS_BETWEEN_TOUCHES", 0.05)
    monkeypatch.setattr(lock, "SECONDS_UNTIL_STALE", 0.5)
    monkeypatch.setattr(lock, "SECONDS_BETWEEN_LOOKS", 0.02)


def unknown(content: bytes) -> Verdict:
    return Verdict.UNKNOWN


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run.lock"


@pytest.fixture
def held(path: Path) -> Iterator[FileLock]:
    owner = FileLock.take(path, b"me", unknown)
    yield owner
    owner.release()


def wait_until_lost(held: FileLock) -> None:
    end = time.monotonic() + 10
    while held.lost_to is None and time.monotonic() < end:
        time.sleep(0.01)


def test_a_lock_is_there_while_it_is_held(path: Path) -> None:
    held = FileLock.take(path, b"me", unknown)
    assert path.read_bytes() == b"me"
    held.release()
    assert not path.exists()


def test_one_that_is_touched_is_not_taken_whatever_its_clock_says(held: FileLock, path: Path) -> None:
    os.utime(path, (0, 0))
    with pytest.raises(HeldError) as caught:
        FileLock.take(path, b"you", unknown)
    assert caught.value.content == path.read_bytes() == b"me"
    assert held.lost_to is None


def test_one_that_nobody_touches_is_taken_after_a_while(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its time is tomorrow's: only the watcher's own clock counts, and one that steps does not."""
    monkeypatch.setattr(time, "time", lambda: 0.0)
    path.write_bytes(b"killed")
    tomorrow = time.monotonic() + 1e6
    os.utime(path, (tomorrow, tomorrow))
    start = time.monotonic()
    held = FileLock.take(path, b"me", unknown)
    assert time.monotonic() - start >= 0.5
    assert path.read_bytes() == b"me"
    held.release()


@pytest.mark.parametrize("verdict", [Verdict.GONE, Verdict.ALIVE])
def test_nothing_is_watched_where_more_is_known(
    path: Path, verdict: Verdict, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "sleep", lambda _: pytest.fail("it waited"))
    path.write_bytes(b"you")
    if verdict is Verdict.ALIVE:
        with pytest.raises(HeldError):
            FileLock.take(path, b"me", lambda _: verdict)
        assert path.read_bytes() == b"you"
    else:
        FileLock.take(path, b"me", lambda _: verdict).release()


def test_who_has_lost_it_knows_and_leaves_the_new_one_alone(held: FileLock, path: Path) -> None:
    other = FileLock.take(path, b"you", lambda _: Verdict.GONE)
    wait_until_lost(held)
    assert held.lost_to == b"you"
    held.release()
    assert path.read_bytes() == b"you"
    other.release()


def test_one_that_was_deleted_is_made_anew(held: FileLock, path: Path) -> None:
    path.unlink()
    held.touch()
    assert path.read_bytes() == b"me"


def test_one_that_is_dropped_stays_and_is_touched_no_more(path: Path) -> None:
    held = FileLock.take(path, b"me", unknown)
    held.drop()
    before = path.stat().st_mtime_ns
    time.sleep(0.15)
    assert path.stat().st_mtime_ns == before


def test_of_many_who_come_at_once_one_gets_it(path: Path) -> None:
    path.write_bytes(b"killed")
    got: list[FileLock] = []
    refused: list[bytes] = []

    def judge(content: bytes) -> Verdict:
        return Verdict.GONE if content == b"killed" else Verdict.ALIVE

    def come(name: bytes) -> None:
        try:
            got.append(FileLock.take(path, name, judge))
        except HeldError as error:
            refused.append(error.content)

    threads = [threading.Thread(target=come, args=(b"%d" % i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for each in got:
        each.touch()
    assert len([each for each in got if each.lost_to is None]) == 1
    assert [*path.parent.iterdir()] == [path]
    for each in got:
        each.release()
    assert [*path.parent.iterdir()] == []
