"""Weights that were made to harm, and a part of the line that each ends in."""

from __future__ import annotations

import io
import json
import struct
import warnings
import zipfile
from collections.abc import Callable
from functools import cache

import torch

PROTOCOL = b"\x80\x02"


@cache
def members() -> dict[str, bytes]:
    """Of a whole file with two tensors in one dict; the first has 6 numbers."""
    stream = io.BytesIO()
    torch.save({"a.weight": torch.arange(6.0), "b.weight": torch.arange(4.0)}, stream)
    with zipfile.ZipFile(stream) as made:
        return {name.split("/", 1)[1]: made.read(name) for name in made.namelist()}


def archive(changed: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as made:
        for name, content in {**members(), **changed}.items():
            made.writestr(f"archive/{name}", content)
    return stream.getvalue()


def program(opcodes: bytes) -> bytes:
    return archive({"data.pkl": PROTOCOL + opcodes})


def spliced(old: bytes, new: bytes) -> bytes:
    """The whole file's own program, changed in one place."""
    assert members()["data.pkl"].count(old), old
    return archive({"data.pkl": members()["data.pkl"].replace(old, new, 1)})


def with_members(*extra: tuple[str, bytes]) -> bytes:
    stream = io.BytesIO(archive({}))
    with warnings.catch_warnings(), zipfile.ZipFile(stream, "a") as made:
        warnings.simplefilter("ignore")  # zipfile's, about two of one name
        for name, content in extra:
            made.writestr(name, content)
    return stream.getvalue()


def many_members() -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as made:
        for number in range(20_000):
            made.writestr(f"archive/{number}", b"")
    return stream.getvalue()


def overlapping() -> bytes:
    """A directory with the members of a file many times over, each with the same bytes."""
    whole = archive({"data/0": bytes(1 << 20)})
    end = whole.rindex(b"PK\x05\x06")
    count, size, start = struct.unpack("<HLL", whole[end + 10 : end + 20])
    directory = whole[start : start + size]
    more = b"".join(directory.replace(b"archive/", b"folder%c/" % letter) for letter in b"abcdefgh")
    total = struct.pack("<HHLLH", count * 9, count * 9, size + len(more), start, 0)
    return whole[:end] + more + whole[end : end + 8] + total


def safetensors(header: bytes, length: int | None = None) -> bytes:
    return (len(header) if length is None else length).to_bytes(8, "little") + header


def described(tensors: dict[str, object], data: bytes = b"") -> bytes:
    return safetensors(json.dumps(tensors).encode()) + data


def of_dtype(numbers: torch.Tensor) -> bytes:
    stream = io.BytesIO()
    torch.save({"a.weight": numbers}, stream)
    return stream.getvalue()


STORAGE = b"(X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpu"
TENSOR = b"ctorch._utils\n_rebuild_tensor_v2\n(" + STORAGE + b"K\x06tQ"
END = b"\x89ccollections\nOrderedDict\n)RtR"
KEY = b"}X\x08\0\0\0a.weight"
MODULE = b"cmodels.yolo\nModel\n)\x81}X\x08\0\0\0_modules"
LONG = b"\x8a\x09\x01\0\0\0\0\0\0\0\x40"  # 2 to the power of 70, and some


def old_format() -> bytes:
    stream = io.BytesIO()
    torch.save({"a.weight": torch.ones(3)}, stream, _use_new_zipfile_serialization=False)
    return stream.getvalue()


def one_storage_for_many() -> bytes:
    tensor = TENSOR.replace(b"K\x06tQ", b"M\0\x40tQ") + b"K\0M\0\x40\x85K\1\x85" + END
    named = b"".join(b"X\5\0\0\0a.%03d" % number + tensor for number in range(99))
    return archive({"data.pkl": PROTOCOL + b"}(" + named + b"u.", "data/0": bytes(1 << 16)})


HOSTILE: dict[str, tuple[Callable[[], bytes], str]] = {
    "calls a function": (lambda: program(b"cos\nsystem\nX\x05\0\0\0touch\x85R."), "names 'os.system'"),
    "calls an inert class": (
        lambda: program(b"cmodels.common\nConv\nK\x01\x85R."),
        "calls models.common.Conv",
    ),
    "calls what it made": (lambda: program(b"}K\x01\x85R."), "calls what is no function"),
    "getattr": (
        lambda: program(b"c__builtin__\ngetattr\n}X\x01\0\0\0a\x86R."),
        "names '__builtin__.getattr'",
    ),
    "getattr of Python 3": (lambda: program(b"cbuiltins\ngetattr\n."), "names 'builtins.getattr'"),
    "INST": (lambda: program(b"(X\x01\0\0\0aios\nsystem\n."), "uses INST"),
    "OBJ": (lambda: program(b"(cmodels.common\nConv\no."), "uses OBJ"),
    "STACK_GLOBAL": (lambda: program(b"X\x02\0\0\0osX\x06\0\0\0system\x93."), "uses STACK_GLOBAL"),
    "EXT1": (lambda: program(b"\x82\x01."), "uses EXT1"),
    "EXT2": (lambda: program(b"\x83\x01\0."), "uses EXT2"),
    "EXT4": (lambda: program(b"\x84\x01\0\0\0."), "uses EXT4"),
    "NEWOBJ_EX": (lambda: program(b"cmodels.common\nConv\n)}\x92."), "uses NEWOBJ_EX"),
    "another protocol": (lambda: archive({"data.pkl": b"\x80\x05}."}), "protocol 5"),
    "an object of what is no class": (lambda: program(b"ccollections\nOrderedDict\n)\x81."), "no class"),
    "a state for a list": (lambda: program(b"]}b."), "gives a state"),
    "a list of a number": (lambda: program(b"K\x01K\x02a."), "appends to"),
    "items of a number": (lambda: program(b"K\x01K\x02K\x03s."), "sets items"),
    "an OrderedDict of pairs": (lambda: program(b"ccollections\nOrderedDict\n]\x85R."), "OrderedDict"),
    "a set of tuples": (lambda: program(b"c__builtin__\nset\n]K\x01\x85a\x85R."), "tuple for a key"),
    "a set of what is no list": (lambda: program(b"c__builtin__\nset\n}\x85R."), "set of what is no list"),
    "keys of one hash": (lambda: program(b"}" + LONG + b"K\x01s."), "int for a key"),
    "floats for keys": (lambda: program(b"}G" + bytes(8) + b"K\x01s."), "float for a key"),
    "takes from an empty stack": (lambda: program(b"R."), "structure is damaged"),
    "a mark too few": (lambda: program(b"t."), "structure is damaged"),
    "forgets what it had": (lambda: program(b"h\x07."), "structure is damaged"),
    "no end": (lambda: program(b"}"), "structure is damaged"),
    "no opcode": (lambda: program(b"\xff."), "structure is damaged"),
    "a string beyond the end": (lambda: program(b"X\xff\xff\xff\x7f."), "structure is damaged"),
    "a huge place in the memo": (lambda: program(b"}r\xff\xff\xff\xff."), "neither a model nor tensors"),
    "memo bomb": (
        lambda: program(
            b"]" + b"".join(b"(h%c" % (i % 250) * 2 + b"tq%c" % (i % 250) for i in range(9)) + b"."
        ),
        "structure is damaged",
    ),
    "lists of lists of lists": (
        lambda: program(b"]q\0" + b"".join(b"](%bee" % (b"h%c" % i * 9) for i in range(1)) + b"."),
        "structure is damaged",
    ),
    "a tree of modules that grows": (
        lambda: program(
            b"cmodels.yolo\nModel\n)\x81q\0"
            + b"".join(
                MODULE
                + b"}("
                + b"".join(b"X\x01\0\0\0%ch%c" % (97 + k, i) for k in range(9))
                + b"usb"
                + b"q%c" % (i + 1)
                for i in range(20)
            )
            + b"."
        ),
        "structure is damaged",
    ),
    "many dicts": (lambda: program(b"(" + b"}" * 600_000 + b"t."), "more parts than are read"),
    "many filled dicts": (lambda: program(b"(" + b"}K\1K\1s" * 160_000 + b"t."), "more parts than are read"),
    "a pickle too long": (lambda: program(b"X\0\0\x90\0" + bytes(9 << 20) + b"."), "MiB, more than is read"),
    "nested tuples": (lambda: program(b"(" * 100_000 + b"t" * 100_000 + b"."), "neither a model nor"),
    "nested lists": (lambda: program(b"]" * 100_000 + b"a" * 99_999 + b"."), "neither a model nor"),
    "nested dicts": (
        lambda: program(b"}K\1" * 100_000 + b"Ns" + b"s" * 99_999 + b"."),
        "neither a model nor",
    ),
    "nested objects": (
        lambda: program((MODULE + b"}X\1\0\0\0a") * 30_000 + b"N" + b"ssb" * 30_000 + b"."),
        "network",
    ),
    "nested states": (
        lambda: program(b"cmodels.a\nB\n)\x81" * 100_000 + b"b" * 99_999 + b"."),
        "neither a model",
    ),
    "a long name": (
        lambda: program(b"ctorch._utils\n" + b"L" * 1_000_000 + b"\n."),
        "names 'torch._utils.LLL",
    ),
    "a name of two lines": (lambda: program(b"cos\nsys\ntem."), "names 'os.sys'"),
    "an object with arguments": (
        lambda: program(b"cmodels.a\nB\nK\x01\x85\x81."),
        "object of what is no class",
    ),
    "modules in modules in modules": (
        lambda: program((MODULE + b"}X\1\0\0\0a") * 3000 + b"cmodels.a\nB\n)\x81" + b"ssb" * 3000 + b"."),
        "do not make up a network",
    ),
    "a module of itself": (
        lambda: program(b"cmodels.yolo\nModel\n)\x81q\0}X\x08\0\0\0_modules}X\1\0\0\0ah\0ssb."),
        "do not make up a network",
    ),
    "a tensor of terabytes": (
        lambda: program(KEY + TENSOR + b"K\0J\xff\xff\xff\x7f\x85K\1\x85" + END + b"s."),
        "beyond its data",
    ),
    "a tensor of repeats": (
        lambda: program(KEY + TENSOR + b"K\0J\xff\xff\xff\x7f\x85K\0\x85" + END + b"s."),
        "beyond its data",
    ),
    "an offset beyond the data": (
        lambda: program(KEY + TENSOR + b"K\x01K\x06\x85K\1\x85" + END + b"s."),
        "beyond its data",
    ),
    "a stride beyond the data": (
        lambda: program(KEY + TENSOR + b"K\0K\x06\x85K\2\x85" + END + b"s."),
        "beyond its data",
    ),
    "a negative size": (
        lambda: program(KEY + TENSOR + b"K\0J\xff\xff\xff\xff\x85K\1\x85" + END + b"s."),
        "negative or damaged",
    ),
    "a negative stride": (
        lambda: program(KEY + TENSOR + b"K\5K\2\x85J\xff\xff\xff\xff\x85" + END + b"s."),
        "negative or damaged",
    ),
    "a negative offset": (
        lambda: program(KEY + TENSOR + b"J\xff\xff\xff\xffK\2\x85K\1\x85" + END + b"s."),
        "negative or damaged",
    ),
    "a size of 2 ** 70": (
        lambda: program(KEY + TENSOR + b"K\0K\0" + LONG + b"\x86K\1K\1\x86" + END + b"s."),
        "negative or damaged",
    ),
    "a size that is a text": (
        lambda: program(KEY + TENSOR + b"K\0X\1\0\0\x006\x85K\1\x85" + END + b"s."),
        "negative or damaged",
    ),
    "fewer strides than sizes": (
        lambda: program(KEY + TENSOR + b"K\0K\2K\2\x86K\1\x85" + END + b"s."),
        "negative or damaged",
    ),
    "a tensor of nothing": (
        lambda: program(b"ctorch._utils\n_rebuild_tensor_v2\n)R."),
        "a tensor is damaged",
    ),
    "more numbers than bytes": (lambda: spliced(b"K\x06tq", b"K\x07tq"), "claims 7 numbers in 24 bytes"),
    "a negative count": (lambda: spliced(b"K\x06tq", b"J\xff\xff\xff\xfftq"), "claims -1 numbers"),
    "numbers that are not there": (lambda: spliced(b"X\x01\0\0\x000q", b"X\x01\0\0\x009q"), "missing ('9')"),
    "numbers from elsewhere": (
        lambda: spliced(b"X\x01\0\0\x000q", b"X\x05\0\0\x00../..q"),
        "missing ('../..')",
    ),
    "a kind of numbers that is none": (
        lambda: spliced(b"FloatStorage", b"nn.Parameter"),
        "kind 'torch.nn.Par",
    ),
    "quantised": (
        lambda: spliced(b"ctorch._utils\n_rebuild_tensor_v2", b"ctorch._utils\n_rebuild_qtensor"),
        "quantised",
    ),
    "a persistent id that is a number": (lambda: program(b"K\1Q."), "something else than"),
    "two of one name": (
        lambda: with_members(("archive/data.pkl", PROTOCOL + b"cos\nsystem\n.")),
        "have one name",
    ),
    "two pickles": (lambda: with_members(("other/data.pkl", PROTOCOL + b"}.")), "not those of a checkpoint"),
    "leads out": (lambda: with_members(("archive/../../x", b"x")), "leads out of the archive"),
    "leads to the root": (lambda: with_members(("/etc/x", b"x")), "leads out of the archive"),
    "compression bomb": (lambda: archive({"data/0": bytes(300 << 20)}, zipfile.ZIP_DEFLATED), "compressed"),
    "a compressed pickle": (
        lambda: archive({"data.pkl": PROTOCOL + b"(" * (50 << 20)}, zipfile.ZIP_DEFLATED),
        "compressed",
    ),
    "members over each other": (overlapping, "claim more bytes than it has"),
    "very many members": (many_members, "more members than a checkpoint"),
    "TorchScript": (lambda: with_members(("archive/constants.pkl", b"")), "TorchScript"),
    "cut in the middle": (lambda: archive({})[:600], "damaged or cut short"),
    "cut at its end": (lambda: archive({})[:-30], "damaged or cut short"),
    "bytes that changed": (
        lambda: archive({}).replace(struct.pack("<f", 5.0), struct.pack("<f", 7.0), 1),
        "damaged",
    ),
    "the old format": (lambda: old_format(), "old format, from before 1.6"),
    "a bare pickle": (lambda: PROTOCOL + b"cos\nsystem\nX\x05\0\0\0touch\x85R.", "no file of torch.save"),
    "nothing": (lambda: b"", "no file of torch.save"),
    "big-endian": (lambda: archive({"byteorder": b"big"}), "big-endian"),
    "NaN": (lambda: of_dtype(torch.tensor([1.0, float("nan")])), "not finite"),
    "half NaN": (lambda: of_dtype(torch.tensor([1.0, float("nan")]).half()), "not finite"),
    "integers": (lambda: of_dtype(torch.ones(3, dtype=torch.int8)), "quantised"),
    "one storage for many": (
        lambda: one_storage_for_many(),
        "more numbers than the file",
    ),
    "safetensors: a huge header": (lambda: safetensors(b"{" + b" " * 100, 1 << 60), "header claims"),
    "safetensors: a large header": (lambda: safetensors(b"{" + b" " * (5 << 20) + b"}"), "header claims"),
    "safetensors: deep": (lambda: safetensors(b"{" * 100_000), "damaged or cut short"),
    "safetensors: beyond the data": (
        lambda: described({"a": {"dtype": "F32", "shape": [1 << 30], "data_offsets": [0, 1 << 32]}}),
        "damaged",
    ),
    "safetensors: NaN": (
        lambda: described({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, b"\0\0\xc0\x7f"),
        "finite",
    ),
}
