"""A job of two ranks with ``--teacher``, of which only rank 0 reads the file; and one that is refused."""

from __future__ import annotations

from pathlib import Path

import torch

from horovod_yolo.checkpoint import store
from tests.helpers import ranks
from tests.helpers.runs import checkpoint, steps

FLAGS = "--cfg yolov5n --img 64 --batch 14 --max-steps 1 --noplots --noval --workers 0 --noautoanchor"


def test_two_ranks_learn_from_a_teacher_that_knows_the_classes(digits: Path, tmp_path: Path) -> None:
    def run(name: str, *more: object) -> ranks.Finished:
        place = ["--data", digits, "--project", tmp_path, "--name", name]
        return ranks.run(["train.py", *place, *FLAGS.split(), *more], 2)

    assert run("teacher").code == 0
    file = tmp_path / "teacher" / "weights" / "last.pt"
    state = torch.load(file, weights_only=True)
    for name, value in state["ema"]["weights"].items():  # so that it is sure
        if name.startswith("head.m.") and name.endswith("bias"):
            value.view(3, -1)[:, 4:] = 1.0
    store.write(file, store.serialise(state))
    taught = run("taught", "--teacher", file)
    assert taught.code == 0, taught.output
    assert taught.output.count(f"--teacher: yolov5n of {file} teaches") == 1, taught.output
    (row,) = steps(tmp_path / "taught")
    assert row["teacher_box_loss"] > 0 and row["teacher_cls_loss"] > 0
    assert len(checkpoint(tmp_path / "taught")["teacher"]["digest"]) == 64
    store.write(file, store.serialise({**state, "names": ["dog", *state["names"][1:]]}))
    refused = run("refused", "--teacher", file)
    assert refused.code in (1, 2), refused.output
    line = f"error: --teacher {file}: the teacher does not know '{state['names'][0]}'"
    assert refused.output.count(line) == 1, refused.output
    assert not (tmp_path / "refused").exists()
