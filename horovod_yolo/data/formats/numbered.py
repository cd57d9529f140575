"""Labels whose numbers are those of another list of names than the model's."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from horovod_yolo.data.formats import Labels, LabelSource, Numbering, Problem, other_classes


@dataclass(frozen=True)
class NumberedLabels:
    """Reads as ``source`` does, then gives each object its class; those without one are left out."""

    source: LabelSource
    numbering: Numbering

    @property
    def file(self) -> Path:
        """The file that holds them."""
        return self.source.file

    def read(self, names: Sequence[str], height: int, width: int) -> tuple[Labels | None, list[Problem]]:
        """See ``LabelSource``; ``names`` are the model's, the source's own are in the numbering."""
        labels, problems = self.source.read(self.numbering.names, height, width)
        if labels is None:
            return None, problems
        ids = np.array([-1 if found is None else found for found in self.numbering.ids], np.int64)[
            labels.classes
        ]
        kept = ids >= 0
        lost = Counter(self.numbering.names[number] for number in labels.classes[~kept].tolist())
        return (
            Labels(ids[kept], labels.boxes_xyxy[kept], labels.crowd[kept], labels.areas[kept]),
            problems + other_classes(str(self.file), lost),
        )


def unnumbered(source: LabelSource) -> LabelSource:
    """The source itself, below any other numbering."""
    while isinstance(source, NumberedLabels):
        source = source.source
    return source
