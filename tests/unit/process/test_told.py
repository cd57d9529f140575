"""What a rank hands over through lines that others print into."""

from __future__ import annotations

import random

from horovod_yolo.process.told import Told, as_lines

VALUE = {"returned": {f"class {n}": random.Random(n).random() for n in range(80)}, "words": "näh\n\x1e"}


def test_a_value_comes_whole_in_any_order_between_other_lines() -> None:
    lines = [f"{line}\n".encode() for line in as_lines(VALUE)]
    assert len(lines) > 3 and max(map(len, lines)) < 256
    told = Told()
    for line in reversed(lines):
        assert told.value is None
        assert told.heard(b"[0]<stdout>:" + line)
        assert not told.heard(b"epoch 1/2\n")
    assert told.value == VALUE
    assert Told().value is None
