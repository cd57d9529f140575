"""A data set in another format: which files that makes, and how they are called.

YOLO and VOC find labels by the place of an image, so images get a new place there, as links or copies. COCO
and annotation lists name each image: theirs stay where they are, unless copies are asked for.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from horovod_yolo.core.class_names import listed, loose
from horovod_yolo.core.errors import UserError
from horovod_yolo.data.annotations import Annotations, Record
from horovod_yolo.data.read import ImageError, read_content
from horovod_yolo.data.writers import coco_content, list_line, voc_xml, yolo_rows
from horovod_yolo.io.atomic import replacing

Kind = Literal["yolo", "coco", "voc", "list", "images"]  # the last: lists of images, whose labels stay
FORMATS: tuple[Kind, ...] = ("yolo", "coco", "voc", "list")
DATA = "data.yaml"
Names = dict[tuple[str, str], str]  # by split and place
_NO_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


@dataclass(frozen=True, eq=False)
class Pick:
    """An image of a new set."""

    annotations: Annotations
    i: int

    @property
    def record(self) -> Record:
        """Its size and objects."""
        return self.annotations.record(self.i)

    @property
    def place(self) -> str:
        """Where it lies, or would lie if it were not packed: one image has one."""
        return os.path.normpath(self.annotations.image_path(self.i))


@dataclass(frozen=True, eq=False)
class NewSet:
    """A set that is to be written.

    Attributes:
        kind: the format.
        out: folder of it.
        parts: images of each split.
        names: of the classes.
        copy: whether images are copied, not linked or left where they are.
        labels: for YOLO, gives an image's label file as it is; None where there is none. By default label
            files are made from the annotations.
    """

    kind: Kind
    out: Path
    parts: Mapping[str, Sequence[Pick]]
    names: Sequence[str]
    copy: bool = False
    labels: Callable[[Pick], bytes | None] | None = None

    @property
    def moves_images(self) -> bool:
        """Whether images get a place in the new folder."""
        return self.copy or self.kind in ("yolo", "voc")


def all_of(annotations: Annotations) -> list[Pick]:
    """All images of a split."""
    return [Pick(annotations, i) for i in range(len(annotations))]


def require_writable(new: NewSet) -> Names:
    """What images are called in the new set.

    Raises:
        UserError: the format cannot hold these names, or the images are in a pack and are not to be copied.
    """
    if new.kind in ("voc", "coco"):
        same = Counter(loose(name) for name in new.names)
        if alike := [name for name in new.names if same[loose(name)] > 1]:
            fix = "rename them, or convert to yolo or list, where classes have numbers"
            what = f"the classes {listed(alike)} cannot be told apart by name"
            raise UserError(what, where="--to", fix=fix)
    if new.kind == "voc" and (odd := [name for name in new.names if _NO_XML.search(name)]):
        what = f"class name {odd[0]!r:.60} has characters that XML does not hold"
        raise UserError(what, where="--to voc", fix="rename it")
    packed = any("pack" in pick.annotations.file.about for some in new.parts.values() for pick in some[:1])
    if packed and not new.copy:
        raise UserError("the images are in a pack", where="--to", fix="say --copy to get them out of it")
    return _new_names(new)


def write_images(new: NewSet, called: Names, rank: int, size: int, advance: Callable[[int], None]) -> None:
    """Write this rank's share of the files that images have of their own.

    ``advance`` is told of each image.

    Raises:
        UserError: an image is gone since the scan, or there is no link to it on this disk.
        OSError: the disk is full, for one.
    """
    if not new.moves_images:
        return
    for split, picks in new.parts.items():
        for pick in picks[rank::size]:
            name = called[split, pick.place]
            _put_image(new, pick, new.out / _image_name(new, split, name))
            if new.kind == "yolo":
                content = new.labels(pick) if new.labels else yolo_rows(pick.record)
                if content is not None:
                    _write(new.out / "labels" / split / f"{Path(name).stem}.txt", content)
            elif new.kind == "voc":
                xml = new.out / "Annotations" / f"{Path(name).stem}.xml"
                _write(xml, voc_xml(name, pick.record, new.names))
            advance(1)


def finish(new: NewSet, called: Names, root: Path, extra: Mapping[str, Any]) -> None:
    """Write what there is once a split, then the ``data.yaml``, which says that all is whole.

    Args:
        new: the set.
        called: from `require_writable`.
        root: of the set that the images come from.
        extra: further keys of the ``data.yaml``.
    """
    items = {split: _finish_split(new, split, called) for split in new.parts}
    content: dict[str, Any] = {}
    if not new.moves_images:
        content["path"] = os.path.relpath(root, new.out.absolute())
        items = {split: os.path.relpath(new.out.absolute() / item, root) for split, item in items.items()}
    content |= {**items, "names": list(new.names), **extra}
    text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
    with replacing(new.out / DATA) as stream:
        stream.write(text.encode(errors="surrogateescape"))


def _finish_split(new: NewSet, split: str, called: Names) -> str:
    """Write a split's own file; what ``data.yaml`` calls it."""
    picks = new.parts[split]

    def file_name(pick: Pick) -> str:
        if new.moves_images:
            return _image_name(new, split, called[split, pick.place])
        return pick.annotations.path(pick.i)

    if new.kind == "yolo":
        return f"images/{split}"
    if new.kind == "voc":
        stems = b"".join(os.fsencode(Path(called[split, pick.place]).stem) + b"\n" for pick in picks)
        _write(new.out / "ImageSets" / "Main" / f"{split}.txt", stems)
        return f"ImageSets/Main/{split}.txt"
    if new.kind in ("list", "images"):
        lines = (
            list_line(file_name(pick), pick.record)
            if new.kind == "list"
            else os.fsencode(file_name(pick)) + b"\n"
            for pick in picks
        )
        _write(new.out / f"{split}.txt", b"".join(lines))
        return f"{split}.txt"
    ids = [pick.annotations.image_id(pick.i) for pick in picks]
    numbers = ids if len(set(ids)) == len(ids) else list(range(len(ids)))
    images = ((file_name(pick), number, pick.record) for pick, number in zip(picks, numbers, strict=True))
    _write(new.out / f"{split}.json", json.dumps(coco_content(images, new.names)).encode())
    return f"{split}.json"


def _image_name(new: NewSet, split: str, name: str) -> str:
    return f"JPEGImages/{name}" if new.kind == "voc" else f"images/{split}/{name}"


def _new_names(new: NewSet) -> Names:
    """Of all images. Those of VOC lie in one folder, of other formats in one for each split."""
    places = [{pick.place: pick.annotations.path(pick.i) for pick in picks} for picks in new.parts.values()]
    together = {place: path for some in places for place, path in some.items()}
    names: Names = {}
    for split, some in zip(new.parts, places, strict=True):
        here = _names_in_folder(new, together if new.kind == "voc" else some)
        names |= {(split, place): here[place] for place in some}
    return names


def _names_in_folder(new: NewSet, paths: Mapping[str, str]) -> dict[str, str]:
    """Images keep their names; where two would have one, all get the folders that they are in before it.

    ``paths`` are those of the old set, by place.
    """
    unique = len({_stem(path) for path in paths.values()}) == len(paths)
    called: dict[str, str] = {}
    owner: dict[str, str] = {}
    for place, path in paths.items():
        name = Path(path).name if unique else _flat(path)
        name = f"_{name}" if name.startswith(".") else name  # hidden files are no images
        if name.splitlines() != [name] or name != name.strip():
            what = f"the image {path!r} has a line end or outer spaces in its name"
            raise UserError(what, fix="rename it: no list of images could name it")
        if (other := owner.setdefault(_stem(name), place)) != place and new.moves_images:
            what = f"{other} and {place} would share the name {name!r} or its label file"
            raise UserError(what, where=new.out, fix="rename one of them")
        called[place] = name
    return called


def _stem(path: str) -> str:
    return Path(path).stem.casefold()


def _flat(path: str) -> str:
    return "_".join(part for part in Path(path).parts if part not in ("/", "..", "."))


def _put_image(new: NewSet, pick: Pick, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if new.copy:
        try:
            content = read_content(pick.annotations.image_file(pick.i))
        except ImageError as error:
            fix = "start again: what is there now is scanned anew"
            raise UserError(
                f"{error.reason}, and was there in the scan", where=error.path, fix=fix
            ) from error
        _write(target, content)
        return
    try:
        target.unlink(missing_ok=True)
        target.symlink_to(os.path.relpath(pick.place, os.path.realpath(target.parent)))
    except OSError as error:
        what = f"no link can be made: {error.strerror or error}"
        raise UserError(what, where=target, fix="say --copy to have the images copied") from error


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
