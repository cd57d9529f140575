"""Data sets by name: made once a host, or named in a line."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from horovod_yolo.assembly import named_data
from horovod_yolo.assembly.named_data import OF_OTHERS, data_here
from horovod_yolo.core.errors import UserError
from horovod_yolo.data.digits import make_digits
from horovod_yolo.distributed.local import LocalCommunicator
from tests.helpers.world import run_world


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(named_data.BUILT_IN, "digits", partial(make_digits, images=5, size=64))


def test_all_ranks_find_the_set_that_one_has_made(tmp_path: Path) -> None:
    found = run_world(2, lambda comm: data_here("digits", comm))
    assert found == ["datasets/digits/data.yaml"] * 2
    written = (tmp_path / found[0]).stat().st_mtime_ns
    assert data_here("digits", LocalCommunicator()) == found[0]
    assert (tmp_path / found[0]).stat().st_mtime_ns == written, "it was made anew"


def test_a_file_of_this_name_is_meant_first(tmp_path: Path) -> None:
    (tmp_path / "digits").mkdir()
    (tmp_path / "coco8.yaml").touch()
    for name in ("digits", "coco8.yaml", "mine.yaml"):
        assert data_here(name, LocalCommunicator()) == name


@pytest.mark.parametrize("name", ["coco8.yaml", "VOC.yaml", "coco128", "Objects365.yaml"])
def test_a_known_set_that_is_not_here_has_a_line(name: str) -> None:
    assert name.removesuffix(".yaml").lower() in OF_OTHERS
    with pytest.raises(UserError) as caught:
        data_here(name, LocalCommunicator())
    assert str(caught.value) == (
        f"{name} is not here, and nothing is downloaded. "
        "put its images, labels and data.yaml there and name that file; data=digits is built in"
    )
