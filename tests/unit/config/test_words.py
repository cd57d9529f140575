"""``epochs=5 imgsz=640``: the same as the flags, and whatever is none of them has a line."""

from __future__ import annotations

from typing import Any

import pytest

from horovod_yolo.cli.export import export_parser
from horovod_yolo.cli.tune import tune_parser
from horovod_yolo.cli.val import val_parser
from horovod_yolo.config.load import train_parser
from horovod_yolo.config.predict_flags import predict_parser
from horovod_yolo.config.words import HYPERPARAMETERS, spelled, with_words
from horovod_yolo.core.errors import UserError
from horovod_yolo.families import zoo

PARSERS = {
    "train": train_parser,
    "tune": tune_parser,
    "val": val_parser,
    "predict": predict_parser,
    "export": export_parser,
}


def parsed(command: str, line: str) -> dict[str, Any]:
    return vars(with_words(PARSERS[command](), command).parse_strictly(line.split()))


@pytest.mark.parametrize(
    ("command", "words", "flags"),
    [
        (
            "train",
            "model=yolo11n data=digits epochs=5 imgsz=640",
            "--cfg yolo11n --data digits --epochs 5 --img 640",
        ),
        (
            "tune",
            "mode=tune data=d.yaml model=yolo11n iterations=20 lr0=0.02 plots=False ranks_per_trial=4",
            """--data d.yaml --cfg yolo11n --trials 20 --hyp {"lr0":0.02} --noplots --ranks-per-trial 4""",
        ),
        (
            "train",
            "data=d.yaml model=yolo11n.yaml batch=8",
            "--data d.yaml --cfg yolo11n --batch-size 8",
        ),
        (
            "train",
            "data=d.yaml model=best.pt batch=-1",
            "--data d.yaml --weights best.pt --batch auto",
        ),
        (
            "train",
            "device=0,1 np=2 engine=torch",
            "--device 0,1 --np 2 --engine torch",
        ),
        (
            "train",
            "device=[0,1] freeze=[0,1]",
            "--device 0,1 --freeze 0 1",
        ),
        (
            "train",
            "freeze=0,1 cos_lr=True rect=False",
            "--freeze 0 1 --cos-lr",
        ),
        (
            "train",
            "amp=False val=false plots=False cache=True",
            "--precision fp32 --noval --noplots --cache",
        ),
        (
            "train",
            "mode=train task=detect save=True name=a=b",
            "--name a=b",
        ),
        (
            "train",
            "resume=True",
            "--resume",
        ),
        (
            "train",
            "resume=True model=runs/last.pt",
            "--resume runs/last.pt",
        ),
        (
            "train",
            "--class-map a=b epochs=3",
            "--class-map a=b --epochs 3",
        ),
        (
            "train",
            "--freeze 0 1 epochs=3 --cos-lr seed=1",
            "--freeze 0 1 --cos-lr --epochs 3 --seed 1",
        ),
        (
            "train",
            "lr0=0.02 box=5",
            '--hyp {"lr0":0.02,"box":5}',
        ),
        (
            "val",
            "model=best.pt data=d.yaml conf=0.1 iou=0.6",
            "--weights best.pt --data d.yaml --conf-thres 0.1 --iou-thres 0.6",
        ),
        (
            "val",
            "model=best.pt task=detect split=test rect=False plots=False",
            "--weights best.pt --task test --no-rect --noplots",
        ),
        (
            "predict",
            "model=best.pt source=a.jpg conf=0.3 save=False",
            "--weights best.pt --source a.jpg --conf 0.3 --nosave",
        ),
        (
            "predict",
            "model=b.pt source=a.jpg show_labels=False line_width=2",
            "--model b.pt --source a.jpg --hide-labels --line-thickness 2",
        ),
        (
            "predict",
            "--weights b.pt --source a.jpg b=c.jpg classes=0,2",
            "--weights b.pt --source a.jpg b=c.jpg --classes 0 2",
        ),
        (
            "export",
            "model=b.pt format=onnx,openvino imgsz=384,640 half=True",
            "--weights b.pt --format onnx,openvino --imgsz 384 640 --half",
        ),
    ],
)
def test_words_are_flags(command: str, words: str, flags: str) -> None:
    assert parsed(command, words) == parsed(command, flags)


@pytest.mark.parametrize(
    ("command", "words", "line"),
    [
        ("train", "epoch=5", "unknown argument epoch. did you mean epochs"),
        ("train", "epochs=five", "argument --epochs: invalid int value: 'five'. see `train.py --help`"),
        ("train", "batch=8 batch_size=8", "batch and batch_size are one thing. give one of them"),
        ("train", "dropout=0.1", "dropout is not supported. leave it out: the models here have no dropout"),
        ("train", "evolve=300", "evolve is not supported. use horovod-yolo tune, which takes"),
        ("tune", "evolve=300", "evolve is not supported. leave it out: this searches hyperparameters"),
        ("tune", "--resume_evolve x", "--resume_evolve is not supported. use --resume"),
        ("train", "mask_ratio=4", "mask_ratio is not supported. leave it out: there are no masks here"),
        ("train", "task=segment", "task=segment is not supported. horovod-yolo has detection only"),
        ("train", "mode=val", "mode=val is not supported. this is train"),
        ("train", "conf=0.3", "unknown argument conf"),
        ("train", "cos_lr=maybe", "cos_lr is 'maybe'. it must be True or False"),
        ("train", "hyp=h.yaml lr0=0.1", "hyp and lr0 exclude each other. write all of them into the file"),
        ("train", "--hyp h.yaml lr0=0.1", "hyp and lr0 exclude each other. write all of them into the file"),
        ("train", "lr0=fast", "lr0=fast. these are numbers"),
        ("train", "source=a.jpg", "source is of horovod-yolo predict, not of train. leave it out"),
        ("val", "model=b.pt epochs=3", "epochs is of horovod-yolo train, not of val. leave it out"),
        ("val", "model=b.pt lr0=0.1", "lr0 is of horovod-yolo train, not of val. leave it out"),
        ("export", "model=b.pt formats=onnx", "unknown argument formats. did you mean format"),
    ],
)
def test_what_is_no_flag_has_a_line(command: str, words: str, line: str) -> None:
    with pytest.raises(UserError) as caught:
        parsed(command, words)
    assert str(caught.value).startswith(line)


def test_ranks_get_flags_and_mistakes_are_left_for_all_of_them() -> None:
    def parser() -> Any:
        return with_words(train_parser(), "train")

    assert spelled(["epochs=3", "--cos-lr", "lr0=0.1"], parser) == [
        "--cos-lr", "--epochs=3", '--hyp={"lr0": 0.1}'
    ]  # fmt: skip
    assert spelled(["epoch=3"], parser) == ["epoch=3"]


def test_words_that_are_hyperparameters_are_those_of_the_families() -> None:
    flags = {action.dest for action in train_parser()._actions}
    assert HYPERPARAMETERS - flags == zoo.hyperparameters()
