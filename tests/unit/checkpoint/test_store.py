"""A checkpoint file is whole, or the one before it is; whatever happens to its bytes is noticed."""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from horovod_yolo.checkpoint import store
from horovod_yolo.checkpoint.migration import FORMAT_VERSION
from horovod_yolo.checkpoint.store import CheckpointError


def make_state(seed: int = 0) -> dict[str, Any]:
    values = torch.randn(3, 50, generator=torch.Generator().manual_seed(seed))
    return {
        "format_version": FORMAT_VERSION,
        "model": {"weight": values, "half": values.half(), "count": torch.tensor(7)},
        "progress": {"epoch": 3, "best": -float("inf"), "sums": [0.1, 2.0]},
        "names": ["a", "ü"],
    }


def same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    return bool(a == b)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "last.pt"
    store.write(path, store.serialise(make_state()))
    return path


def files_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_what_is_written_is_read(file: Path) -> None:
    assert same(store.read(file), make_state())
    assert files_in(file.parent) == ["last.pt"]


def test_torch_reads_it_without_us(file: Path) -> None:
    assert same(torch.load(file, weights_only=True), make_state())
    assert same(torch.load(file, weights_only=True, mmap=True), make_state())
    assert zipfile.ZipFile(file).testzip() is None


def test_every_flipped_bit_is_noticed(file: Path, tmp_path: Path) -> None:
    whole = file.read_bytes()
    rng = np.random.default_rng(0)
    places = {*rng.integers(len(whole), size=100).tolist(), 0, len(whole) - 1, len(whole) - 72}
    damaged = tmp_path / "damaged.pt"
    for place in places:
        data = bytearray(whole)
        data[place] ^= 1 << int(rng.integers(8))
        damaged.write_bytes(data)
        with pytest.raises(CheckpointError, match=str(damaged)):
            store.read(damaged)


def test_every_cut_and_extension_is_noticed(file: Path, tmp_path: Path) -> None:
    whole = file.read_bytes()
    damaged = tmp_path / "damaged.pt"
    lengths = {0, 1, 71, 72, 73, len(whole) - 1, len(whole) // 2}
    lengths |= set(np.random.default_rng(1).integers(len(whole), size=40).tolist())
    for data in [*(whole[:length] for length in lengths), whole + b"\0", whole + whole[-71:], whole[1:]]:
        damaged.write_bytes(data)
        with pytest.raises(CheckpointError):
            store.read(damaged)
    damaged.write_bytes(bytes(len(whole)))  # what some file systems leave after a power cut
    with pytest.raises(CheckpointError, match="not a checkpoint of horovod_yolo, or cut short"):
        store.read(damaged)


def test_the_reason_says_what_is_wrong(file: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"none\.pt: No such file"):
        store.read(tmp_path / "none.pt")
    with pytest.raises(CheckpointError, match="not a regular file"):
        store.read(tmp_path)
    data = bytearray(file.read_bytes())
    data[300] ^= 1
    file.write_bytes(data)
    with pytest.raises(CheckpointError, match="damaged: its checksum"):
        store.read(file)
    foreign = tmp_path / "yolov5s.pt"
    torch.save({"model": torch.zeros(3)}, foreign)
    with pytest.raises(CheckpointError, match="not a checkpoint of horovod_yolo"):
        store.read(foreign)


@pytest.mark.parametrize(
    "content", [[1, 2], {"weights": 1}, {"format_version": FORMAT_VERSION + 1}, torch.zeros(2)]
)
def test_other_content_under_a_sound_checksum(tmp_path: Path, content: Any) -> None:
    path = tmp_path / "other.pt"
    path.write_bytes(store.serialise(content))
    with pytest.raises(CheckpointError, match=f"format version {FORMAT_VERSION}"):
        store.read(path)


class Dangerous:
    """Pickles to a call that makes a file."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.proof),)


def test_code_is_refused_and_not_run(tmp_path: Path) -> None:
    proof, path = tmp_path / "proof", tmp_path / "evil.pt"
    path.write_bytes(store.serialise({**make_state(), "extra": Dangerous(proof)}))
    with pytest.raises(CheckpointError, match="does not load"):
        store.read(path)
    path.write_bytes(pickle.dumps(Dangerous(proof)))
    with pytest.raises(CheckpointError):
        store.read(path)
    assert not proof.exists()
    buffer = io.BytesIO(store.serialise({**make_state(), "extra": Dangerous(proof)}))
    torch.load(buffer, weights_only=False)
    assert proof.exists()  # the danger was real


class Crash(BaseException):
    """The process ends here."""


@pytest.mark.parametrize("content", [b"", b"half of it"])
def test_a_crash_while_writing_leaves_the_old_file(file: Path, content: bytes) -> None:
    before = file.read_bytes()
    with pytest.raises(Crash), store.replacing(file) as stream:
        stream.write(content)
        raise Crash
    assert file.read_bytes() == before
    assert files_in(file.parent) == ["last.pt"]


@pytest.mark.parametrize("call", ["fsync", "rename"])
def test_a_failing_disk_leaves_the_old_file(file: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    def fail(*_: Any) -> None:
        raise OSError(5, "Input/output error")

    before = file.read_bytes()
    with monkeypatch.context() as patch:
        if call == "fsync":
            patch.setattr(os, "fsync", fail)
        else:
            patch.setattr(Path, "replace", fail)
        with pytest.raises(OSError, match="Input/output error"):
            store.write(file, b"new")
    assert file.read_bytes() == before
    assert files_in(file.parent) == ["last.pt"]


def test_content_is_on_the_disk_before_it_gets_the_name(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def logged_fsync(descriptor: int) -> None:
        calls.append(f"fsync {Path(f'/proc/self/fd/{descriptor}').readlink().name}")
        fsync(descriptor)

    def logged_replace(self: Path, target: Path) -> Path:
        calls.append("rename")
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", logged_fsync)
    monkeypatch.setattr(Path, "replace", logged_replace)
    store.write(file, b"new")
    assert re.fullmatch(r"fsync \.last\.pt\.[0-9a-f]{8}\.tmp", calls[0])
    assert calls[1:] == ["rename", f"fsync {file.parent.name}"]


def test_the_last_generations_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    for number in range(5):
        store.write_rotating(path, store.serialise(make_state(number)), keep=3)
    assert files_in(tmp_path) == ["last.1.pt", "last.2.pt", "last.pt"]
    for name, seed in (("last.pt", 4), ("last.1.pt", 3), ("last.2.pt", 2)):
        assert same(store.read(tmp_path / name), make_state(seed))


def test_generations_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(*_: Any) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    for number in range(3):
        store.write_rotating(tmp_path / "last.pt", b"%d" % number, keep=2)
    assert (tmp_path / "last.pt").read_bytes() == b"2"
    assert (tmp_path / "last.1.pt").read_bytes() == b"1"
    assert files_in(tmp_path) == ["last.1.pt", "last.pt"]


def crash_before_call(patch: pytest.MonkeyPatch, number: int) -> None:
    """End the process before the n-th call that changes the folder."""
    calls = 0

    def counted(original: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == number:
                raise Crash
            return original(*args, **kwargs)

        return call

    patch.setattr(os, "fsync", counted(os.fsync))
    patch.setattr(os, "link", counted(os.link))
    patch.setattr(Path, "replace", counted(Path.replace))


@pytest.mark.parametrize("crash_at", range(1, 9))
def test_at_every_moment_of_a_rotation_the_newest_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, crash_at: int
) -> None:
    """The newest readable one is the old or the new."""
    path = tmp_path / "last.pt"
    for number in range(3):
        store.write_rotating(path, store.serialise(make_state(number)), keep=3)
    with monkeypatch.context() as patch:
        crash_before_call(patch, crash_at)
        with pytest.raises(Crash):
            store.write_rotating(path, store.serialise(make_state(3)), keep=3)
    newest = store.read(path)
    assert same(newest, make_state(2)) or same(newest, make_state(3))
    assert all(store.read(tmp_path / name) for name in ("last.1.pt", "last.2.pt"))


def test_the_next_writer_clears_away_what_a_killed_one_left(file: Path) -> None:
    leftovers = [file.with_name(f".{name}.{k}.tmp") for name in ("last.pt", "last.1.pt") for k in "ab"]
    others = [file.with_name(name) for name in (".best.pt.a.tmp", ".last.pt.swp", "last.pt.tmp")]
    for path in (*leftovers, *others):
        path.write_bytes(b"half")
    store.write_rotating(file, store.serialise(make_state(1)), keep=2)
    assert files_in(file.parent) == sorted([*(path.name for path in others), "last.1.pt", "last.pt"])


@pytest.mark.parametrize("crashes", [1, 5])
@pytest.mark.parametrize("crash_at", range(1, 9))
def test_interrupted_rotations_push_nothing_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, crash_at: int, crashes: int
) -> None:
    """However often a rotation is interrupted at the same place, two older states than the newest stay."""
    path = tmp_path / "last.pt"
    for number in range(3):
        store.write_rotating(path, b"%d" % number, keep=3)
    for attempt in range(crashes):
        with monkeypatch.context() as patch, contextlib.suppress(Crash):
            crash_before_call(patch, crash_at)
            store.write_rotating(path, b"%d" % (3 + attempt), keep=3)
    store.write_rotating(path, b"9", keep=3)
    kept = [(tmp_path / name).read_bytes() for name in ("last.pt", "last.1.pt", "last.2.pt")]
    assert kept == sorted(set(kept), reverse=True)


FULL_DISK = """
import resource, signal, sys
from pathlib import Path
from horovod_yolo.checkpoint import store

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
for _ in range(4):
    try:
        store.write_rotating(Path(sys.argv[1]), bytes(20_000), keep=3)
    except OSError as error:
        print(error.strerror)
"""


def test_a_full_disk_costs_no_generation(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    for number in range(3):
        store.write_rotating(path, b"%d" % number, keep=3)
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(path)], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == ["File too large"] * 4
    content = {name: (tmp_path / name).read_bytes() for name in files_in(tmp_path)}
    assert content == {"last.pt": b"2", "last.1.pt": b"1", "last.2.pt": b"0"}


def test_no_descriptor_is_left_open(tmp_path: Path) -> None:
    data = store.serialise(make_state())
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(3):
        store.write_rotating(tmp_path / "last.pt", data, 3)
        store.read(tmp_path / "last.pt")
    assert len(list(Path("/proc/self/fd").iterdir())) == before


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (RuntimeError("the first line\nand the rest"), r"does not load \(the first line\)$"),
        (RuntimeError(), r"does not load \(RuntimeError\)$"),
    ],
)
def test_the_reason_is_one_line(
    file: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, reason: str
) -> None:
    def load(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(torch, "load", load)
    with pytest.raises(CheckpointError, match=reason):
        store.read(file)


def test_a_file_larger_than_the_memory(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Huge(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            if size is not None and size > 1000:
                raise MemoryError
            return super().read(size)

    @contextlib.contextmanager
    def opened(path: Path) -> Iterator[tuple[Huge, int]]:
        data = path.read_bytes()
        yield Huge(data), len(data)

    monkeypatch.setattr(store, "opened", opened)
    with pytest.raises(store.UnreadableError, match="does not fit into memory"):
        store.read(file)


def test_another_format_of_torch_is_noticed_in_writing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "save", lambda state, buffer: buffer.write(b"x" * 100))
    with pytest.raises(RuntimeError, match="no longer ends its archive"):
        store.serialise(make_state())


def test_a_compressed_archive_is_refused_unopened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save = torch.save

    def save_compressed(state: Any, file: io.BytesIO) -> None:
        whole = io.BytesIO()
        save(state, whole)
        with zipfile.ZipFile(whole) as source, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as target:
            for member in source.infolist():
                target.writestr(member.filename, source.read(member))

    monkeypatch.setattr(torch, "save", save_compressed)
    path = tmp_path / "last.pt"
    path.write_bytes(store.serialise(make_state()))
    with pytest.raises(CheckpointError, match=r"does not load \(it is compressed"):
        store.read(path)


def test_a_generation_that_cannot_be_put_in_place_leaves_nothing_unfinished(tmp_path: Path) -> None:
    """Somebody made a folder by its name."""
    path = tmp_path / "last.pt"
    store.write(path, store.serialise({"format_version": FORMAT_VERSION, "step": 1}))
    (tmp_path / "last.1.pt" / "full").mkdir(parents=True)
    with pytest.raises(OSError, match=r"last\.1\.pt"):
        store.write_rotating(path, store.serialise({"format_version": FORMAT_VERSION, "step": 2}), 2)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["last.1.pt", "last.pt"]
    assert store.read(path)["step"] == 1
