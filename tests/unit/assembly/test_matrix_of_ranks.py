"""Whole runs of eight slices: on any number of ranks and with any shares they end with the same bits.

28 images in batches of 11, 11 and 6: slices have one image or two, and two of the last batch have none. A
step takes two batches, or the one that is left; the size of the input changes from step to step. Half of
the images have no box. What is compared is all that `tests.helpers.runs.sha256` names: weights, their
average, the optimizer's state, metrics, and both files of losses.
"""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from horovod_yolo.assembly import slicing
from horovod_yolo.config.schema import TrainConfig
from horovod_yolo.core.slices import Slices
from horovod_yolo.distributed.communicator import Communicator
from tests.helpers import pretend_device
from tests.helpers.runs import checkpoint, sha256, steps
from tests.helpers.tiny_free import KINDS
from tests.helpers.tiny_zoo import NAME
from tests.helpers.world import run_world

from .disturbed import job
from .test_run_over_ranks import config_of, half_empty

__all__ = ["half_empty"]

pytestmark = pytest.mark.usefixtures("tiny")

V = 8
SHARES = [(2, 2, 2, 2), (1,) * 8, (1, 7), (3, 5), (2, 2, 4)]
OTHERS = [(4, 4), (2, 3, 3), (0, *(1,) * 8)]
FP16 = {"device": pretend_device.NAME, "deterministic": True, "sums": "exact", "precision": "fp16"}
Alone = Callable[..., str]


def config_here(data: Path, folder: Path, **changes: Any) -> TrainConfig:
    """Of two epochs without a warm-up, in which fewer batches would make a step."""
    flags = {"batch_size": 11, "slices": V, "precision": "fp32", "sync_bn": False, "multi_scale": True}
    config = config_of(data, folder, **{**flags, "cfg": NAME, **changes})
    return replace(config, hyp=replace(config.hyp, nbs=22, warmup_epochs=0.0))


def digest(data: Path, folder: Path, shares: Sequence[int], **changes: Any) -> str:
    """Of a run on ranks that have so many slices each: even shares by messages, others over memory."""
    size = len(shares)
    even = all(len(Slices.even(sum(shares), rank, size)) == own for rank, own in enumerate(shares))
    folder.mkdir()
    config = config_here(data, folder, balance="off" if even else "static", **changes)
    train = job(config, folder / "run")

    def on_its_device(comm: Communicator) -> dict[str, Any]:
        with pretend_device.pretend_device() if config.device == pretend_device.NAME else nullcontext():
            return train(comm)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(slicing, "_weights", lambda *_: shares)
        results = run_world(size, on_its_device, hosts=(1,) * size if even else ())
    assert [row["images"] for row in steps(folder / "run")] == [22, 6] * 2
    for result in results:
        assert (result["world_size"], result["slices"], result["bitwise"]) == (size, sum(shares), "yes")
        assert even or result["slices_of_ranks"] == list(shares)
    state = checkpoint(folder / "run")
    assert state["optimizer"]["state"] and state["ema"]["weights"] and state["metrics"]
    return sha256(folder / "run")


@pytest.fixture(scope="module")
def alone(half_empty: Path, tmp_path_factory: pytest.TempPathFactory) -> Alone:
    """The digest of a run on one rank."""

    @functools.cache
    def run(**changes: Any) -> str:
        count = changes.get("slices", V)
        return digest(half_empty, tmp_path_factory.mktemp("alone") / "of one", (count,), **changes)

    return run


@pytest.mark.parametrize("shares", SHARES, ids=str)
def test_ranks_and_shares_change_no_bit_of_a_run(
    half_empty: Path, alone: Alone, tmp_path: Path, shares: Sequence[int]
) -> None:
    assert digest(half_empty, tmp_path / "run", shares) == alone()


@pytest.mark.parametrize(
    ("shares", "flags"),
    [
        ((1,) * 8, {"cfg": "tiny8", "optimizer": "AdamW"}),
        ((3, 5), {"cfg": "tiny8", "optimizer": "MuSGD", "precision": "bf16"}),
        ((2, 2, 4), {"cfg": "tiny26", "optimizer": "MuSGD"}),
        ((1, 7), {"cfg": "tiny26", "optimizer": "AdamW", "precision": "bf16"}),
    ],
    ids=str,
)
def test_nor_do_they_with_other_models_optimizers_and_precisions(
    half_empty: Path, alone: Alone, tmp_path: Path, shares: Sequence[int], flags: dict[str, Any]
) -> None:
    assert digest(half_empty, tmp_path / "run", shares, **flags) == alone(**flags)


def test_what_must_change_the_bits_does(alone: Alone) -> None:
    """Or the digests above could be of nothing."""
    cases = [{}, {"slices": 4}, {"multi_scale": False}]
    assert len({alone(**case) for case in cases}) == len(cases)


@pytest.fixture(scope="module")
def one_with_boxes(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("one_with_boxes") / "digits"
    shutil.copytree(digits.parent, folder)
    labels = sorted((folder / "labels" / "train").glob("*.txt"), key=lambda path: path.stat().st_size)
    for label in labels[:-1]:
        label.write_text("")
    return folder / "data.yaml"


@pytest.mark.parametrize(("name", "optimizer"), [(NAME, "SGD"), ("tiny8", "AdamW"), ("tiny26", "MuSGD")])
def test_one_slice_has_the_same_bits_where_other_ranks_have_none(
    one_with_boxes: Path, tmp_path: Path, name: str, optimizer: str
) -> None:
    """Floats are added to zeros there. Most batches have no box, so many gradients are zero: of one sign."""
    flags = {"cfg": name, "optimizer": optimizer, "slices": 1}
    alone, beside = (
        digest(one_with_boxes, tmp_path / str(len(shares)), shares, **flags) for shares in ((1,), (0, 1))
    )
    assert alone == beside


@pytest.mark.slow
@pytest.mark.parametrize("name", [NAME, "tiny8", "tiny26"])
def test_nor_do_they_in_float16_on_a_device(
    half_empty: Path, alone: Alone, tmp_path: Path, name: str
) -> None:
    assert digest(half_empty, tmp_path / "run", (3, 5), cfg=name, **FP16) == alone(cfg=name, **FP16)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("optimizer", ["SGD", "AdamW", "MuSGD"])
@pytest.mark.parametrize("name", [NAME, *KINDS])
def test_every_combination_of_them(
    half_empty: Path, alone: Alone, tmp_path: Path, name: str, optimizer: str, precision: str
) -> None:
    flags = {"cfg": name, "optimizer": optimizer, "precision": precision}
    for shares in (*SHARES, *OTHERS):
        found = digest(half_empty, tmp_path / "-".join(map(str, shares)), shares, **flags)
        assert found == alone(**flags), shares


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    ("name", "optimizer"), [("yolov5n", "SGD"), ("yolov8n", "AdamW"), ("yolo26n", "MuSGD")]
)
def test_real_models(
    half_empty: Path, alone: Alone, tmp_path: Path, name: str, optimizer: str, precision: str
) -> None:
    flags = {"cfg": name, "optimizer": optimizer, "precision": precision, "imgsz": 96}
    for shares in ((1,) * 8, (1, 7), (2, 2, 4)):
        found = digest(half_empty, tmp_path / "-".join(map(str, shares)), shares, **flags)
        assert found == alone(**flags), shares
