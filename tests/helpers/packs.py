"""Packs of the data sets of tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from horovod_yolo.assembly.data import Data
from horovod_yolo.assembly.data_state import data_state
from horovod_yolo.assembly.packing import PackOptions, pack_data
from horovod_yolo.data.spec import load_data_yaml
from horovod_yolo.distributed.local import LocalCommunicator
from tests.helpers.scanned import annotations_of


def pack(data: Path, folder: Path, shard: str = "60kB") -> Path:
    """The data.yaml of a pack of 4 + 1 shards of `digits`, or of as many as ``shard`` makes."""
    pack_data(PackOptions(data=str(data), to=folder, shard=shard), LocalCommunicator())
    return folder / "data.yaml"


def state_in(data: Path) -> dict[str, Any]:
    """What a checkpoint would say of the data."""
    spec = load_data_yaml(data)
    return data_state(Data(spec, annotations_of(spec, "train"), annotations_of(spec, "val")))
