"""``horovod-yolo data check``: what the scan says of a data set, and what would end a run, without one."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from horovod_yolo.assembly.data import annotation_folder, say_what_counts
from horovod_yolo.assembly.packing import require_whole
from horovod_yolo.assembly.shared_annotations import shared_annotations
from horovod_yolo.config.class_map import ClassMap
from horovod_yolo.core.errors import UserError
from horovod_yolo.data.formats import LabelRules
from horovod_yolo.data.listing import require_mapped
from horovod_yolo.data.spec import load_data_yaml
from horovod_yolo.distributed.agreement import together
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


def check_data(options: CheckOptions, comm: Communicator) -> tuple[str, ...]:
    """Scan all splits of a data set by the rules of a new run. *Collective.*

    Returns:
        The splits that there are.

    Raises:
        UserError: the last mistake; those before it are logged.
    """
    rules = LabelRules(options.class_map, options.skip_bad_classes)
    spec = together(comm, lambda: load_data_yaml(Path(options.data), rules))
    together(comm, lambda: require_mapped(spec))
    splits = spec.splits
    folder = annotation_folder(options.cache_dir)
    mistake: UserError | None = None
    for split in splits:
        try:
            annotations = shared_annotations(spec, split, comm, folder)
            require_whole(annotations, comm)
        except UserError as error:
            if mistake is not None and comm.rank == 0:
                log.error("error: %s", mistake)
            mistake = error
            continue
        if split != "train" and comm.rank == 0:
            say_what_counts(annotations, Thresholds.most)
    if mistake is not None:
        raise mistake
    return splits
