"""What a prediction leaves in its folder: pictures and videos with boxes, labels, crops, COCO results."""

from __future__ import annotations

import json
import re
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from horovod_yolo.core.boxes import xyxy_to_ltwh
from horovod_yolo.core.errors import UserError
from horovod_yolo.metrics.coco_results import CocoId, write_results
from horovod_yolo.metrics.matching import ImageDetections
from horovod_yolo.prediction.drawing import Style
from horovod_yolo.prediction.result import Result, unwritten, write_picture
from horovod_yolo.prediction.sources import Picture, Source, Video

WRITABLE_SUFFIXES = frozenset((".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"))
MOST_WEBP_SIDE = 16383  # pixels
_FRAME = re.compile(r"(.+)_\d+")
_ODD = re.compile(r"[^\w .+-]+")


@dataclass(frozen=True, kw_only=True)
class Saving:
    """What is written of each result."""

    pictures: bool = True
    txt: bool = False  # YOLO's rows: class, centre, size as a share of the image's
    conf: bool = False  # the score behind each row
    crops: bool = False  # each object as a picture of its own
    json: bool = False
    style: Style = field(default_factory=Style)


def output_stems(sources: Sequence[Source]) -> list[str]:
    """A name for the files of each source, without a suffix: its own, or with a number where another has it.

    No two are alike, nor is a picture called like an image of a video, ``clip_12``. Capital letters do not
    tell names apart: on some file systems they are the same file.
    """
    taken: set[str] = set()
    stems: dict[int, str] = {}
    videos = [i for i, source in enumerate(sources) if not isinstance(source, Picture)]
    pictures = [i for i, source in enumerate(sources) if isinstance(source, Picture)]
    of_videos: set[str] = set()
    next_number: Counter[str] = Counter()
    for i in (*videos, *pictures):
        stem = wanted = _own_stem(sources[i])
        while _key(stem) in taken or ((found := _FRAME.fullmatch(_key(stem))) and found[1] in of_videos):
            next_number[_key(wanted)] += 1
            stem = f"{wanted}-{next_number[_key(wanted)] + 1}"
        stems[i] = stem
        taken.add(_key(stem))
        if i < len(sources) and not isinstance(sources[i], Picture):
            of_videos.add(_key(stem))
    return [stems[i] for i in range(len(sources))]


def _own_stem(source: Source) -> str:
    if isinstance(source, Picture) or (isinstance(source, Video) and "://" not in source.address):
        return Path(source.name).stem
    return re.sub(r"[^\w.-]+", "_", source.name).strip("_.") or "stream"


def _key(stem: str) -> str:
    return stem.casefold()


class ResultFiles:
    """Writes results of this rank as they come; `close` it, or a video stays unfinished.

    Args:
        folder: there already.
        stems: `output_stems`, by source.
        saving: what is written.
    """

    def __init__(self, folder: Path, stems: Sequence[str], saving: Saving) -> None:
        self._folder, self._stems, self._saving = folder, stems, saving
        self._videos: dict[int, _VideoFile] = {}
        self._rows = tempfile.TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115 - `close` closes it

    def add(self, result: Result, drawn: NDArray[np.uint8] | None = None) -> None:
        """Write what is wanted of one result, which has its pixels.

        Args:
            result: of a source; images of a video in their order.
            drawn: its picture, where that was made already.

        Raises:
            UserError: something cannot be written.
        """
        origin, saving = result.origin, self._saving
        stem = self._stems[origin.source] + (f"_{origin.number}" if origin.number else "")
        try:
            if saving.txt and len(result):
                self._write_labels(result, stem)
            if saving.crops:
                self._write_crops(result, stem)
            if saving.json:
                self._rows.write(_row(result, stem) + "\n")
        except OSError as error:
            raise unwritten(self._folder / stem, error) from None
        if saving.pictures:
            self._write_drawn(result, drawn_on(result, saving.style) if drawn is None else drawn)

    def rows(self) -> str:
        """What was kept for `write_json`, a line an image."""
        self._rows.seek(0)
        return self._rows.read()

    def close(self) -> None:
        """Finish the videos."""
        self._finish_videos()
        self._rows.close()

    def _finish_videos(self) -> None:
        for video in self._videos.values():
            video.close()
        self._videos.clear()

    def _write_drawn(self, result: Result, drawn: NDArray[np.uint8]) -> None:
        origin = result.origin
        stem = self._stems[origin.source]
        if not origin.number:
            write_picture(self._folder / (stem + _suffix(origin.path, drawn)), drawn)
            return
        if origin.source not in self._videos:
            if not origin.live:
                self._finish_videos()  # files come one after the other
            self._videos[origin.source] = _VideoFile(self._folder / f"{stem}.mp4", origin.fps, drawn)
        self._videos[origin.source].add(drawn)

    def _write_labels(self, result: Result, stem: str) -> None:
        rows = []
        for box in result:
            numbers = [*box.xywhn[0].tolist(), *(box.conf.tolist() if self._saving.conf else ())]
            rows.append(" ".join([str(int(box.cls)), *(f"{number:.6g}" for number in numbers)]) + "\n")
        folder = self._folder / "labels"
        folder.mkdir(exist_ok=True)
        (folder / f"{stem}.txt").write_text("".join(rows), encoding="utf-8")

    def _write_crops(self, result: Result, stem: str) -> None:
        height, width = result.orig_shape
        for place, box in enumerate(result, 1):
            left, top, right, bottom = box.xyxy[0].round().int().tolist()
            crop = result.pixels()[max(top, 0) : min(bottom, height), max(left, 0) : min(right, width), ::-1]
            if crop.size:
                number = int(box.cls)
                folder = self._folder / "crops" / class_folder(number, result.names.get(number, ""))
                folder.mkdir(parents=True, exist_ok=True)
                write_picture(folder / f"{stem}_{place}.jpg", np.ascontiguousarray(crop))


class _VideoFile:
    """A video that is written image by image; images of another size than the first are scaled."""

    def __init__(self, path: Path, fps: float, first: NDArray[np.uint8]) -> None:
        self._size = first.shape[1], first.shape[0]
        self._writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), fps, self._size)
        if not self._writer.isOpened():
            raise UserError(
                "OpenCV cannot write this video", where=path, fix="make room, or use --nosave with --save-txt"
            )

    def add(self, image: NDArray[np.uint8]) -> None:
        if image.shape[1::-1] != self._size:
            image = np.asarray(cv2.resize(image, self._size), np.uint8)
        self._writer.write(image)

    def close(self) -> None:
        self._writer.release()


def drawn_on(result: Result, style: Style) -> NDArray[np.uint8]:
    """`Result.plot` in a style."""
    return result.plot(style.line_thickness, labels=style.labels, conf=style.conf)


def class_folder(number: int, name: str) -> str:
    """A folder's name for a class: its own, where that can be one."""
    plain = _ODD.sub("_", name).strip(" .")
    return plain if plain and plain == name else f"{number}-{plain}".rstrip("-")


def write_json(path: Path, rows: str) -> None:
    """Write the rows of all ranks as one COCO results list, in the order of sources and images.

    An image's id is the name of its files; a number where that is one. A category's id is the class number.

    Raises:
        UserError: it cannot be written.
    """
    lines = sorted((json.loads(line) for line in rows.splitlines()), key=lambda line: line["place"])
    classes = 1 + max((number for line in lines for number in line["classes"]), default=0)
    try:
        write_results(path, map(_found, lines), range(classes))
    except OSError as error:
        raise unwritten(path, error) from None


def _row(result: Result, stem: str) -> str:
    origin, found = result.origin, result.boxes
    image_id: CocoId = int(stem) if stem.isascii() and stem.isdigit() and not origin.number else stem
    return json.dumps(
        {
            "place": [origin.source, origin.number],
            "id": image_id,
            "boxes_ltwh": xyxy_to_ltwh(found.xyxy.double()).tolist(),
            "scores": found.conf.double().tolist(),
            "classes": found.cls.tolist(),
        }
    )


def _found(line: Mapping[str, list[float]]) -> tuple[CocoId, ImageDetections]:
    boxes_ltwh = np.array(line["boxes_ltwh"], np.float64).reshape(-1, 4)
    scores, classes = np.array(line["scores"], np.float64), np.array(line["classes"], np.int64)
    return line["id"], ImageDetections(boxes_ltwh, scores, classes)  # type: ignore[return-value]


def _suffix(path: str, image: NDArray[np.uint8]) -> str:
    suffix = Path(path).suffix
    if suffix.lower() == ".webp" and max(image.shape[:2]) > MOST_WEBP_SIDE:
        return ".png"
    return suffix if suffix.lower() in WRITABLE_SUFFIXES else ".jpg"
