"""A file of columns is whole when it is mapped, and stays what it was for whoever has it open."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from horovod_yolo.io.columns import (
    DamagedError,
    check_columns,
    columns_in_memory,
    open_columns,
    read_about,
    write_columns,
)

COLUMNS = {
    "floats": np.arange(12, dtype=np.float32).reshape(3, 4),
    "none": np.empty((0, 4), np.float32),
    "flags": np.array([True, False]),
    "scalars": np.arange(1000),
}
ABOUT = {"what": "a test", "names": ["é"]}


def written(path: Path) -> str:
    with path.open("wb") as file:
        return write_columns(file, ABOUT, COLUMNS)


@given(
    columns=st.dictionaries(
        st.text(max_size=5),
        arrays.arrays(
            st.sampled_from((np.int64, np.float32, np.bool_, np.uint8, np.uint64)),
            arrays.array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=5),
        ),
        max_size=5,
    )
)
def test_columns_come_back(columns: dict[str, np.ndarray]) -> None:  # type: ignore[type-arg]
    file = columns_in_memory(ABOUT, columns)
    for opened in (file, pickle.loads(pickle.dumps(file)), open_columns(file.address, file.key)):
        assert opened.about == ABOUT and opened.key == file.key
        assert opened.columns.keys() == columns.keys()
        for name, column in columns.items():
            assert opened[name].dtype == column.dtype and opened[name].shape == column.shape
            np.testing.assert_array_equal(opened[name], column)
            assert not opened[name].flags.writeable


def test_columns_in_no_order_are_written_in_order() -> None:
    turned = COLUMNS["floats"].T[::-1]
    np.testing.assert_array_equal(columns_in_memory({}, {"a": turned})["a"], turned)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), in_place=st.booleans())
def test_a_damaged_file_is_not_opened(tmp_path: Path, data: st.DataObject, in_place: bool) -> None:
    path = tmp_path / "file"
    key = written(path)
    assert check_columns(path, in_place=in_place).key == key
    whole = path.read_bytes()
    kind = data.draw(st.sampled_from(("cut", "changed", "longer", "empty")))
    at = data.draw(st.integers(0, len(whole) - 1))
    path.write_bytes(
        {
            "cut": whole[:at],
            "changed": whole[:at] + bytes([whole[at] ^ data.draw(st.integers(1, 255))]) + whole[at + 1 :],
            "longer": whole + b"\0",
            "empty": b"",
        }[kind]
    )
    with pytest.raises(DamagedError):
        check_columns(path, in_place=in_place)


def test_what_is_open_stays_whatever_happens_to_the_name(tmp_path: Path) -> None:
    path = tmp_path / "file"
    written(path)
    file = check_columns(path)
    copy = check_columns(path, in_place=False)
    path.unlink()
    np.testing.assert_array_equal(open_columns(file.address, file.key)["floats"], COLUMNS["floats"])
    written(path)
    other = check_columns(path, in_place=False)
    path.write_bytes(b"cut")
    for each in (copy, other):
        np.testing.assert_array_equal(each["scalars"], COLUMNS["scalars"])


def test_another_file_at_the_address_is_refused() -> None:
    file, other = columns_in_memory({}, COLUMNS), columns_in_memory({"other": 1}, COLUMNS)
    with pytest.raises(DamagedError, match="another file"):
        open_columns(other.address, file.key)


def test_links_are_not_followed(tmp_path: Path) -> None:
    written(tmp_path / "file")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    with pytest.raises(OSError, match="symbolic links"):
        check_columns(tmp_path / "link")


def test_what_the_writer_said_is_read_without_the_rest(tmp_path: Path) -> None:
    written(tmp_path / "file")
    assert read_about(tmp_path / "file") == ABOUT
    for content in (b"", b"hvd_yolo columns", b"hvd_yolo columns" + b"\xff" * 8, b"x" * 200):
        (tmp_path / "file").write_bytes(content)
        with pytest.raises(DamagedError):
            read_about(tmp_path / "file")


def test_a_file_that_nobody_uses_is_closed() -> None:
    file = columns_in_memory({}, COLUMNS)
    address = Path(file.address)
    kept = file["floats"]
    assert address.exists()
    del file
    assert not address.exists()
    np.testing.assert_array_equal(kept, COLUMNS["floats"])
