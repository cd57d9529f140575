"""``--class-map``: which class a name of the labels or of a checkpoint is."""

from __future__ import annotations

import argparse
from pathlib import Path

from horovod_yolo.core.errors import UserError
from horovod_yolo.io.plain_yaml import read_mapping

FILE_BYTES = 1 << 20
ClassMap = tuple[tuple[str, str], ...]  # (name there, name of ours; "" leaves its objects out)


def class_map(text: str) -> ClassMap:
    """Type of ``--class-map``: ``old=new,...``, or a YAML file of ``old: new`` lines."""
    if Path(text).suffix.lower() in (".yaml", ".yml"):
        try:
            return _of_file(Path(text))
        except UserError as error:
            raise argparse.ArgumentTypeError(str(error)) from None
    pairs = [part.split("=") for part in text.split(",") if part.strip()]
    if any(len(pair) != 2 or not pair[0].strip() for pair in pairs):
        raise argparse.ArgumentTypeError(
            f"{text!r:.80} is not OLD=NEW,OLD=NEW: names with , or = belong in a file of 'old: new' lines"
        )
    found = tuple((old.strip(), new.strip()) for old, new in pairs)
    if len(dict(found)) < len(found):
        raise argparse.ArgumentTypeError(f"{text!r:.80} names a class twice")
    return found


def _of_file(path: Path) -> ClassMap:
    values = read_mapping(path, most_bytes=FILE_BYTES, what="a class map", plain_text=True)
    for old, new in values.items():
        if isinstance(new, (list, dict)):
            raise UserError(f"{old!r:.60} is {new!r:.60}", where=path, fix="write 'old: new' lines")
    return tuple((str(old), str(new or "")) for old, new in values.items())
