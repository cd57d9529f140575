"""What a checkpoint says of its run's data, and whether a resumed run still has it."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import torch

from horovod_yolo.assembly.data import Data
from horovod_yolo.core.errors import UserError
from horovod_yolo.data.annotations import Annotations
from horovod_yolo.data.contents import compare
from horovod_yolo.distributed.lost_images import most_lost

log = logging.getLogger(__name__)
SPLITS = ("train", "val")


def data_state(data: Data) -> dict[str, Any]:
    """Rules, and digest and marks of each split, in plain tensors and builtins."""
    state: dict[str, Any] = {"rules": data.spec.rules.version}
    for split in SPLITS:
        annotations: Annotations = getattr(data, split)
        # torch has no uint32 that all its versions save. A copy: the column is read-only.
        of_images = torch.from_numpy(annotations.marks.view(np.int32).copy())
        state[split] = {"digest": annotations.digest, "marks": of_images}
    return state


def require_same_images(saved: dict[str, Any], annotations: Annotations) -> None:
    """Raise `UserError` where the images to train on are not just those that a checkpoint knows."""
    if "train" not in saved or saved["train"]["digest"] == annotations.digest:
        return
    before = saved["train"]["marks"].numpy().view(np.uint32)
    change = compare(before, annotations.marks)
    raise UserError(
        f"train: of {len(before)} images {change.gone} are gone or changed, {change.come} are new since: "
        "no step has the images that it had",
        where=annotations.root,
        fix="give the run back its data, or name it with --data",
    )


def require_same_data(saved: dict[str, Any], now: dict[str, Any], *, changed: bool) -> dict[str, Any]:
    """What the checkpoints of a resumed run say of its data.

    Images that are gone are no change up to the tenth that may vanish while a job runs. Then they say what
    was there when the run began: images may come back, and no second tenth may go with the next resume.

    Args:
        saved: what the run's checkpoint says; nothing in that of the first release.
        now: what there is.
        changed: whether the user says that the data is another.

    Raises:
        UserError: the data is not what it was, and the user does not say so.
    """
    keep = dict(now)
    for split in SPLITS:
        if split not in saved or saved[split]["digest"] == now[split]["digest"]:
            continue
        before, after = (state[split]["marks"].numpy().view(np.uint32) for state in (saved, now))
        change = compare(before, after)
        what = f"{split}: of {len(before)} images {change.gone} are gone or changed, {change.come} are new"
        if not any(change):
            what = f"{split}: the images and boxes are the same; their ids, areas or crowds are not"
        if not change.come and 0 < change.gone <= most_lost(len(before)):
            log.warning("%s; the run goes on without them", what)
            keep[split] = saved[split]
        elif changed:
            log.warning("%s; the run goes on with them, as --data-changed says", what)
        else:
            fix = "give it back its data, or say --data-changed to go on with the new"
            raise UserError(what, where="--resume", fix=fix)
    return keep
