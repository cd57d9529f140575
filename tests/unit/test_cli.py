"""Each command ends with the code and the one line that the design promises."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

import horovod_yolo
from horovod_yolo import cli
from horovod_yolo.cli.commands import COMMANDS
from horovod_yolo.distributed.launchers.found import LAUNCHERS

REPOSITORY = Path(__file__).resolve().parents[2]
SECONDS = 10  # of processor time: other jobs on the machine do not count


def call(*arguments: str | Path, cwd: Path) -> tuple[subprocess.CompletedProcess[str], float]:
    """Run ``train.py`` or ``horovod-yolo``; also the processor time it took."""
    first = [REPOSITORY / "train.py"] if arguments[0] == "train.py" else ["-m", "horovod_yolo.cli"]
    rest = arguments[1:] if arguments[0] == "train.py" else arguments
    launched = {name for kind in LAUNCHERS for name in (kind.rank_name, kind.size_name)}
    environment = {k: v for k, v in os.environ.items() if k not in launched} | {"OMP_NUM_THREADS": "1"}
    before = os.times()
    done = subprocess.run(
        [sys.executable, *map(str, (*first, *rest))], cwd=cwd, env=environment, capture_output=True, text=True
    )
    after = os.times()
    return done, (after.children_user + after.children_system) - (
        before.children_user + before.children_system
    )


def mistake(*arguments: str | Path, cwd: Path) -> str:
    """The one line that a command ends with when the mistake is the user's."""
    done, seconds = call(*arguments, cwd=cwd)
    assert done.returncode == 2, done
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert seconds < SECONDS
    return line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("trian", "unknown command 'trian'. did you mean train?"),
        (
            "--epochs 3",
            "unknown command '--epochs'. known are: bench, completion, data, doctor, eval, export, ",
        ),
        ("eval --gt a.json", "the following arguments are required: --dt"),
        ("eval --gt a.json --dt b.json --jsn", "unknown argument --jsn. did you mean --json"),
        ("eval --gt none.json --dt none.json", "none.json: cannot be read (No such file or directory)"),
        ("data", "the following arguments are required: kind"),
        ("data check", "one data set is to be named. horovod-yolo data check data.yaml"),
        ("data check --data none.yaml", "none.yaml: "),
        ("data check --data d --class-mab a=b", "unknown argument --class-mab. did you mean --class-map"),
        ("data pack none.yaml --to there --shard 1GB", "none.yaml: "),
        ("data digitz --out x", "unknown data command 'digitz'. did you mean digits"),
        ("data checc data.yaml", "unknown data command 'checc'. did you mean check"),
        ("data digits", "the following arguments are required: --out"),
        ("data digits --out x --imges 5", "unknown argument --imges. did you mean --images"),
        ("data digits --out x --images many", "invalid int value: 'many'"),
        ("data digits --out .", ".: "),
    ],
)
def test_mistakes_without_torch(tmp_path: Path, arguments: str, message: str) -> None:
    (tmp_path / "mine.txt").write_text("keep")
    assert message in mistake(*arguments.split(), cwd=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("train.py --data none.yaml --cfg yolov5n --device cpu", "none.yaml: cannot be read"),
        ("train --data d.yaml --cfg yolov5n --epoch 3", "unknown argument --epoch. did you mean --epochs"),
        ("train --data d.yaml --cfg yolov5n --elastic", "--elastic without horovodrun's elastic launch"),
        ("predict --weights none.pt --source x.jpg", "x.jpg: no such file. name pictures, videos"),
        ("val --weights none.pt", "none.pt: No such file; looked for /"),
        ("val --weights yolov5s.pt", "nothing is downloaded: get yolov5s.pt (published weights of yolov5s)"),
        ("export --weights none.pt --format onnx", "none.pt: No such file"),
        ("export --weights none.pt --format tflite", "--format tflite: no such format. there are onnx, "),
        ("export --weights none.pt --workspace 4", "--workspace is not supported. use trtexec"),
        ("export --weights none.pt --format safetensors --nms", "--nms and --format safetensors"),
        ("data import-weights none.pt out.pt", "nothing is downloaded: get none.pt"),
        ("data import-weights none.pt", "the following arguments are required: OUT"),
    ],
)
def test_mistakes_of_jobs(tmp_path: Path, arguments: str, message: str) -> None:
    assert message in mistake(*arguments.split(), cwd=tmp_path)


def test_an_elastic_launch_needs_the_flag(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some ranks alone would not know that others may come."""
    rank = {"HOROVOD_ELASTIC": "1", "HOROVOD_RANK": "0", "HOROVOD_SIZE": "2"}
    meeting = {"HOROVOD_GLOO_RENDEZVOUS_ADDR": "127.0.0.1", "HOROVOD_GLOO_RENDEZVOUS_PORT": "1"}
    for name, value in (rank | meeting).items():
        monkeypatch.setenv(name, value)
    words = [sys.executable, REPOSITORY / "train.py", "--data", "d.yaml", "--cfg", "yolov5n"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert "horovodrun's elastic launch without --elastic. add --elastic" in done.stderr


def test_version_and_help(tmp_path: Path) -> None:
    done, _ = call("--version", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, f"horovod_yolo {horovod_yolo.__version__}\n")
    done, _ = call("eval", "--help", cwd=tmp_path)
    assert done.returncode == 0 and "--gt" in done.stdout
    done, _ = call("data", "digits", "--help", cwd=tmp_path)
    assert done.returncode == 0 and all(f"default: {number}" in done.stdout for number in (600, 320, 0))


def test_no_command_shows_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 2
    told = capsys.readouterr().out
    assert "usage: horovod-yolo COMMAND" in told
    assert all(f"\n  {name} " in told for name in COMMANDS)
    assert cli.main(["--help"]) == 0


@pytest.fixture
def scores(tmp_path: Path) -> tuple[Path, Path]:
    """One image, one box, found exactly."""
    truth, found = tmp_path / "gt.json", tmp_path / "dt.json"
    box = {"image_id": 1, "category_id": 3, "bbox": [10, 10, 50, 40]}
    truth.write_text(
        json.dumps(
            {
                "images": [{"id": 1, "width": 100, "height": 100}],
                "categories": [{"id": 3, "name": "cat"}],
                "annotations": [{"id": 1, "area": 2000, "iscrowd": 0, **box}],
            }
        )
    )
    found.write_text(json.dumps([{"score": 0.9, **box}]))
    return truth, found


def test_eval_prints_the_twelve_numbers(scores: tuple[Path, Path], tmp_path: Path) -> None:
    done, _ = call("eval", "--gt", scores[0], "--dt", scores[1], cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    numbers = [line for line in done.stdout.splitlines() if "=" in line]
    assert len(numbers) == 12
    assert "1.000" in numbers[0]


def test_eval_as_json(scores: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["eval", "--gt", str(scores[0]), "--dt", str(scores[1]), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["mAP50-95"] == pytest.approx(1.0)
    assert printed["per_class"][0]["name"] == "cat"


def test_data_digits_says_how_to_go_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "d"
    assert cli.main(["data", "digits", "--out", str(out), "--images", "10", "--size", "64"]) == 0
    assert f"train with --data {out / 'data.yaml'}" in capsys.readouterr().out
    assert (out / "data.yaml").is_file()


def test_data_check_says_what_a_run_would_say(
    digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = ["--cache-dir", str(tmp_path / "cache")]
    assert cli.main(["data", "check", "--data", str(digits), *cache]) == 0
    said = capsys.readouterr().out
    assert "train: 28 images" in said and "val: 7 images" in said
    assert said.endswith(f"{digits}: a run can train on it (train, val)\n")
    data = tmp_path / "data.yaml"
    data.write_text(f"path: {digits.parent}\ntrain: images/train\nval: images/val\nnames: [zero]\n")
    assert cli.main(["data", "check", "--data", str(data), *cache]) == 2
    printed = capsys.readouterr()
    assert f"error: {data}: train: " in printed.out and printed.err.startswith(f"error: {data}: val: ")
    assert printed.err.count("\n") == 1
    assert cli.main(["data", "check", "--data", str(data), "--skip-bad-classes", *cache]) == 0


def test_the_command_line_is_quick(tmp_path: Path) -> None:
    start = time.process_time()
    assert cli.main(["nonsense"]) == 2
    assert time.process_time() - start < 0.5
