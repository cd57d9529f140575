"""Data sets by name: those that are made on the spot, and those that people know from elsewhere."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from horovod_yolo.core.errors import UserError
from horovod_yolo.data.digits import make_digits
from horovod_yolo.distributed.agreement import together
from horovod_yolo.distributed.communicator import Communicator

FOLDER = Path("datasets")  # in the current folder, as `make demo` has it
BUILT_IN = {"digits": make_digits}
# Of Ultralytics' and YOLOv5's data files, which fetch them; with or without .yaml.
OF_OTHERS = frozenset(
    [
        "african-wildlife",
        "argoverse",
        "brain-tumor",
        "coco",
        "coco8",
        "coco8-grayscale",
        "coco12-formats",
        "coco128",
        "construction-ppe",
        "globalwheat2020",
        "homeobjects-3k",
        "kitti",
        "lvis",
        "medical-pills",
        "objects365",
        "open-images-v7",
        "sku-110k",
        "signature",
        "visdrone",
        "voc",
        "xview",
    ]
)


def data_here(data: str, comm: Communicator) -> str:
    """The data.yaml that is meant: a built-in set is made where it is not there yet. *Collective.*

    Every host needs the files: rank 0 makes them, then the first rank of each host to which they are not
    there. The same name gives the same bytes everywhere.

    Raises:
        UserError: a set that is known and not here, or one that cannot be made.
    """
    if data in BUILT_IN and not Path(data).exists():
        file = FOLDER / data / "data.yaml"
        for makes in (comm.rank == 0, comm.local_rank == 0):
            together(comm, partial(_make, data, file if makes else None))
        return str(file)
    together(comm, lambda: _refuse_known(data))
    return data


def _make(name: str, file: Path | None) -> None:
    if file and not file.is_file():
        BUILT_IN[name](file.parent)


def _refuse_known(data: str) -> None:
    name = data.removesuffix(".yaml").lower()
    if name in OF_OTHERS and not Path(data).exists():
        raise UserError(
            f"{data} is not here, and nothing is downloaded",
            fix="put its images, labels and data.yaml there and name that file; data=digits is built in",
        )
