"""Files made to harm: each is answered within seconds and 512 MiB, by a reason, and nothing is waited for.

The readers run in a process of their own whose memory is limited; one process for all, because it takes
seconds to import torch.
"""

from __future__ import annotations

import json
import os
import re
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

SIDE = 50_000
SECONDS = 30  # for a loaded machine; most take milliseconds
READERS = """
import json, resource, signal, sys, time
from pathlib import Path
from horovod_yolo.checkpoint import store
from horovod_yolo.config.load import load_hyp
from horovod_yolo.data.formats import Folders, LabelRules, coco, voc, yolo
from horovod_yolo.data.read import image_size, read_image, verify_image
from horovod_yolo.data.listing import list_entries
from horovod_yolo.data.spec import load_data_yaml
from horovod_yolo.launch.hostfile import read_hostfile

def set_of(path):
    spec = load_data_yaml(path)
    return f"{len(list_entries(spec, 'train'))} entries"

def said(found):
    labels, problems = found
    count = len(labels.classes) if labels else None
    return f"{count} | {'; '.join(map(str, problems[-2:]))}"

READ = {
    "image": lambda p: [f(p) for f in (verify_image, image_size, read_image)],
    "yolo": lambda p: said(yolo.YoloLabels(p).read(["a"], 100, 100)),
    "voc": lambda p: said(voc.VocLabels(p).read(["a"], 100, 100)),
    "list": lambda p: said((None, yolo.list_file(p, p.parent, Folders(), ["a"], LabelRules())[1])),
    "coco": lambda p: str(len(coco.list_file(p, p.parent, "train", ["a"], Folders())[0])),
    "hyp": lambda p: str(load_hyp(str(p))),
    "set": set_of,
    "hosts": read_hostfile,
    "checkpoint": store.read,
}
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (512 << 20), -1))
for line in sys.stdin:
    kind, path = json.loads(line)
    signal.alarm(int(sys.argv[1]))
    begun = time.monotonic()
    try:
        answer = str(READ[kind](Path(path)))
    except Exception as error:
        answer = f"{type(error).__name__}: {error}"
    print(json.dumps([answer[:2000], time.monotonic() - begun]), flush=True)
"""


def sparse(path: Path, size: int, start: bytes = b"") -> None:
    """A file that says it is large and takes no room."""
    with path.open("wb") as file:
        file.write(start)
        file.truncate(size)


def picture(path: Path, kind: str, **options: Any) -> bytes:
    PIL.Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(path, kind, **options)
    return path.read_bytes()


def png_bomb(path: Path) -> None:
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", SIDE, SIDE, 8, 2, 0, 0, 0))
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )


def jpeg_bomb(path: Path) -> None:
    data = bytearray(picture(path, "JPEG"))
    start = data.index(b"\xff\xc0") + 5
    data[start : start + 4] = struct.pack(">HH", SIDE, SIDE)
    path.write_bytes(data)


def gif_bomb(path: Path) -> None:
    data = bytearray(picture(path, "GIF"))
    data[6:10] = struct.pack("<HH", SIDE, SIDE)
    path.write_bytes(data)


def bmp_bomb(path: Path) -> None:
    data = bytearray(picture(path, "BMP"))
    data[18:26] = struct.pack("<II", SIDE, SIDE)
    path.write_bytes(data)


def tiff_bomb(path: Path) -> None:
    data = picture(path, "TIFF")
    for tag in (256, 257):  # width, height
        data = re.sub(
            re.escape(struct.pack("<H", tag)) + rb"(..)\x01\0\0\0\x10\0\0\0",
            lambda m, tag=tag: struct.pack("<HHII", tag, 4, 1, SIDE),  # type: ignore[misc]
            data,
            count=1,
            flags=re.DOTALL,
        )
    path.write_bytes(data)


def jp2_bomb(path: Path) -> None:
    data = picture(path, "JPEG2000")
    path.write_bytes(data.replace(struct.pack(">II", 16, 16), struct.pack(">II", SIDE, SIDE)))


def webp_bomb(path: Path) -> None:
    data = picture(path, "WEBP", lossless=True)[12:]
    canvas = b"VP8X" + struct.pack("<I", 10) + bytes(4) + struct.pack("<I", SIDE - 1)[:3] * 2
    path.write_bytes(b"RIFF" + struct.pack("<I", 4 + len(canvas) + len(data)) + b"WEBP" + canvas + data)


def endless_scans(path: Path) -> None:
    """A progressive JPEG whose last scan comes ten thousand times."""
    data = picture(path, "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    path.write_bytes(data[:last] + data[last:-2] * 10_000 + data[-2:])


def text_bomb(path: Path) -> None:
    """A PNG with a compressed comment of 100 MB."""
    whole = picture(path, "PNG")
    packed = b"c\0\0" + zlib.compress(bytes(100 << 20), 9)
    chunk = (
        struct.pack(">I", len(packed)) + b"zTXt" + packed + struct.pack(">I", zlib.crc32(b"zTXt" + packed))
    )
    path.write_bytes(whole[:33] + chunk + whole[33:])


def to_zeros(path: Path) -> None:
    path.symlink_to("/dev/zero")


def to_itself(path: Path) -> None:
    path.symlink_to(path)


def repeated(
    text: bytes, size: int = 4 << 20, start: bytes = b"", end: bytes = b""
) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(start + text * (size // len(text)) + end) and None


def data_file(items: str) -> Callable[[Path], None]:
    return lambda path: path.write_text(f"train: {items}\nval: {items}\nnames: [a]\n") and None


def deep_folders(path: Path) -> None:
    """Two thousand folders in one another, and links among them that lead back to the first."""
    here, root = os.open(path.parent, os.O_RDONLY), path.parent / "deep"
    os.mkdir("deep", dir_fd=here)
    for name in ["deep", *["d"] * 1900]:
        inner = os.open(name, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = inner
        os.mkdir("d", dir_fd=here)
        os.symlink(root, "back", dir_fd=here)
        os.symlink("self", "self", dir_fd=here)
    os.close(here)
    (root / "a.jpg").write_bytes(b"")
    data_file("deep")(path)


def compressed_checkpoint(path: Path) -> None:
    from tests.fuzz.test_checkpoints import archive, members, zipfile

    path.write_bytes(archive({**members(), "data/1": bytes(100 << 20)}, zipfile.ZIP_DEFLATED))


TOO_MANY_PIXELS = f"{SIDE**2} pixels\\) exceeds limit"  # Pillow's words
ATTACKS: dict[str, tuple[str, Callable[[Path], Any], str]] = {
    "bomb.png": ("image", png_bomb, TOO_MANY_PIXELS),
    "bomb.jpg": ("image", jpeg_bomb, TOO_MANY_PIXELS),
    "bomb.gif": ("image", gif_bomb, TOO_MANY_PIXELS),
    "bomb.bmp": ("image", bmp_bomb, TOO_MANY_PIXELS),
    "bomb.tif": ("image", tiff_bomb, TOO_MANY_PIXELS),
    "bomb.jp2": ("image", jp2_bomb, "ImageError"),
    "bomb.webp": ("image", webp_bomb, "ImageError"),
    "bomb.ppm": ("image", repeated(b"x", 10, f"P6 {SIDE} {SIDE} 255\n".encode()), TOO_MANY_PIXELS),
    "scans.jpg": ("image", endless_scans, "more than 500 scans"),
    "text.png": ("image", text_bomb, "ImageError"),
    "terabyte.jpg": ("image", lambda p: sparse(p, 1 << 40, b"\xff\xd8\xff\xe0"), "MiB that are read"),
    "pipe.jpg": ("image", os.mkfifo, "not a regular file"),
    "device.jpg": ("image", to_zeros, "not a regular file"),
    "loop.jpg": ("image", to_itself, "ImageError"),
    "folder.jpg": ("image", Path.mkdir, "not a regular file"),
    "gigabyte.txt": ("yolo", lambda p: sparse(p, 1 << 30), "1024 MiB is more than the 16 MiB"),
    "pipe.txt": ("yolo", os.mkfifo, "not a regular file"),
    "device.txt": ("yolo", to_zeros, "not a regular file"),
    "kernel.txt": ("yolo", lambda p: p.symlink_to("/proc/self/maps"), "no fixed size"),
    "rows.txt": ("yolo", repeated(b"0 .5 .5 1 1\n"), "100000 objects in one image"),
    "rubbish.txt": ("yolo", repeated(b"ab\n"), "1000 bad rows"),
    "line.txt": ("yolo", repeated(b"9"), "1 columns"),
    "columns.txt": ("yolo", repeated(b"1 "), "| "),
    "ends.txt": ("yolo", repeated(b"\r", 15 << 20), "0 | "),
    "gigabyte.xml": ("voc", lambda p: sparse(p, 1 << 30), "1024 MiB is more than the 16 MiB"),
    "deep.xml": ("voc", repeated(b"<a>", 15 << 20), "labels cannot be read"),
    "objects.xml": ("voc", repeated(b"<object/>", 15 << 20, start=b"<a>", end=b"</a>"), "1000 bad rows"),
    "name.xml": (
        "voc",
        repeated(b"x", start=b"<a><object><name>", end=b"</name></object></a>"),
        "none of the classes",
    ),
    "entities.xml": (
        "voc",
        repeated(b"<a/>", 4, b'<!DOCTYPE a [<!ENTITY b "bb"><!ENTITY c "&b;&b;">]>'),
        "a document type",
    ),
    "list.txt": ("list", repeated(b"no image\n", 100 << 20), "1000 bad rows"),
    "list_of_gigabytes.txt": ("list", lambda p: sparse(p, 2 << 30), "2048 MiB is more than"),
    "deep.json": ("coco", repeated(b'{"images":['), "not JSON"),
    "huge.json": ("coco", lambda p: sparse(p, 5 << 30), "5120 MiB is more than"),
    "pipe.json": ("coco", os.mkfifo, "not a regular file"),
    "pipe.yaml": ("hyp", os.mkfifo, "not a regular file"),
    "huge.yaml": ("hyp", lambda p: sparse(p, 1 << 30), "is more than"),
    "deep.yaml": ("hyp", repeated(b"[", 60_000), "not valid YAML"),
    "laughs.yaml": ("hyp", repeated(b"b: [*a, *a]\n", 12, b"a: &a [1, 1]\n"), "alias"),
    "code.yaml": ("hyp", repeated(b"!!python/object/apply:os.system [id]", 36), "not valid YAML"),
    "deep_set.yaml": ("set", deep_folders, "1 entries"),
    "pipe_set.yaml": ("set", data_file("pipe.jpg"), "no folder or file"),
    "device_set.yaml": ("set", data_file("device.txt"), "not a regular file|no folder or file"),
    "hosts": ("hosts", lambda p: sparse(p, 1 << 30), "larger than 1 MB"),
    "pipe.pt": ("checkpoint", os.mkfifo, "not a regular file"),
    "terabyte.pt": ("checkpoint", lambda p: sparse(p, 1 << 40), "not a checkpoint"),
    "compressed.pt": ("checkpoint", compressed_checkpoint, "compressed"),
}


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, float]]:
    """What the limited process says to each of the files."""
    folder = tmp_path_factory.mktemp("hostile")
    questions = []
    for name, (kind, make, _) in ATTACKS.items():
        make(folder / name)
        questions.append(json.dumps([kind, str(folder / name)]))
    done = subprocess.run(
        [sys.executable, "-c", READERS, str(SECONDS)],
        input="\n".join(questions),
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    subprocess.run(["rm", "-r", folder], check=True)  # too deep for pytest's own clean-up, which recurses
    said = [json.loads(line) for line in done.stdout.splitlines()]
    return dict(zip(ATTACKS, said, strict=False)) | {"": (done.stderr, done.returncode)}


@pytest.mark.parametrize("name", ATTACKS)
def test_it_is_answered_soon_and_in_bounded_memory(answers: dict[str, tuple[str, float]], name: str) -> None:
    assert name in answers, f"the readers died before it: {answers['']}"
    answer, seconds = answers[name]
    assert re.search(ATTACKS[name][2], answer), answer
    assert seconds < SECONDS
    assert "MemoryError" not in answer
