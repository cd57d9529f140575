"""Exported files that are cut, spliced or made to harm: boxes or a `UserError`, and no code is run."""

from __future__ import annotations

import io
import re
import warnings
import zipfile
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from horovod_yolo.assembly.exported import Asked, open_exported
from horovod_yolo.checkpoint.published import opened_published
from horovod_yolo.core.errors import UserError
from horovod_yolo.export.about import About
from horovod_yolo.export.formats import read_exported
from horovod_yolo.export.of_others import told_by
from horovod_yolo.export.onnx_file import OnnxSettings, onnx_bytes
from horovod_yolo.export.openvino_file import openvino_parts
from horovod_yolo.export.safetensors_file import safetensors_bytes
from horovod_yolo.export.script_vetting import require_known, vetted
from horovod_yolo.export.torchscript_file import torchscript_bytes
from tests.fuzz.mutations import fuzzed, mutated
from tests.helpers.exporting import about_of
from tests.helpers.tiny_zoo import Tiny

brief = settings(fuzzed, max_examples=60)  # programs of others read them: each reading takes a while
OPSET_TOKENS = [b"\0" * 8, b"\xff" * 8, b"\x0a\x08location", b"/etc/passwd", b"\x7f\xff\xff\xff"]
XML_TOKENS = [
    b"<layer ",
    b"</layer>",
    b'"',
    b"-1",
    b"9" * 30,
    b"<!ENTITY x SYSTEM '/etc/passwd'>",
    b"\0",
    b"size=",
]


@cache
def about() -> About:
    return about_of(Tiny().build("tiny", 3), imgsz=(32, 32), batch=1)


@cache
def whole(kind: str) -> tuple[bytes, ...]:
    torch.manual_seed(0)
    model = Tiny().build("tiny", 3).eval()
    if kind == "torchscript":
        return (torchscript_bytes(model, about()),)
    if kind == "safetensors":
        return (safetensors_bytes(model, about()),)
    content = onnx_bytes(model, about(), OnnxSettings())
    return (content,) if kind == "onnx" else openvino_parts(content, about())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("exported")


def one_line_or(read: Callable[[], Any]) -> Any:
    try:
        return read()
    except UserError as error:
        assert "\n" not in str(error) and len(str(error)) < 700
        return None


def boxes_of(path: Path) -> Any:
    """What val and predict do with a file, up to the first image."""
    file = read_exported(path)
    assert file is not None
    opened = open_exported(file, torch.device("cpu"), Asked(imgsz=32))
    return opened.runner(np.zeros((1, 3, 32, 32), np.float32))


def read(folder: Path, suffix: str, *parts: bytes) -> Any:
    for ending, content in zip((suffix, ".bin"), parts, strict=False):
        (folder / f"fuzzed{ending}").write_bytes(content)
    return one_line_or(lambda: boxes_of(folder / f"fuzzed{suffix}"))


def test_what_is_mutated_is_whole(folder: Path) -> None:
    assert read(folder, ".onnx", *whole("onnx")) is not None
    assert read(folder, ".torchscript", *whole("torchscript")) is not None
    assert read(folder, ".xml", *whole("openvino")) is not None


@brief
@given(data=mutated(whole("onnx"), OPSET_TOKENS))
def test_onnx(folder: Path, data: bytes) -> None:
    read(folder, ".onnx", data)


@brief
@given(graph=mutated(whole("openvino")[:1], XML_TOKENS), cut=st.integers(0, 200))
@example(graph=whole("onnx")[0], cut=0)  # OpenVINO reads ONNX too, and what it names
def test_openvino(folder: Path, graph: bytes, cut: int) -> None:
    weights = whole("openvino")[1]
    read(folder, ".xml", graph, weights[: len(weights) - cut])


@brief
@given(data=mutated(whole("torchscript"), [b"PK\x01\x02", b"PK\x05\x06", b"\0" * 8, b"\x80\x02."]))
def test_torchscript(folder: Path, data: bytes) -> None:
    read(folder, ".torchscript", data)


@fuzzed
@given(
    data=mutated(whole("safetensors"), [b'"data_offsets":[0,9]', b"[" * 500, b"\xff" * 8, b'"dtype":"F64"'])
)
def test_safetensors(folder: Path, data: bytes) -> None:
    (folder / "fuzzed.safetensors").write_bytes(data)

    def weights() -> None:
        with opened_published(folder / "fuzzed.safetensors") as file:
            file.tensors(file.shapes)

    one_line_or(weights)


@fuzzed
@given(
    st.dictionaries(st.sampled_from(("names", "imgsz", "stride", "task", "description", "args")), st.text())
)
def test_metadata_of_others(texts: Mapping[str, str]) -> None:
    one_line_or(lambda: told_by(texts, "m.onnx"))


def with_program(body: str) -> bytes:
    """A whole file with another statement at the begin of what it computes."""
    made = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(whole("torchscript")[0])) as old, zipfile.ZipFile(made, "w") as new:
        for member in old.infolist():
            data = old.read(member)
            if member.filename.endswith(("network.py", "tiny_zoo.py")):
                text = data.decode()
                end = re.search(r"def forward\([^)]*\) -> [^:]*:\n", text)
                assert end
                data = (text[: end.end()] + body + text[end.end() :]).encode()
            new.writestr(member.filename, data)
    return made.getvalue()


PROGRAMS = [
    '    x = torch.from_file("{file}", False, 4)\n',
    '    x = torch . from_file("{file}", False, 4)\n',
    '    x = getattr(torch, "from_file")("{file}", False, 4)\n',
    '    x = (torch.from_file)("{file}", False, 4)\n',
    '    x = ops.aten.from_file("{file}", False, 4)\n',
    '    f = torch.from_file\n    x = f("{file}", False, 4)\n',
    '    int = torch.from_file\n    x = int("{file}", False, 4)\n',
    '    t = torch\n    x = t.from_file("{file}", False, 4)\n',
    '    ops = torch\n    x = ops.from_file("{file}", False, 4)\n',
    '    print("{file}")\n',
    '    torch.save([1], "{file}")\n',
    "    # torch.add\n",
    '    x = "\\x41"\n',
    "    x = fork(torch.add, 1, 2)\n",
    "    x = __torch__.torch.classes.quantized.Conv2dPackedParamsBase.unpack(1)\n",
    "    x = " + "(" * 500 + "1" + ")" * 500 + "\n",
    "    x = " + "-" * 100_000 + "1\n",
]


@pytest.mark.parametrize("body", PROGRAMS, ids=range(len(PROGRAMS)))
def test_a_script_that_does_more_than_compute_is_not_loaded(
    folder: Path, body: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = folder / "target"
    target.write_bytes(b"\0" * 16)
    monkeypatch.setattr(torch.jit, "load", lambda *_: pytest.fail("it was loaded"))
    assert read(folder, ".torchscript", with_program(body.replace("{file}", str(target)))) is None
    assert target.read_bytes() == b"\0" * 16


def test_what_is_loaded_is_what_was_looked_at() -> None:
    """A second member of one name, and one that PyTorch would find where zipfile does not."""
    content = whole("torchscript")[0]
    again = io.BytesIO(content)
    with warnings.catch_warnings(), zipfile.ZipFile(again, "a") as archive:
        warnings.simplefilter("ignore", UserWarning)
        archive.writestr(next(n for n in archive.namelist() if n.endswith(".py")), "x")
    with pytest.raises(ValueError, match="its members are doubled"):
        vetted(again.getvalue())
    hidden = content + b"PK\x05\x06" + b"\0" * 18
    assert zipfile.ZipFile(io.BytesIO(vetted(content))).namelist()
    assert not zipfile.ZipFile(io.BytesIO(vetted(hidden))).namelist()


@pytest.mark.parametrize(
    "data",
    [b"c__torch__.torch.classes.quantized\nX\n.", b"c__torch__.torch\nclasses.quantized.X\n."],
)
def test_objects_of_c_plus_plus_are_not_made(data: bytes) -> None:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        archive.writestr("m/data.pkl", data)
    with pytest.raises(ValueError, match="it holds objects of another program"):
        vetted(made.getvalue())


@fuzzed
@given(st.text(alphabet="abt.orch(=)\n :\"'[]_x ops,fn-", max_size=60))
def test_programs_of_any_text(code: str) -> None:
    try:
        require_known(code)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return
    assert all(word not in code for word in ("print(", "from_file(", "open("))
