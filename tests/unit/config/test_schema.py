"""Settings die at the door: each impossible value is named, and what is possible survives a round trip."""

from __future__ import annotations

import json
import math
from dataclasses import fields, replace
from typing import Any, get_args

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from horovod_yolo.config.hyperparameters import Hyp
from horovod_yolo.config.schema import (
    Cache,
    Compression,
    OptimizerName,
    Precision,
    ScaleLr,
    TrainConfig,
    from_dict,
    to_dict,
)
from horovod_yolo.core.errors import UserError
from horovod_yolo.families.anchor_based.recipe import AnchorBasedHyp
from horovod_yolo.families.anchor_free.recipe import AnchorFreeHyp

WRONG_HYPS: list[tuple[str, Any]] = [
    ("lr0", 0.0),
    ("lr0", -0.01),
    ("lr0", math.nan),
    ("lr0", math.inf),
    ("lr0", "1e-2"),
    ("lr0", True),
    ("lr0", None),
    ("lr0", [0.01]),
    ("lr0", 10**400),
    ("lr0", 1 << 20000),  # Python refuses to print it
    ("lrf", 0.0),
    ("momentum", -0.1),
    ("momentum", 1.0),  # Adam divides by 1 - momentum
    ("warmup_momentum", 1.0),
    ("warmup_epochs", -1.0),
    ("warmup_bias_lr", -0.1),
    ("weight_decay", -1e-5),
    ("box", -1),
    ("cls", -1),
    ("obj", -1),
    ("dfl", -1),
    ("cls_pw", 0),
    ("obj_pw", -1),
    ("fl_gamma", -0.5),
    ("anchor_t", 1.0),
    ("hsv_h", 1.5),
    ("hsv_s", -0.1),
    ("hsv_v", 1.0),
    ("translate", 1.0),
    ("scale", 1.0),
    ("perspective", -0.001),
    ("mosaic", 1.1),
    ("mixup", -0.1),
    ("flipud", 2),
    ("fliplr", -1),
    ("copy_paste", 1.1),
    ("label_smoothing", 1.5),
    ("cutmix", 1.1),
]


@pytest.mark.parametrize(("name", "value"), WRONG_HYPS, ids=range(len(WRONG_HYPS)))
def test_impossible_hyperparameter(name: str, value: Any) -> None:
    kinds = [k for k in (Hyp, AnchorBasedHyp, AnchorFreeHyp) if name in {f.name for f in fields(k)}]
    assert kinds
    for kind in kinds:
        with pytest.raises(UserError, match=rf"hyperparameter {name} is .*must be") as caught:
            kind(**{name: value})
        assert len(str(caught.value)) < 250


WRONG_FLAGS: list[tuple[str, Any]] = [
    ("epochs", 0),
    ("epochs", -3),
    ("batch_size", 0),
    ("imgsz", 31),
    ("workers", -1),
    ("patience", -1),
    ("close_mosaic", -1),
    ("commit_every", -1),
    ("max_steps", -5),
    ("seed", -1),
    ("seed", 2**64),  # torch takes 64 bits
    ("label_smoothing", 1.0),
    ("label_smoothing", math.nan),
    ("fusion_mb", -1.0),
    ("fusion_mb", math.inf),
    ("fusion_mb", math.nan),
    ("freeze", (-1,)),
    ("freeze", (0, -2)),
    ("freeze", ()),
    ("freeze", ("",)),
    ("freeze", (0, "model.0")),
    ("cache", "disc"),
    ("optimizer", "sgd"),
    ("compression", "fp8"),
    ("precision", "fp8"),
    ("scale_lr", "cubic"),
]


@pytest.mark.parametrize(("name", "value"), WRONG_FLAGS)
def test_impossible_flag(name: str, value: Any) -> None:
    with pytest.raises(UserError, match=f"--{name.replace('_', '-')} is .*must be"):
        TrainConfig(**{"data": "d.yaml", "cfg": "yolov5n", name: value})


def test_a_batch_smaller_than_the_ranks() -> None:
    config = TrainConfig(data="d.yaml", batch_size=3)
    config.check_world(3)
    with pytest.raises(UserError, match=r"--batch-size 3, .*smaller than the 4 ranks"):
        config.check_world(4)


@pytest.mark.parametrize(("batch", "accumulate"), [(1, 64), (16, 4), (24, 3), (40, 2), (64, 1), (512, 1)])
def test_accumulation_makes_up_the_nominal_batch(batch: int, accumulate: int) -> None:
    assert TrainConfig(data="d.yaml", batch_size=batch).accumulate == accumulate


probabilities = st.floats(0, 1)
hyps = st.builds(
    AnchorBasedHyp,
    lr0=st.floats(1e-8, 10),
    momentum=st.floats(0, 0.999),
    mosaic=probabilities,
    fliplr=probabilities,
    degrees=st.integers(-180, 180),
    anchor_t=st.floats(1.01, 100),
)
configs = st.builds(
    TrainConfig,
    data=st.text(),
    cfg=st.text(),
    hyp=hyps,
    epochs=st.integers(1, 10**6),
    batch_size=st.integers(1, 10**6),
    imgsz=st.integers(32, 10**4),
    rect=st.booleans(),
    cache=st.sampled_from(get_args(Cache)),
    optimizer=st.sampled_from(get_args(OptimizerName)),
    freeze=st.one_of(
        st.lists(items, min_size=1, max_size=5).map(tuple)
        for items in (st.integers(0, 40), st.text("model.0123", min_size=1))
    ),
    seed=st.integers(0, 2**32),
    label_smoothing=st.floats(0, 0.99),
    compression=st.sampled_from(get_args(Compression)),
    precision=st.sampled_from(get_args(Precision)),
    scale_lr=st.sampled_from(get_args(ScaleLr)),
)


@given(configs)
def test_dict_round_trip_through_yaml_and_json(config: TrainConfig) -> None:
    values = to_dict(config)
    assert from_dict(values, AnchorBasedHyp) == config
    assert from_dict(yaml.safe_load(yaml.safe_dump(values)), AnchorBasedHyp) == config
    assert from_dict(json.loads(json.dumps(values)), AnchorBasedHyp) == config


def test_hyperparameters_of_another_kind_are_no_defaults() -> None:
    values = to_dict(TrainConfig(data="d.yaml", hyp=AnchorBasedHyp()))
    with pytest.raises(UserError, match=r"hyperparameters anchor_t, anchors, box, .* are not known"):
        from_dict(values)


def test_to_dict_shares_nothing_with_the_config() -> None:
    config = TrainConfig(data="d.yaml")
    values = to_dict(config)
    values["hyp"]["lr0"] = 5.0
    values["freeze"].append(7)
    assert config == TrainConfig(data="d.yaml")


def test_every_field_is_in_the_dict() -> None:
    changed = replace(TrainConfig(data="d.yaml"), seed=7, hyp=Hyp(lr0=0.5))
    values = to_dict(changed)
    assert set(values) == {f.name for f in fields(TrainConfig)}
    assert set(values["hyp"]) == {f.name for f in fields(Hyp)}
    assert (values["seed"], values["hyp"]["lr0"]) == (7, 0.5)


def test_deterministic_kernels_leave_no_room_for_tf32() -> None:
    with pytest.raises(UserError, match=r"--precision is 'tf32'.*--deterministic"):
        TrainConfig(data="d.yaml", cfg="yolov5n", precision="tf32", deterministic=True)
