"""Every run gets a folder of its own, and files that any program can read."""

from __future__ import annotations

import json
import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml

import horovod_yolo
from horovod_yolo.assembly.run_folder import new_run_folder, versions, write_config, write_json
from horovod_yolo.config.schema import TrainConfig, from_dict
from horovod_yolo.core.errors import UserError


def test_folders_are_numbered(tmp_path: Path) -> None:
    project = tmp_path / "runs" / "train"
    made = [new_run_folder(project, "exp", exist_ok=False) for _ in range(3)]
    assert made == [project / name for name in ("exp", "exp2", "exp3")]
    assert all((folder / "weights").is_dir() for folder in made)


def test_a_gap_is_filled_and_nothing_overwritten(tmp_path: Path) -> None:
    for name in ("exp", "exp3"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine.txt").write_text("keep")
    (tmp_path / "exp4").write_text("a file of this name")
    made = [new_run_folder(tmp_path, "exp", exist_ok=False).name for _ in range(2)]
    assert made == ["exp2", "exp5"]
    assert all((tmp_path / name / "mine.txt").read_text() == "keep" for name in ("exp", "exp3"))


def test_jobs_that_start_together_get_different_folders(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: new_run_folder(tmp_path, "exp", exist_ok=False), range(24)))
    assert len(set(made)) == 24


def test_exist_ok_takes_the_folder_as_it_is(tmp_path: Path) -> None:
    for _ in range(2):
        assert new_run_folder(tmp_path, "exp", exist_ok=True) == tmp_path / "exp"
        assert (tmp_path / "exp" / "weights").is_dir()
    assert [path.name for path in tmp_path.iterdir()] == ["exp"]


@pytest.mark.parametrize("exist_ok", [False, True])
def test_a_name_may_have_folders_and_must_be_one(tmp_path: Path, exist_ok: bool) -> None:
    made = [new_run_folder(tmp_path, name, exist_ok) for name in ("a/b", "a/b")]
    assert made == [tmp_path / "a" / name for name in (("b", "b") if exist_ok else ("b", "b2"))]
    for name in ("", ".", "..", "a/..", "/", "a\0b"):
        with pytest.raises(UserError, match=r"--name '.*' is no name of a folder\. give one"):
            new_run_folder(tmp_path, name, exist_ok)
    with pytest.raises(UserError, match=r"File name too long.*name another --project or --name"):
        new_run_folder(tmp_path, "x" * 300, exist_ok)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("exist_ok", [False, True])
def test_a_place_that_cannot_be_written(tmp_path: Path, exist_ok: bool) -> None:
    (tmp_path / "file").write_text("")
    for project in (
        tmp_path / "file",
        tmp_path / "file" / "runs",
        Path("/proc/runs"),
        tmp_path / ("x" * 300),
    ):
        with pytest.raises(UserError, match=r"cannot make the run folder .*name another --project"):
            new_run_folder(project, "exp", exist_ok)


def test_the_config_can_be_read_back(tmp_path: Path) -> None:
    config = TrainConfig(data="d.yaml", cfg="yolov5n", freeze=(0, 3))
    write_config(tmp_path, config)
    assert from_dict(yaml.safe_load((tmp_path / "config.yaml").read_text())) == config


def test_json_that_any_reader_takes(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    values = {"a": math.nan, "b": [1.5, -math.inf, {"c": (math.inf, "x")}], "d": True, "e": 3}
    write_json(path, values)
    read = json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert read == {"a": None, "b": [1.5, None, {"c": [None, "x"]}], "d": True, "e": 3}


def test_versions_of_what_computed_a_result() -> None:
    found = versions()
    assert found["horovod_yolo"] == horovod_yolo.__version__
    assert {"python", "torch", "horovod", "numpy", "pillow", "scipy"} <= set(found)
