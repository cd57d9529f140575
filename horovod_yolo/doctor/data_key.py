"""``python -m horovod_yolo.doctor.data_key data.yaml``: what a host's copy of a data set holds, as JSON."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import Any

from horovod_yolo.core.errors import UserError
from horovod_yolo.data.listing import list_entries, survey
from horovod_yolo.data.named import found
from horovod_yolo.data.pack import index_of, open_index
from horovod_yolo.data.spec import DataSpec, load_data_yaml


def describe(data: str | Path) -> dict[str, Any]:
    """``{"splits": {split: {"key", "images"}}}``, equal for equal copies, or ``{"error": ...}``.

    The key covers names and sizes of images and label files, not their times: copies of a set on several
    hosts have other times. A built-in set is made where it is not there yet, as a job would make it.
    """
    try:
        spec = load_data_yaml(Path(found(str(data))))
        splits = {split: _described(spec, split) for split in spec.splits}
    except UserError as error:
        return {"error": str(error)}
    return {"splits": splits}


def _described(spec: DataSpec, split: str) -> dict[str, Any]:
    if index := index_of(spec, split):
        packed = open_index(index)
        return {"key": packed.key[:12], "images": len(packed["height"])}
    entries = list_entries(spec, split)
    return {"key": survey(entries, spec, split).sizes[:12], "images": len(entries)}


if __name__ == "__main__":
    logging.disable()
    sys.stdout.write(json.dumps(describe(sys.argv[1])) + "\n")
