"""Millions of objects hold up no thread: neither the collector nor their end."""

from __future__ import annotations

import gc
import threading

import pytest

from horovod_yolo.process import garbage
from horovod_yolo.process.garbage import FREED_AT_ONCE, free, uncollected


def collected_youngest() -> bool:
    """Whether making many objects sets the collector off."""
    seen: list[str] = []

    def note(phase: str, _info: dict[str, int]) -> None:
        seen.append(phase)

    gc.callbacks.append(note)
    try:
        kept = [[i] for i in range(5000)]
    finally:
        gc.callbacks.remove(note)
    return bool(kept and seen)


def test_what_is_made_inside_is_looked_at_only_when_it_is_freed() -> None:
    assert collected_youngest()
    with uncollected():
        assert not collected_youngest()
        objects = [[i] for i in range(100)]
    assert collected_youngest() and gc.get_freeze_count() >= 100
    assert not any(each is objects[0] for each in gc.get_objects())
    free(objects)
    assert objects == [] and gc.get_freeze_count() == 0


def test_the_collector_comes_back_after_an_error_and_stays_off_where_it_was_off() -> None:
    with pytest.raises(KeyError), uncollected():
        raise KeyError
    assert gc.isenabled()
    gc.disable()
    try:
        with uncollected():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
        free([])


def test_a_long_list_is_freed_beside_the_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    pieces: list[int] = []

    class Counted(list[object]):
        def __delitem__(self, place: object) -> None:
            before = len(self)
            super().__delitem__(place)  # type: ignore[arg-type]
            pieces.append(before - len(self))
            assert threading.current_thread() is not threading.main_thread()

    monkeypatch.setattr(garbage, "FREED_AT_ONCE", 10)
    monkeypatch.setattr(garbage, "FREED_HERE", 20)
    objects = Counted(range(25))
    free(objects)
    for thread in threading.enumerate():
        if thread.name == "free":
            thread.join(10)
    assert pieces == [10, 10, 5] and not objects
    assert FREED_AT_ONCE <= 5_000
