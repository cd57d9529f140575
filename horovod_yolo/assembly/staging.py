"""``--stage``: a run's images on a disk of each host, copied by one of its ranks while all train."""

from __future__ import annotations

import hashlib
import logging
import os
from dataclasses import replace
from pathlib import Path

from horovod_yolo.assembly.data import Data
from horovod_yolo.data.stage import Staged, parts_of
from horovod_yolo.data.staging import Copier
from horovod_yolo.io.places import is_local
from horovod_yolo.io.private import own_folder
from horovod_yolo.io.remote import shown
from horovod_yolo.training.events import Callback, RunStart

log = logging.getLogger(__name__)
_DIGITS = 16  # of the hashes in a folder's name


class Staging(Callback):
    """Copies as long as a run goes on, on one rank of a host."""

    def __init__(self, splits: list[Staged], source: str) -> None:
        self._splits, self._source = splits, source
        self._copier: Copier | None = None

    def on_start(self, start: RunStart) -> None:
        """Begin."""
        self._copier = Copier(self._splits, self._source)

    def close(self) -> None:
        """End."""
        if self._copier is not None:
            self._copier.close()


def staged(data: Data, stage: str, *, keeper: bool) -> tuple[Data, list[Callback]]:
    """The data as it is read with ``--stage``, and what copies it meanwhile, on the rank that does.

    Nothing is agreed on: what a rank finds on its host's disk it reads there, to the same bits.

    Args:
        data: of the run.
        stage: the flag's folder; empty for none.
        keeper: whether this rank copies for its host.
    """
    if not stage:
        return data, []
    of_splits = [parts_of(data.train, "train"), parts_of(data.val, "val")]
    place = hashlib.sha256(os.fsencode(data.spec.file.absolute())).hexdigest()
    key = hashlib.sha256("".join(parts.key for parts in of_splits).encode()).hexdigest()
    folder = Path(stage) / f"stage-{os.geteuid()}" / f"{place[:_DIGITS]}-{key[:_DIGITS]}"
    try:
        own_folder(folder)
    except OSError as error:
        if keeper:
            reason = error.strerror or error
            log.warning("--stage %s: %s: images are read from %s", stage, reason, shown(data.spec.root))
        return data, []
    if keeper and not is_local(folder):
        log.warning("--stage %s is on a network: the copies are no nearer than the images", stage)
    splits = [Staged(parts, folder) for parts in of_splits]
    train, val = data.train.with_copies(splits[0]), data.val.with_copies(splits[1])
    here = [Staging(splits, shown(data.spec.root))] if keeper else []
    return replace(data, train=train, val=val), [*here]
