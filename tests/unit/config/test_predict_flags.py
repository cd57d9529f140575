"""The flags of ``predict``: YOLOv5's work or say what to do instead."""

from __future__ import annotations

import pytest

from horovod_yolo.cli import commands
from horovod_yolo.config.foreign import OF_PREDICTION
from horovod_yolo.config.predict_flags import predict_flags, predict_parser
from horovod_yolo.core.errors import UserError

# All of YOLOv5's detect.py, 7.0 and what came after.
OF_YOLOV5 = (
    "--weights --source --data --imgsz --img --img-size --conf-thres --iou-thres --max-det --device "
    "--view-img --save-txt --save-format --save-csv --save-conf --save-crop --nosave --classes "
    "--agnostic-nms --augment --visualize --update --project --name --exist-ok --line-thickness "
    "--hide-labels --hide-conf --half --dnn --vid-stride"
)
NEEDED = ["--weights", "best.pt", "--source", "a.jpg"]


def test_a_whole_command_of_yolov5_is_understood() -> None:
    words = (
        "--weights best.pt --source a.jpg 0 --source rtsp://h/x --imgsz 640 --conf-thres 0.4 --iou-thres 0.5 "
        "--max-det 50 --device cuda:0 --view-img --save-txt --save-conf --save-crop --nosave --classes 0 2 "
        "--agnostic-nms --augment --project p --name n --exist-ok --line-thickness 2 --hide-labels "
        "--hide-conf --half --vid-stride 3"
    )
    given = predict_flags(words.split())
    expected = {
        "weights": "best.pt",
        "source": ("a.jpg", "0", "rtsp://h/x"),
        "imgsz": 640,
        "conf_thres": 0.4,
        "iou_thres": 0.5,
        "max_det": 50,
        "device": "0",
        "classes": (0, 2),
        "project": "p",
        "name": "n",
        "line_thickness": 2,
        "vid_stride": 3,
    }
    switches = set(given) - set(expected)
    assert {name: given[name] for name in expected} == expected
    assert all(given[name] is True for name in switches) and len(switches) == 11
    assert predict_flags(NEEDED) == {"weights": "best.pt", "source": ("a.jpg",)}


def test_each_flag_of_yolov5_works_or_is_answered() -> None:
    ours = {flag for action in predict_parser()._actions for flag in action.option_strings}
    theirs = set(OF_YOLOV5.split())
    assert theirs <= ours | set(OF_PREDICTION)
    assert not ours & set(OF_PREDICTION), "an answer that nobody gets"
    answered = {"--save-format", "--save-csv", "--visualize", "--update", "--dnn"}
    assert theirs - ours == answered


@pytest.mark.parametrize("flag", ["--visualize", "--dnn"])
def test_the_command_ends_with_2_and_one_line(flag: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert commands.main(["predict", *NEEDED, flag]) == 2
    lines = [line for line in capfd.readouterr().err.splitlines() if line]
    assert len(lines) == 1 and f"{flag} is not supported. leave it out" in lines[0]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (NEEDED[:2], "the following arguments are required: --source"),
        (["--weights", "a.pt", "b.pt", "--source", "x"], "--weights a.pt b.pt: several at once are not"),
        ([*NEEDED, "--imgsz", "640", "480"], "two sizes (--imgsz 640 480) are not supported"),
        ([*NEEDED, "--save-text"], "unknown argument --save-text. did you mean --save-txt"),
        *(([*NEEDED, flag], f"{flag} is not supported. {OF_PREDICTION[flag]}") for flag in OF_PREDICTION),
    ],
)
def test_mistakes_and_flags_of_others_are_answered(flags: list[str], message: str) -> None:
    with pytest.raises(UserError) as caught:
        predict_flags(flags)
    assert message in str(caught.value)
