"""By which rules a run reads its labels."""

from __future__ import annotations

import logging
from typing import Any

from horovod_yolo.config.schema import TrainConfig
from horovod_yolo.data.formats import LabelRules
from horovod_yolo.data.formats.rules import CURRENT, FIRST

log = logging.getLogger(__name__)


def label_rules(config: TrainConfig, state: dict[str, Any] | None) -> LabelRules:
    """Those of a new run; a resumed one keeps those it began under, and says so where they were others.

    A checkpoint of the first release says nothing of its data.
    """
    version = CURRENT if state is None else int(state.get("data", {}).get("rules", FIRST))
    if version != CURRENT:
        log.warning(
            "this run began under older rules for labels and keeps them: rows of bad classes are skipped, "
            "and classes without a common name go by position. A new run would be told"
        )
    return LabelRules(config.class_map, config.skip_bad_classes or version == FIRST, version=version)
