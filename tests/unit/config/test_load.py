"""Command line and hyperparameter files: YOLOv5's work as they are, mistakes are named."""

from __future__ import annotations

import shlex
import time
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from horovod_yolo.assembly.settings import settings_of
from horovod_yolo.config.foreign import OF_TRAINING
from horovod_yolo.config.load import (
    HYP_FILE_BYTES,
    config_from_flags,
    load_hyp,
    nearest,
    train_parser,
)
from horovod_yolo.config.schema import TrainConfig
from horovod_yolo.core.errors import UserError
from horovod_yolo.families.anchor_based.recipe import AnchorBasedHyp as Hyp
from horovod_yolo.io.plain_yaml import read_mapping

# Names and values of YOLOv5's hyp.scratch-low.yaml, which has no label_smoothing line of its own.
SCRATCH_LOW = """\
lr0: 0.01
lrf: 0.01
momentum: 0.937
weight_decay: 0.0005
warmup_epochs: 3.0
warmup_momentum: 0.8
warmup_bias_lr: 0.1
box: 0.05
cls: 0.5
cls_pw: 1.0
obj: 1.0
obj_pw: 1.0
iou_t: 0.20
anchor_t: 4.0
# anchors: 3
fl_gamma: 0.0
hsv_h: 0.015
hsv_s: 0.7
hsv_v: 0.4
degrees: 0.0
translate: 0.1
scale: 0.5
shear: 0.0
perspective: 0.0
flipud: 0.0
fliplr: 0.5
mosaic: 1.0
mixup: 0.0
copy_paste: 0.0
"""


def config_of(*argv: str) -> TrainConfig:
    return settings_of(vars(train_parser().parse_strictly(argv)))


def written(folder: Path, text: str | bytes) -> Path:
    path = folder / "hyp.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_yolov5s_hyperparameter_file_is_the_default(tmp_path: Path) -> None:
    assert load_hyp(written(tmp_path, SCRATCH_LOW), Hyp) == Hyp()


def test_each_hyperparameter_is_read_under_its_name(tmp_path: Path) -> None:
    values = {f.name: 0.5 for f in fields(Hyp)} | {"anchor_t": 3.5, "copy_paste": 0, "nbs": 32}
    loaded = load_hyp(written(tmp_path, "\n".join(f"{k}: {v}" for k, v in values.items())), Hyp)
    assert {f.name: getattr(loaded, f.name) for f in fields(Hyp)} == values


def test_a_yolov5_command_line() -> None:
    line = """--img 320 --batch 8 --epochs 5 --data d.yaml --cfg yolov5s.yaml --weights '' --cache
        --device 0,1 --multi-scale --optimizer AdamW --sync-bn --workers 2 --project p --name n --exist-ok
        --cos-lr --label-smoothing 0.1 --patience 9 --freeze 10 --save-period 3 --seed 4 --rect --noval
        --noautoanchor"""
    assert config_of(*shlex.split(line)) == TrainConfig(
        imgsz=320,
        batch_size=8,
        epochs=5,
        data="d.yaml",
        cfg="yolov5s.yaml",
        cache="ram",
        device="0,1",
        multi_scale=True,
        optimizer="AdamW",
        sync_bn=True,
        workers=2,
        project="p",
        name="n",
        exist_ok=True,
        cos_lr=True,
        label_smoothing=0.1,
        patience=9,
        freeze=(10,),
        save_period=3,
        seed=4,
        rect=True,
        noautoanchor=True,
        noval=True,
        hyp=Hyp(),
    )


@pytest.mark.parametrize("flag", ["--imgsz", "--img", "--img-size"])
def test_aliases_of_the_input_size(flag: str) -> None:
    assert config_of("--data", "d", "--cfg", "yolov5n", flag, "96").imgsz == 96


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--freeze", "0", "1", "2"], {"freeze": (0, 1, 2)}),
        (["--freeze", "model.0", "backbone"], {"freeze": ("model.0", "backbone")}),
        (["--cache", "disk"], {"cache": "disk"}),
        (["--max-steps", "5"], {"max_steps": 5}),
        (["--fusion-mb", "0.5"], {"fusion_mb": 0.5}),
        (["--batch-size=7"], {"batch_size": 7}),
        (["--device", "CPU"], {"device": "cpu"}),
        (["--device", "cuda:0"], {"device": "0"}),
        (["--device", "cuda:0, cuda:2"], {"device": "0,2"}),
    ],
)
def test_forms_of_a_flag(argv: list[str], expected: dict[str, Any]) -> None:
    config = config_of("--data", "d", "--cfg", "yolov5n", *argv)
    assert {name: getattr(config, name) for name in expected} == expected


def test_each_setting_has_a_flag() -> None:
    flags = {action.dest for action in train_parser()._actions}
    assert {f.name for f in fields(TrainConfig)} <= flags


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--epoch", "3"], "unknown argument --epoch. did you mean --epochs"),
        (["--sync_bn"], "unknown argument --sync_bn. did you mean --sync-bn"),
        (["--batchsize=3"], "unknown argument --batchsize=3. did you mean --batch-size"),
        (["--q7q7q7"], "unknown argument --q7q7q7. known are: --albumentations, --balance, "),
        (["stray"], "unknown argument stray"),
        (["--epochs", "many"], "argument --epochs: invalid int value: 'many'"),
        (["--epochs", "1.5"], "argument --epochs: invalid int value: '1.5'"),
        (["--epochs"], "argument --epochs: expected one argument"),
        (["--optimizer", "sgd"], "argument --optimizer: invalid choice: 'sgd'"),
        (["--cache", "tape"], "argument --cache: invalid choice: 'tape'"),
        (["--freeze"], "argument --freeze: expected at least one argument"),
        (["--freeze", "-1"], "--freeze is (-1,). it must be a number of layers"),
        (["--freeze", "model.0", "1"], "--freeze is ('model.0', 1). it must be"),
        (["--epochs", "0"], "--epochs is 0. it must be 1 or more"),
        (["--hyp", "/none.yaml"], "/none.yaml: cannot be read: No such file or directory"),
    ],
)
def test_wrong_flags_are_named(argv: list[str], message: str) -> None:
    with pytest.raises(UserError) as caught:
        config_of("--data", "d.yaml", "--cfg", "yolov5n", *argv)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--evolve 300", "--evolve is not supported. use horovod-yolo tune, which takes the other flags too"),
        ("--upload_dataset", "--upload_dataset is not supported"),
        ("--local_rank=0", "--local_rank is not supported. start several ranks with --np N"),
        ("--adam", "--adam is not supported. use --optimizer Adam"),
        ("--batch=0.7", "0.7, a share of the memory, is not supported: use auto"),
        ("--batch 1.5", "1.5 is neither a whole number nor auto"),
        ("--micro-batch all", "all is neither a whole number nor auto"),
        ("--micro-batch -2", "--micro-batch is -2. it must be auto, or 0 or more"),
        ("--batch -2", "--batch-size is -2. it must be 1 or more"),
        ("--img 64 96", "two sizes (--img 64 96) are not supported. give one, --img 96"),
        ("--img 64 64", "two sizes (--img 64 64) are not supported. give one, --img 64"),
        ("--device mps", "mps is not supported: use cpu, or GPU numbers"),
        ("--device cuda", "cuda names no GPU: give numbers"),
        ("--hyp hyp.scratch-low.yaml", "there is no such file. leave --hyp out: its values are the defaults"),
    ],
)
def test_flags_of_others_say_what_to_do_instead(line: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        config_of("--data", "d.yaml", "--cfg", "yolov5n", *shlex.split(line))
    assert message in str(caught.value)
    assert "did you mean" not in str(caught.value)


@pytest.mark.parametrize(
    ("line", "batch", "passes"),
    [
        ("", 16, 0),
        ("--micro-batch 4", 16, 4),
        ("--batch 96 --micro-batch auto", 96, "auto"),
        ("--batch auto", 64, "auto"),
        ("--batch-size=-1", 64, "auto"),
        ("--batch -1 --micro-batch 8", 64, 8),
    ],
)
def test_passes_are_given_or_looked_for_and_a_batch_of_minus_one_is_the_nominal_one(
    line: str, batch: int, passes: int | str
) -> None:
    config = config_of("--data", "d.yaml", "--cfg", "yolov5n", *shlex.split(line))
    assert (config.batch_size, config.micro_batch) == (batch, passes)
    given = vars(train_parser().parse_strictly(["--data=d", "--cfg=yolov5n", *shlex.split(line)]))
    nominal = config_from_flags(given, Hyp(nbs=48.0)).batch_size
    assert nominal == (48 if batch == 64 else batch)


def test_no_flag_is_ours_and_not_supported() -> None:
    ours = {flag for action in train_parser()._actions for flag in action.option_strings}
    assert not ours & set(OF_TRAINING)


def test_what_a_run_needs_at_least() -> None:
    with pytest.raises(UserError, match="--data is missing"):
        config_of("--cfg", "yolov5n")
    with pytest.raises(UserError, match="--cfg is missing"):
        config_of("--data", "d.yaml")
    assert config_from_flags({"data": "d.yaml", "weights": "w.pt"}).weights == "w.pt"


def test_label_smoothing_of_the_file_counts_unless_the_flag_is_given(tmp_path: Path) -> None:
    hyp = str(written(tmp_path, "label_smoothing: 0.2"))
    start = ["--data", "d", "--cfg", "yolov5n", "--hyp", hyp]
    assert config_of(*start).label_smoothing == 0.2
    assert config_of(*start, "--label-smoothing", "0.0").label_smoothing == 0.0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("momentun: 0.9", "unknown hyperparameter 'momentun'. did you mean momentum"),
        ("lr: 0.9", "unknown hyperparameter 'lr'. did you mean lrf"),
        ("3: 0.9", "unknown hyperparameter 3"),
        ("lr0: fast", "hyperparameter lr0 is 'fast'. it must be a finite number"),
        ("lr0: 1e-2", "hyperparameter lr0 is '1e-2'. it must be a finite number, in YAML 1.0e-2, not 1e-2"),
        ("lr0: .nan", "hyperparameter lr0 is nan"),
        ("lr0: yes", "hyperparameter lr0 is True"),
        ("lr0:", "hyperparameter lr0 is None"),
        ("", "not a mapping"),
        ("[1, 2]", "not a mapping"),
        ("lr0: [", "not valid YAML"),
        ("\tlr0: 1", "not valid YAML"),
        ("lr0: 2001-99-99", "not valid YAML"),
        ("lr0: " + "1" * 5000, "not valid YAML"),
        ("? [a]\n: 1", "not valid YAML"),
        (b"lr0: \xff", "not UTF-8 text (byte 0xff in line 1). save it as UTF-8"),
        (b"\0\0\0", "not valid YAML"),
        ("lr0: 1\n---\nlr0: 2", "not valid YAML"),
    ],
)
def test_a_wrong_file_is_named_with_its_mistake(tmp_path: Path, text: str | bytes, message: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(UserError) as caught:
        load_hyp(path, Hyp)
    assert str(caught.value).startswith(f"{path}: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_tags_construct_nothing(tmp_path: Path) -> None:
    proof = tmp_path / "proof"
    for tag in ("!!python/object/apply:os.system", "!!python/object/new:os.system", "!anything"):
        with pytest.raises(UserError, match="not valid YAML"):
            read_mapping(
                written(tmp_path, f"lr0: {tag} ['touch {proof}']"), most_bytes=1 << 16, what="a settings file"
            )
    assert not proof.exists()


NAMES = [f.name for f in fields(Hyp)][::-1]  # so that the first one checked is the largest
LAUGHS = f"{NAMES[0]}: &a0 [1, 1]\n" + "".join(
    f"{name}: &a{k} [{', '.join([f'*a{k - 1}'] * 9)}]\n" for k, name in enumerate(NAMES[1:], 1)
)
MERGES = "a0: &a0 {lr0: 1}\n" + "".join(
    f"a{k}: &a{k} {{<<: [{', '.join([f'*a{k - 1}'] * 9)}]}}\n" for k in range(1, 30)
)
BOMBS = {
    "laughs": LAUGHS,
    "merges": MERGES,
    "nested lists": "lr0: " + "[" * 60_000,
    "nested mappings": "{a: " * 15_000,
    "many values": "lr0: [" + "1," * 30_000 + "]",
    "many keys": "".join(f"k{k}: 1\n" for k in range(6_000)),
    "huge": "lr0: 1 # " + "x" * HYP_FILE_BYTES,
}


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_fizzle(tmp_path: Path, name: str) -> None:
    path = written(tmp_path, BOMBS[name])
    start = time.process_time()
    with pytest.raises(UserError) as caught:
        load_hyp(path, Hyp)
    assert time.process_time() - start < 8
    assert len(str(caught.value)) < 2000


@pytest.mark.parametrize("path", ["/dev/zero", "/", "/proc/self/mem"])
def test_paths_that_are_no_files(path: str) -> None:
    with pytest.raises(UserError, match=path):
        load_hyp(path, Hyp)


def test_nearest_names_at_most_two_or_all() -> None:
    assert nearest("epoch", ["epochs", "seed"]) == "did you mean epochs?"
    assert nearest("qqq", ["epochs", "seed"]) == "known are: epochs, seed"
