"""Packs: the files come back as they were, whoever packed them, and a run has the same data to the bit."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from horovod_yolo.assembly import packing
from horovod_yolo.assembly.check import CheckOptions, check_data
from horovod_yolo.assembly.data_state import require_same_data
from horovod_yolo.assembly.packing import PackOptions, pack_data
from horovod_yolo.core.errors import UserError
from horovod_yolo.data.cache import ImageReader
from horovod_yolo.data.formats import LabelRules
from horovod_yolo.data.packing import Plan, write_shard
from horovod_yolo.data.read import ImageError, MissingImageError, read_image
from horovod_yolo.data.spec import load_data_yaml
from horovod_yolo.distributed.local import LocalCommunicator
from horovod_yolo.doctor.data_key import describe
from tests.helpers.disk import Disk, why_not
from tests.helpers.packs import pack, state_in
from tests.helpers.runs import checkpoint
from tests.helpers.scanned import annotations_of
from tests.helpers.short_runs import trained
from tests.helpers.tiny_zoo import NAME, add_tiny
from tests.helpers.world import run_world, world_outcomes

ALONE = LocalCommunicator()
NOTHING = (
    np.empty(0, np.int64),
    np.empty((0, 4), np.float32),
    np.empty(0, np.bool_),
    np.empty(0, np.float32),
)


def bytes_in(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def packed(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pack(digits, tmp_path_factory.mktemp("packed") / "digits")


@pytest.fixture
def copied(packed: Path, tmp_path: Path) -> Path:
    """A pack that a test may spoil; a copy is a pack, too."""
    return shutil.copytree(packed.parent, tmp_path / "copy") / "data.yaml"


@pytest.mark.parametrize("ranks", [2, 3])
def test_any_number_of_ranks_makes_the_same_bytes(
    digits: Path, packed: Path, tmp_path: Path, ranks: int
) -> None:
    options = PackOptions(data=str(digits), to=tmp_path / "there", shard="60kB")
    assert run_world(ranks, lambda comm: pack_data(options, comm)) == [(35, 5)] * ranks
    assert bytes_in(tmp_path / "there") == bytes_in(packed.parent)


def test_samples_and_data_are_those_of_the_loose_files(digits: Path, packed: Path) -> None:
    loose, there = (annotations_of(load_data_yaml(data)) for data in (digits, packed))
    assert there.digest == loose.digest
    for i in range(len(loose)):
        assert np.array_equal(read_image(loose.image_file(i), 2), read_image(there.image_file(i), 2))
    require_same_data(state_in(digits), state_in(packed), changed=False)


def test_classes_of_another_model_are_those_of_the_loose_files(digits: Path, packed: Path) -> None:
    rules = LabelRules(class_map=(("8", "3"), ("9", "")))
    loose, there = (
        annotations_of(load_data_yaml(data, rules).for_classes(("7", "3", "0", "1", "2"), "the model"))
        for data in (digits, packed)
    )
    assert (there.digest, len(there.classes)) == (loose.digest, len(loose.classes))
    assert 0 < len(there.classes) < len(annotations_of(load_data_yaml(packed)).classes)
    assert np.array_equal(there.marks, loose.marks)


def test_a_run_is_the_same_to_the_bit(
    digits: Path, packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_tiny(monkeypatch)
    runs = [
        trained(data, tmp_path / name, "cpu", cfg=NAME, noval=False)
        for name, data in (("loose", digits), ("packed", packed))
    ]
    first, second = (json.dumps(checkpoint(run)["model"], default=lambda t: t.tolist()) for run in runs)
    assert first == second


def test_a_whole_pack_is_left_alone_and_one_without_its_pieces_is_written_anew(
    digits: Path, packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "there"
    shutil.copytree(packed.parent, folder)
    written: list[int] = []

    def noted(plan: Plan, shard: int, *rest: object) -> None:
        written.append(shard)
        write_shard(plan, shard, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(packing, "write_shard", noted)
    assert pack(digits, folder) == folder / "data.yaml"
    assert written == []  # it is whole
    for name in ("data.yaml", "train.columns", "val.columns"):
        (folder / name).unlink()
    pack(digits, folder)
    assert sorted(written) == [0, 0, 1, 2, 3]  # what is in the index alone is not taken on trust
    assert bytes_in(folder) == bytes_in(packed.parent)


_KILLED = """
import os, signal, sys
from horovod_yolo.assembly import packing
from horovod_yolo.cli import main

def killed(plan, shard, folder, advance):
    def die(count):
        advance(count)
        if shard == 2 and len(os.listdir(folder)) == 5:  # two whole ones, and the one that is written
            os.kill(os.getpid(), signal.SIGKILL)
    real(plan, shard, folder, die)

real, packing.write_shard = packing.write_shard, killed
main(["data", "pack", *sys.argv[1:], "--shard", "60kB"])
"""


def test_what_a_killed_pack_had_whole_is_not_written_again(
    digits: Path, packed: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "there"
    done = subprocess.run([sys.executable, "-c", _KILLED, digits, "--to", folder], check=False)
    assert done.returncode == -signal.SIGKILL
    whole = {path.name: path.stat().st_mtime_ns for path in folder.glob("train-*.tar")}
    assert sorted(whole) == ["train-00000.tar", "train-00001.tar"]
    assert list(folder.glob(".train-00002.tar.*.tmp"))
    pack(digits, folder)
    assert bytes_in(folder) == bytes_in(packed.parent)
    assert {name: (folder / name).stat().st_mtime_ns for name in whole} == whole


def test_whole_shards_of_a_failed_pack_are_kept(
    digits: Path, packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, written = tmp_path / "there", []

    def fails_at_last(plan: Plan, shard: int, to: Path, advance: Callable[[int], None]) -> None:
        if plan.split == "val" and not written.count("val"):
            written.append("val")
            (to / ".val-00000.tar.0123abcd.tmp").write_bytes(b"unfinished")
            raise OSError(28, "No space left on device")
        written.append(plan.split)
        write_shard(plan, shard, to, advance)

    monkeypatch.setattr(packing, "write_shard", fails_at_last)
    with pytest.raises(
        UserError, match=r"val-00000\.tar: cannot be written: No space left on device. make room"
    ):
        pack(digits, folder)
    assert written == ["train"] * 4 + ["val"]
    pack(digits, folder)
    assert written == ["train"] * 4 + ["val"] * 2
    assert bytes_in(folder) == bytes_in(packed.parent)


@pytest.mark.skipif(why_not() is not None, reason=str(why_not()))
def test_a_disk_that_is_too_small_is_said_before_it_is_full(digits: Path, tmp_path: Path) -> None:
    with (
        Disk(tmp_path / "small", "64k") as disk,
        pytest.raises(UserError, match=r"0\.00 GB are to be written, and 0\.00 are free. make room"),
    ):
        pack(digits, disk.inside)


def spoil_middle(shard: Path) -> None:
    """Another byte in its first image."""
    content = bytearray(shard.read_bytes())
    content[content.index(b"\xff\xd8\xff") + 200] ^= 1
    shard.write_bytes(content)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda shard: shard.unlink(), "train-00001.tar: a shard cannot be read: No such file"),
        (lambda shard: os.truncate(shard, 5000), "train-00001.tar: the shard has 5000 bytes, not the "),
        (
            lambda shard: shard.write_bytes(bytes(len(shard.read_bytes()))),
            "train-00001.tar: the shard is of another pack than the index",
        ),
        (
            lambda shard: os.truncate(shard.with_name("train.columns"), 900),
            "train.columns: the index of a pack cannot be read: its checksum is not",
        ),
        (
            lambda shard: shard.with_name("train.columns").unlink(),
            "train.columns: the index of a pack cannot be read: No such file",
        ),
    ],
)
def test_damage_is_said_at_the_start(copied: Path, spoil: Callable[[Path], None], message: str) -> None:
    spoil(copied.with_name("train-00001.tar"))
    for error in world_outcomes(2, lambda comm: check_data(CheckOptions(data=str(copied)), comm)):
        assert isinstance(error, UserError)
        assert message in str(error)


def test_damage_inside_is_found_by_a_check_and_costs_a_run_that_image_alone(copied: Path) -> None:
    spoil_middle(copied.with_name("train-00001.tar"))
    there = annotations_of(load_data_yaml(copied))  # the start does not read it all
    with pytest.raises(
        UserError, match=r"train-00001.tar: it is not what was written, and 1 of its \d+ images"
    ):
        check_data(CheckOptions(data=str(copied)), ALONE)
    read, lost = ImageReader(there), []
    for i in range(len(there)):
        try:
            read(i)
        except ImageError as error:
            lost.append(error.reason)
    (reason,) = lost
    assert "train-00001.tar is damaged where this image is packed" in reason


def test_a_shard_that_goes_while_a_run_has_it_open_is_read_on_and_one_that_it_had_not_is_lost(
    copied: Path,
) -> None:
    read = ImageReader(annotations_of(load_data_yaml(copied)))
    before = read(0)
    for shard in copied.parent.glob("*.tar"):
        shard.unlink()
    assert np.array_equal(read(0), before)
    with pytest.raises(MissingImageError, match=r"its shard .*train-00003.tar is gone"):
        read(27)


def test_what_the_folder_has_already(digits: Path, copied: Path, tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"holds the pack of other data, or of another --shard\. give an empty"
    ):
        pack(digits, copied.parent, "1GB")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "train-00000.tar").write_bytes(b"of somebody else")
    with pytest.raises(UserError, match=r"mine: is not empty: 'train-00000.tar'. give an empty"):
        pack(digits, tmp_path / "mine")
    assert (tmp_path / "mine" / "train-00000.tar").read_bytes() == b"of somebody else"


def test_mistakes_in_what_is_packed(digits: Path, packed: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--shard: .* has \d+ bytes, more than a shard of 2000. give 1MB"):
        pack(digits, tmp_path / "a", "2kB")
    with pytest.raises(UserError, match="train, val is packed already"):
        pack(packed, tmp_path / "a")
    with pytest.raises(UserError, match="--shard '5' is no number with a unit"):
        pack(digits, tmp_path / "a", "5")
    packed_names = load_data_yaml(packed).names
    odd = tmp_path / "other.yaml"
    odd.write_text(f"path: {packed.parent}\ntrain: [train.columns, more]\nval: val.columns\nnames: [a]\n")
    with pytest.raises(UserError, match=r"train\.columns is one of 2 items"):
        annotations_of(load_data_yaml(odd))
    with pytest.raises(UserError, match=f"names has 1 classes, and val was packed with {len(packed_names)}"):
        annotations_of(load_data_yaml(odd), "val")


def test_an_image_that_is_lost_or_changed_while_it_is_packed(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = shutil.copytree(digits.parent, tmp_path / "set") / "data.yaml"
    image = sorted((data.parent / "images" / "train").iterdir())[3]

    def lose_first(plan: Plan, *rest: object) -> None:
        image.unlink(missing_ok=True)
        write_shard(plan, *rest)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(packing, "write_shard", lose_first)
        with pytest.raises(UserError, match=f"{image.name}: no such file, and was there in the scan. start"):
            pack(data, tmp_path / "packed")
    pack(data, tmp_path / "packed")  # without it; what was written of the other plan is replaced
    assert len(annotations_of(load_data_yaml(tmp_path / "packed" / "data.yaml"))) == 27
    check_data(CheckOptions(data=str(tmp_path / "packed" / "data.yaml")), ALONE)


def test_the_doctor_knows_a_copy(packed: Path, copied: Path) -> None:
    assert describe(packed) == describe(copied)
    assert describe(packed)["splits"]["train"]["images"] == 28
