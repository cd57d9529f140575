"""Other trainers' weights, cut, spliced and made to harm: weights or a `UserError`, and no code is run."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from horovod_yolo.checkpoint.published import opened_published
from horovod_yolo.core.errors import UserError
from tests.fuzz.mutations import fuzzed, mutated
from tests.fuzz.test_checkpoints import ARGUMENTS, OPCODES
from tests.helpers.hostile_files import END, KEY, MODULE, TENSOR, archive, described, members, program

brief = settings(fuzzed, max_examples=60)  # the unpickler is small: most mutations take the same ways
TOKENS = [*OPCODES, *ARGUMENTS, END, KEY, MODULE, TENSOR, b"q\0", b"h\0"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("published")


def read(data: bytes, folder: Path) -> bool:
    (folder / "fuzzed.pt").write_bytes(data)
    try:
        with opened_published(folder / "fuzzed.pt") as file:
            file.tensors(file.shapes)
    except UserError as error:
        assert "\n" not in str(error) and len(str(error)) < 600
        return False
    return True


def test_what_is_mutated_is_whole(folder: Path) -> None:
    assert read(archive({}), folder)
    assert read(program(members()["data.pkl"][2:]), folder)


@brief
@given(data=mutated([archive({})], [b"PK\x01\x02", b"PK\x03\x04", b"PK\x05\x06", b"\xff" * 4, b"\0" * 8]))
def test_bytes(folder: Path, data: bytes) -> None:
    read(data, folder)


@brief
@given(opcodes=st.lists(st.sampled_from(TOKENS) | st.binary(max_size=4), max_size=40).map(b"".join))
def test_opcodes(folder: Path, opcodes: bytes) -> None:
    read(program(opcodes), folder)


@brief
@given(changed=mutated([members()["data.pkl"]], TOKENS))
def test_spliced_pickles(folder: Path, changed: bytes) -> None:
    read(archive({"data.pkl": changed}), folder)


SAFE = described({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}, bytes(8))


@brief
@given(data=mutated([SAFE], [b"{", b"[", b'"', b"\xff" * 8, b"4294967296", b'"F16"', b"-1"]))
def test_safetensors(folder: Path, data: bytes) -> None:
    read(data, folder)
