"""Weights that were made to harm: nothing runs, and each ends in one line within 5 s and 200 MB."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from horovod_yolo.checkpoint.published import opened_published
from horovod_yolo.core.errors import UserError
from horovod_yolo.io import inert_pickle
from tests.helpers.hostile_files import END, HOSTILE, KEY, PROTOCOL, TENSOR, archive, program

SECONDS, BYTES = 5.0, 200 << 20


def peak_bytes() -> int:
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) << 10


def refused(path: Path) -> str:
    """The line that a file ends in, which must be one, in time and within the memory."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
    before, began = peak_bytes(), time.process_time()
    with pytest.raises(UserError) as caught, opened_published(path) as file:
        file.tensors(file.shapes)
    taken, seconds = peak_bytes() - before, time.process_time() - began
    assert seconds < SECONDS, f"{seconds:.1f} s"
    assert taken < path.stat().st_size + BYTES, f"{taken >> 20} MiB"
    line = str(caught.value)
    assert line.startswith(f"{path}: ") and "\n" not in line and len(line) < 500
    return line


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_ends_in_a_line(name: str, tmp_path: Path) -> None:
    make, words = HOSTILE[name]
    (tmp_path / "w.pt").write_bytes(make())
    assert words in refused(tmp_path / "w.pt")


def test_the_file_that_they_were_made_of_is_whole(tmp_path: Path) -> None:
    (tmp_path / "w.pt").write_bytes(archive({}))
    with opened_published(tmp_path / "w.pt") as file:
        assert file.tensors(file.shapes)["model.a.weight"].tolist() == [0, 1, 2, 3, 4, 5]
    rebuilt = program(KEY + TENSOR + b"K\1K\2\x85K\2\x85" + END + b"s.")
    (tmp_path / "w.pt").write_bytes(rebuilt)
    with opened_published(tmp_path / "w.pt") as file:
        assert file.tensors(file.shapes)["model.a.weight"].tolist() == [1, 3]


def test_the_machine_knows_no_import(monkeypatch: pytest.MonkeyPatch) -> None:
    """Names are only remembered, also those that the rules allow."""
    rules = inert_pickle.Rules({}, lambda path: True, lambda identity: identity)
    value = inert_pickle.load(PROTOCOL + b"cnot.there\nThing\n)\x81}X\1\0\0\0aK\1sb.", rules)
    assert isinstance(value, inert_pickle.Inert)
    assert (value.cls.path, value.attributes) == ("not.there.Thing", {"a": 1})
