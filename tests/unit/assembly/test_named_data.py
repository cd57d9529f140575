"""Data sets by name: made once a host, or named in a line."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import PIL.Image
import pytest

from horovod_yolo.assembly.looking import Looking
from horovod_yolo.assembly.named_data import data_here
from horovod_yolo.assembly.ready import ready_here
from horovod_yolo.cli.commands import main
from horovod_yolo.core.errors import UserError
from horovod_yolo.data import named
from horovod_yolo.data.digits import make_digits
from horovod_yolo.data.named import OF_OTHERS
from horovod_yolo.distributed.communicator import Communicator
from horovod_yolo.distributed.local import LocalCommunicator
from horovod_yolo.doctor.data_key import describe
from horovod_yolo.models.suppression import Thresholds
from tests.helpers.exporting import filled_model
from tests.helpers.files_of_others import write_theirs
from tests.helpers.world import run_world


def not_here(name: str) -> str:
    return (
        f"{name} is not here, and nothing is downloaded. "
        "put its images, labels and data.yaml there and name that file; data=digits is built in"
    )


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(named.BUILT_IN, "digits", partial(make_digits, images=5, size=64))


def test_all_ranks_find_the_set_that_one_has_made(tmp_path: Path) -> None:
    found = run_world(2, lambda comm: data_here("digits", comm))
    assert found == ["datasets/digits/data.yaml"] * 2
    written = (tmp_path / found[0]).stat().st_mtime_ns
    assert data_here("digits", LocalCommunicator()) == found[0]
    assert (tmp_path / found[0]).stat().st_mtime_ns == written, "it was made anew"


def test_of_two_that_make_the_set_at_once_the_first_has_made_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever it is reads it by the time the second ends."""
    first = None

    def late(out: Path, *, replace: bool) -> None:
        nonlocal first
        make = partial(make_digits, images=5, size=64)
        with monkeypatch.context() as other:
            other.setitem(named.BUILT_IN, "digits", make)
            named.make("digits")
        first = out.stat().st_ino
        make(out, replace=replace)

    monkeypatch.setitem(named.BUILT_IN, "digits", late)
    named.make("digits")
    assert Path("datasets/digits").stat().st_ino == first
    assert [path.name for path in Path("datasets").iterdir()] == ["digits"]


def test_a_set_of_which_a_part_is_missing_is_named() -> None:
    named.make("digits")
    named.file_of("digits").unlink()
    with pytest.raises(UserError, match=r"datasets/digits: a part of it is missing\. remove it"):
        named.make("digits")


@pytest.mark.parametrize("having", [0, 1])
def test_where_one_host_has_a_folder_of_this_name_rank_0s_host_decides(having: int) -> None:
    """Ranks take turns: rank 0 has looked before rank 1, whose folder is another one then."""

    def job(comm: Communicator) -> str:
        folder = Path("digits")
        if comm.rank == having:
            folder.mkdir()
        elif folder.exists():
            folder.rmdir()
        return data_here("digits", comm)

    meant = "digits" if having == 0 else "datasets/digits/data.yaml"
    assert run_world(2, job) == [meant] * 2


def test_a_file_of_this_name_is_meant_first(tmp_path: Path) -> None:
    (tmp_path / "digits").mkdir()
    for name in ("coco8.yaml", "digts"):
        (tmp_path / name).touch()
    for name in ("digits", "coco8.yaml", "digts", "mine.yaml"):
        assert data_here(name, LocalCommunicator()) == name


@pytest.mark.parametrize("name", ["coco8.yaml", "VOC.yaml", "coco128", "Objects365.yaml"])
def test_a_known_set_that_is_not_here_has_a_line(name: str) -> None:
    assert name.removesuffix(".yaml").lower() in OF_OTHERS
    with pytest.raises(UserError) as caught:
        data_here(name, LocalCommunicator())
    assert str(caught.value) == not_here(name)


def misspelt(name: str) -> str:
    return f"{name}: no such file. did you mean digits, which is built in?"


@pytest.mark.parametrize("name", ["digts", "digitss", "digit", "Digits", "digits.yaml"])
def test_a_misspelt_name_of_the_built_in_set_has_a_line_on_all_ranks(name: str) -> None:
    def said(comm: Communicator) -> str:
        with pytest.raises(UserError) as caught:
            data_here(name, comm)
        return str(caught.value)

    assert run_world(2, said) == [misspelt(name)] * 2


@pytest.mark.parametrize("name", ["widgets", "mine.yaml", "data/digts", "s3://bucket/digts", ""])
def test_other_names_are_left_to_what_reads_them(name: str) -> None:
    assert data_here(name, LocalCommunicator()) == name


# What each command that takes a data file is called with beside it.
COMMANDS = [
    "train --cfg yolov5n --device cpu --data",
    "tune --cfg yolov5n --device cpu --trials 1 --data",
    "val --weights none.pt --data",
    "export --weights none.pt --int8 --data",
    "replay none --steps 1:2 --data",
    "bench step --cfg yolov5n --device cpu --batch-size 1 --imgsz 64 --steps 1 --data",
    "data check",
    "data stats",
    "data split --out new",
    "data convert --to coco --out new",
    "data pack --to new",
    "data import-weights none.pt new.pt --data",
]


@pytest.mark.parametrize(("name", "said"), [("coco8.yaml", not_here), ("digts", misspelt)])
@pytest.mark.parametrize("command", COMMANDS)
def test_all_commands_say_the_same_of_a_set_that_is_not_here(
    command: str, name: str, said: Callable[[str], str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*command.split(), name]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "error: " in line]
    assert line.partition("error: ")[2] == said(name)
    assert not [path for path in Path.cwd().rglob("*") if path.is_file()]


@pytest.mark.parametrize("command", [command for command in COMMANDS if "none" not in command][2:])
def test_all_commands_make_the_built_in_set(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*command.split(), "digits"]) == 0, capsys.readouterr().err
    assert Path("datasets/digits/data.yaml").is_file()


def test_a_file_that_does_not_name_its_classes_gets_those_of_a_set(
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_theirs(Path("best.onnx"), filled_model("yolov8n"), "v8", {})
    PIL.Image.new("RGB", (64, 64)).save("a.png")
    words = ["predict", "--weights", "best.onnx", "--source", "a.png", "--device", "cpu"]
    assert main([*words, "--data", "coco8.yaml"]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == f"error: {not_here('coco8.yaml')}"
    with pytest.raises(UserError, match=r"coco8\.yaml is not here"):
        ready_here(Path("best.onnx"), Looking(thresholds=Thresholds()), 0, "cpu", data="coco8.yaml")


def test_doctor_looks_at_the_set_that_a_job_would_have() -> None:
    assert describe("coco8.yaml") == {"error": not_here("coco8.yaml")}
    sizes = {split: found["images"] for split, found in describe("digits")["splits"].items()}
    assert sizes == {"train": 4, "val": 1}
