"""Data sets by name: those that are made on the spot, and those that people know from elsewhere."""

from __future__ import annotations

import difflib
from pathlib import Path

from horovod_yolo.core.errors import UserError
from horovod_yolo.data.digits import make_digits

LEAST_LIKENESS = 0.75  # digts, digit, Digits.yaml; not widgets
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


def is_built_in(data: str) -> bool:
    """Whether the name of a built-in set is meant: a file or folder that is called so comes first."""
    return data in BUILT_IN and not Path(data).exists()


def file_of(name: str) -> Path:
    """The data.yaml of a built-in set, made or not."""
    return FOLDER / name / "data.yaml"


def make(name: str) -> None:
    """Make a built-in set where it is not there yet: the same name gives the same bytes everywhere.

    Several jobs, or groups of ranks, may do so at once: what the first to end has made stays, for it may be
    read by then.

    Raises:
        UserError: it cannot be made.
    """
    if (file := file_of(name)).is_file():
        return
    BUILT_IN[name](file.parent, replace=False)
    if not file.is_file():
        raise UserError("a part of it is missing", where=file.parent, fix="remove it: it is made anew then")


def found(data: str) -> str:
    """The data.yaml that is meant, for this process alone: a built-in set is made where it is not there yet.

    Raises:
        UserError: a set that is known and not here, or one that cannot be made.
    """
    if is_built_in(data):
        make(data)
        return str(file_of(data))
    refuse_known(data)
    return data


def refuse_known(data: str) -> None:
    """Raise `UserError` for a set that is not here: others' programs would fetch it, or ours is misspelt."""
    name = data.removesuffix(".yaml").lower()
    if data in BUILT_IN or Path(data).exists():
        return
    if name in OF_OTHERS:
        raise UserError(
            f"{data} is not here, and nothing is downloaded",
            fix="put its images, labels and data.yaml there and name that file; data=digits is built in",
        )
    if close := difflib.get_close_matches(name, BUILT_IN, n=1, cutoff=LEAST_LIKENESS):
        raise UserError(f"{data}: no such file", fix=f"did you mean {close[0]}, which is built in?")
