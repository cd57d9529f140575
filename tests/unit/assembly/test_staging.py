"""``--stage`` in whole runs over ranks: a copier a host, and the bits of a run without it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from horovod_yolo.assembly import staging
from horovod_yolo.config.schema import TrainConfig
from horovod_yolo.data.shards import ImageBytes
from horovod_yolo.data.stage import Staged
from horovod_yolo.data.staging import Copier
from tests.helpers.packs import pack
from tests.helpers.runs import checkpoint, steps
from tests.helpers.tiny_zoo import NAME
from tests.helpers.world import run_world

from .disturbed import job, lose_a_rank, require_same_bits
from .test_run import settings

pytestmark = pytest.mark.usefixtures("tiny")

FROM_COPIES, FROM_SOURCE = "from copies", "from the source"


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Where images were read."""
    found: Counter[str] = Counter()
    whole = Staged.__call__

    def counted(self: Staged, i: int) -> ImageBytes | None:
        file = whole(self, i)
        found[FROM_SOURCE if file is None else FROM_COPIES] += 1
        return file

    monkeypatch.setattr(Staged, "__call__", counted)
    return found


@pytest.fixture
def copiers(monkeypatch: pytest.MonkeyPatch) -> list[Copier]:
    """Those that were begun. Runs here are so short that each is waited for when it is to end."""
    begun: list[Copier] = []

    class Counted(Copier):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            begun.append(self)

    monkeypatch.setattr(staging, "Copier", Counted)
    return begun


def config_of(data: Path, folder: Path, **changes: Any) -> TrainConfig:
    given = {"cfg": NAME, "batch_size": 13, "noplots": True, "stage": str(folder / "stage"), **changes}
    return settings(data, cache_dir=str(folder / "cache"), **given)


@pytest.mark.parametrize("packed", [False, True])
def test_a_run_has_the_same_bits_and_each_host_a_copier(
    digits: Path, tmp_path: Path, packed: bool, reads: Counter[str], copiers: list[Copier]
) -> None:
    data = pack(digits, tmp_path / "pack") if packed else digits
    for name, stage in (("plain", ""), ("first", "stage"), ("second", "stage")):
        config = config_of(data, tmp_path, stage=stage and str(tmp_path / stage))
        run_world(3, job(config, tmp_path / name), hosts=(2, 1))
        assert bool(reads[FROM_SOURCE] or reads[FROM_COPIES]) == bool(stage)
        if name == "first":
            assert len(copiers) == 2, "one for each host"
            reads.clear()
    assert (reads[FROM_SOURCE], reads[FROM_COPIES] > 28) == (0, True)
    for name in ("first", "second"):
        require_same_bits(checkpoint(tmp_path / name), checkpoint(tmp_path / "plain"))
        assert steps(tmp_path / name) == steps(tmp_path / "plain")


def test_survivors_of_an_elastic_job_go_on_with_the_copies(
    digits: Path, tmp_path: Path, copiers: list[Copier]
) -> None:
    """The rank that copied for its host is rank 0 of three; another one copies in the next world."""
    for name, stage in (("plain", ""), ("run", str(tmp_path / "stage"))):
        lose_a_rank(
            config_of(digits, tmp_path, commit_every=2, elastic=True, stage=stage), tmp_path / name, 2
        )
    assert len(copiers) == 2
    require_same_bits(checkpoint(tmp_path / "run"), checkpoint(tmp_path / "plain"))
