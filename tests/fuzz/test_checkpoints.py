"""Checkpoints that are cut, spliced or made to harm: a state or a `CheckpointError`, and no code is run."""

from __future__ import annotations

import hashlib
import io
import pickle
import warnings
import zipfile
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from horovod_yolo.checkpoint import store
from tests.fuzz.mutations import fuzzed, mutated


@cache
def whole() -> bytes:
    state = {
        "format_version": 1,
        "model": {"a": torch.arange(6.0)},
        "names": ["x"],
        "step": 3,
        "rng": (1, None),
    }
    return store.serialise(state)


def sealed(raw: bytes) -> bytes:
    """With the checksum that a stranger can compute as well as we can."""
    end = raw.rfind(b"PK\x05\x06")
    if end < 0:
        return raw
    body = raw[: end + 20] + (71).to_bytes(2, "little")
    return body + b"sha256:" + hashlib.sha256(body).hexdigest().encode()


def archive(members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as made:
        for name, content in members.items():
            made.writestr(f"archive/{name}", content)
    return sealed(stream.getvalue())


@cache
def members() -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(whole())) as made:
        return {name.split("/", 1)[1]: made.read(name) for name in made.namelist()}


def read(data: bytes, folder: Path) -> dict[str, Any] | None:
    file = folder / "fuzzed.pt"
    file.write_bytes(data)
    try:
        state = store.read(file)
    except store.CheckpointError as error:
        assert "\n" not in str(error) and len(error.reason) < 300
        return None
    assert isinstance(state, dict)
    return state


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("checkpoints")


def test_the_seal_is_ours(folder: Path) -> None:
    assert read(whole(), folder) is not None
    assert sealed(whole()[: whole().rfind(b"PK\x05\x06") + 22]) == whole()
    assert read(archive(members()), folder) is not None


@fuzzed
@given(changed=mutated([whole()], [b"PK\x05\x06", b"sha256:", b"\0" * 64]))
def test_bytes_that_changed_are_noticed(folder: Path, changed: bytes) -> None:
    if changed != whole():
        assert read(changed, folder) is None


@fuzzed
@given(data=mutated([whole()], [b"PK\x01\x02", b"PK\x03\x04", b"\xff" * 4, b"\0" * 8]))
def test_sealed_bytes(folder: Path, data: bytes) -> None:
    read(sealed(data), folder)


OPCODES = [
    getattr(pickle, name)
    for name in dir(pickle)
    if name.isupper() and isinstance(getattr(pickle, name), bytes) and len(getattr(pickle, name)) == 1
]
ARGUMENTS = [
    b"ctorch\nTensor\n",
    b"ctorch._utils\n_rebuild_tensor_v2\n",
    b"ccollections\nOrderedDict\n",
    b"cbuiltins\neval\n",
    b"cos\nsystem\n",
    b"ctorch\nFloatStorage\n",
    b"cbuiltins\nbytearray\n",
    b"ctorch\nSize\n",
    b"c_codecs\nencode\n",
    b"ctorch._utils\n_rebuild_parameter\n",
    b"ctorch\ndevice\n",
    b"ctorch.storage\nUntypedStorage\n",
    b"X\x04\0\0\0name",
    b"X\xff\xff\xff\x7f",
    b"\x8a\xff" + b"\x7f" * 255,
    b"(",
    b".",
    b"K\x01",
    b"J\xff\xff\xff\x7f",
    b"h\0",
    b"q\0",
    b"(K\x01t",
    b"(X\x07\0\0\0storagec" + b"torch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpuK\x06tQ",
]


@fuzzed
@given(
    program=st.lists(st.sampled_from([*OPCODES, *ARGUMENTS]) | st.binary(max_size=4), max_size=40).map(
        b"".join
    )
)
@example(b"ctorch\nTensor\n(\x8a\x06\xff\xff\xff\xff\xff\x00tR.")  # a tensor of terabytes
@example(b"cbuiltins\nbytearray\n(\x8a\x06\xff\xff\xff\xff\xff\x00tR.")
@example(b"(" * 200_000 + b"t" * 200_000 + b".")
def test_hostile_opcodes(folder: Path, program: bytes) -> None:
    read(archive({**members(), "data.pkl": b"\x80\x02" + program}), folder)


@fuzzed
@given(program=mutated([members()["data.pkl"]], [*OPCODES, *ARGUMENTS]))
@example(b"\x80\x02}q\0(X\x05\0\0\0modelctorch._utils\n" + b"L" * 60_000)  # torch searched it for hours
@example(members()["data.pkl"].replace(b"K\x06\x85", b"J\xff\xff\xff\x7f\x85"))  # gigabytes of nothing
def test_spliced_pickles(folder: Path, program: bytes) -> None:
    read(archive({**members(), "data.pkl": program}), folder)


def test_an_archive_that_would_grow_is_not_unpacked(folder: Path) -> None:
    bomb = archive({**members(), "data/0": bytes(64 << 20)}, zipfile.ZIP_DEFLATED)
    assert len(bomb) < 1 << 20
    (folder / "bomb.pt").write_bytes(bomb)
    with pytest.raises(store.CheckpointError, match="compressed"):
        store.read(folder / "bomb.pt")


@pytest.mark.parametrize(
    "name",
    ["os\nsystem", "builtins\nbytearray", "torch\nTensor", "L" * 90_000 + "\nL"],
    ids=["system", "bytearray", "Tensor", "long"],
)
def test_a_stranger_name_is_refused_before_torch_sees_it(folder: Path, name: str) -> None:
    program = b"\x80\x02c" + name.encode() + b"\n."
    (folder / "odd.pt").write_bytes(archive({**members(), "data.pkl": program}))
    with pytest.raises(store.CheckpointError, match="more than tensors and plain values"):
        store.read(folder / "odd.pt")


def test_a_tensor_larger_than_its_file(folder: Path) -> None:
    program = members()["data.pkl"]
    grown = program.replace(b"K\x06\x85", b"J\xff\xff\xff\x7f\x85")
    assert grown != program
    (folder / "odd.pt").write_bytes(archive({**members(), "data.pkl": grown}))
    with pytest.raises(store.CheckpointError, match=r"does not load"):
        store.read(folder / "odd.pt")


def test_a_second_pickle_beside_the_first(folder: Path) -> None:
    stream = io.BytesIO(archive(members()))
    with warnings.catch_warnings(), zipfile.ZipFile(stream, "a") as made:
        warnings.simplefilter("ignore")
        made.writestr("archive/data.pkl", b"\x80\x02cos\nsystem\n.")
    (folder / "odd.pt").write_bytes(sealed(stream.getvalue()))
    with pytest.raises(store.CheckpointError, match="members"):
        store.read(folder / "odd.pt")


def test_a_version_that_is_a_tensor(folder: Path) -> None:
    (folder / "odd.pt").write_bytes(store.serialise({"format_version": torch.ones(3)}))
    with pytest.raises(store.CheckpointError, match="format version"):
        store.read(folder / "odd.pt")
