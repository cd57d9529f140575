"""``horovod-yolo data check``: what the scan says of a data set, and what would end a run, without one."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from horovod_yolo.assembly.data import annotation_folder, say_what_counts
from horovod_yolo.assembly.named_data import data_here
from horovod_yolo.assembly.packing import require_whole
from horovod_yolo.assembly.shared_annotations import shared_annotations
from horovod_yolo.config.class_map import ClassMap
from horovod_yolo.core.errors import UserError
from horovod_yolo.data.formats import LabelRules
from horovod_yolo.data.listing import require_mapped
from horovod_yolo.data.soundness import Found
from horovod_yolo.data.spec import load_data_yaml
from horovod_yolo.distributed.agreement import on_rank_0, together
from horovod_yolo.distributed.communicator import Communicator
from horovod_yolo.models.suppression import Thresholds

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class CheckOptions:
    """Flags of ``horovod-yolo data check``."""

    data: str
    class_map: ClassMap = ()
    skip_bad_classes: bool = False
    cache_dir: str = ""


@dataclass
class Checked:
    """What a check has found; on rank 0 only."""

    names: tuple[str, ...]  # of the classes
    found: dict[str, Found] = field(default_factory=dict)  # by split; not where nothing there can be used
    mistakes: dict[str, str] = field(default_factory=dict)  # what would end a run, by split

    def as_json(self) -> dict[str, Any]:
        """Plain builtins."""
        splits = {split: found.as_json(self.names) for split, found in self.found.items()}
        return {"names": list(self.names), "splits": splits, "mistakes": self.mistakes}


def check_data(
    options: CheckOptions, comm: Communicator, show: Callable[[Checked], None] | None = None
) -> tuple[str, ...]:
    """Scan all splits of a data set by the rules of a new run. *Collective.*

    Args:
        options: of the check.
        comm: the ranks.
        show: on rank 0, is given all that was found, before a mistake is raised.

    Returns:
        The splits that there are.

    Raises:
        UserError: the last mistake; those before it are logged.
    """
    rules = LabelRules(options.class_map, options.skip_bad_classes)
    file = Path(data_here(options.data, comm))
    spec = together(comm, lambda: load_data_yaml(file, rules))
    together(comm, lambda: require_mapped(spec))
    splits = spec.splits
    folder = annotation_folder(options.cache_dir)
    checked = Checked(spec.names)
    mistake: UserError | None = None
    for split in splits:
        try:
            note = partial(checked.found.__setitem__, split)
            annotations = shared_annotations(spec, split, comm, folder, note)
            require_whole(annotations, comm)
        except UserError as error:
            checked.mistakes[split] = str(error)
            if mistake is not None and comm.rank == 0:
                log.error("error: %s", mistake)
            mistake = error
            continue
        if split != "train" and comm.rank == 0:
            say_what_counts(annotations, Thresholds.most)
    if show is not None:
        on_rank_0(comm, partial(show, checked))
    if mistake is not None:
        raise mistake
    return splits
