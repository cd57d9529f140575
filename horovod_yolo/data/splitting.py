"""Which images of a set go into which split: by ratio, the rarest classes first, keyed by their names."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from horovod_yolo.core.types import Ints


def assign(names: Sequence[str], classes: Sequence[Ints], ratios: Sequence[float], seed: int) -> Ints:
    """The split of each image, (images,), the same for the same names, classes, ratios and seed.

    Images are grouped by the rarest of their classes, those without objects in a group of their own. Within
    a group their order is that of a hash of seed and name. From the rarest group on, each next image goes to
    the split that lacks most, so that every split has its share of the images, to one, and of each group.

    Args:
        names: of the images, in any order.
        classes: of each image's objects.
        ratios: of the splits; their sum does not matter.
        seed: another one, another split.
    """
    occurs: dict[int, int] = {}
    for own in classes:
        for class_id in set(own.tolist()):
            occurs[class_id] = occurs.get(class_id, 0) + 1
    keys = []
    for i, (name, own) in enumerate(zip(names, classes, strict=True)):
        rarest = min(((occurs[c], c) for c in set(own.tolist())), default=(len(names) + 1, -1))
        keys.append((rarest, hashlib.sha256(f"{seed} ".encode() + os.fsencode(name)).digest(), i))
    shares: NDArray[np.float64] = np.asarray(ratios, np.float64) / sum(ratios)
    given = np.zeros(len(shares))
    split = np.empty(len(names), np.int64)
    for count, (_, _, i) in enumerate(sorted(keys), start=1):
        split[i] = int(np.argmax(shares * count - given))
        given[split[i]] += 1
    return split
