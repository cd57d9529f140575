"""A stranger's text that Python's own parsers would warn of; the tests make errors of warnings."""

from __future__ import annotations

import io
import zipfile

import pytest

from horovod_yolo.checkpoint.vetting import require_harmless
from horovod_yolo.export.of_others import told_by
from horovod_yolo.io.inert_pickle import RefusedError, Rules, load

ODD = b"c\\ \nname\n."  # of a global, with an escape that is none


def test_an_odd_escape_in_a_pickle_is_no_warning() -> None:
    with pytest.raises(RefusedError):
        load(b"\x80\x02" + ODD, Rules(functions={}, is_class=lambda name: False, persistent=lambda key: key))


def test_an_odd_escape_in_a_checkpoint_is_no_warning() -> None:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("last/data.pkl", ODD)
    with pytest.raises(ValueError, match="more than tensors"):
        require_harmless(file.getvalue())


def test_an_odd_escape_in_the_names_of_an_exported_file_is_no_warning() -> None:
    assert told_by({"names": r"{0: 'a\ b'}"}, "file.onnx").names == ("a\\ b",)
