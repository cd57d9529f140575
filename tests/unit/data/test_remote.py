"""Packs in object stores and on web servers: read by ranges, to the bit, and what servers do to us."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from horovod_yolo.assembly.check import CheckOptions, check_data
from horovod_yolo.assembly.data_state import require_same_data
from horovod_yolo.core.errors import UserError
from horovod_yolo.data.cache import ImageReader
from horovod_yolo.data.read import ImageError
from horovod_yolo.data.shards import ImageBytes
from horovod_yolo.data.spec import load_data_yaml
from horovod_yolo.distributed.local import LocalCommunicator
from horovod_yolo.io import remote
from tests.helpers import object_store
from tests.helpers.object_store import Server, put
from tests.helpers.packs import pack, state_in
from tests.helpers.scanned import annotations_of

from .test_stage import fill, read, with_stage

ALONE = LocalCommunicator()
SECRET = "AKIAIOSFODNN7EXAMPLE"


@pytest.fixture(scope="module", autouse=True)
def loop() -> Iterator[None]:
    with object_store.loop():
        yield


@pytest.fixture(autouse=True)
def connections(loop: None) -> Iterator[None]:
    with object_store.connections():
        yield


@pytest.fixture(scope="module")
def packed(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pack(digits, tmp_path_factory.mktemp("packed") / "set")


@pytest.fixture
def server(packed: Path, tmp_path: Path, connections: None) -> Iterator[Server]:
    shutil.copytree(packed.parent, tmp_path / "served" / "set")
    with Server(tmp_path / "served") as running:
        yield running


def data_at(url: str, packed: Path, folder: Path) -> Path:
    """A data.yaml here of the pack there."""
    data = folder / "remote.yaml"
    data.write_text(f"path: {url}\n{packed.read_text()}")
    return data


def require_equal(packed: Path, data: Path) -> None:
    require_same_data(state_in(packed), state_in(data), changed=False)
    for split in ("train", "val"):
        here, there = (ImageReader(annotations_of(load_data_yaml(each), split)) for each in (packed, data))
        for i in range(len(here.annotations)):
            np.testing.assert_array_equal(there(i), here(i))


def test_a_web_server_gives_the_same_images_by_ranges(packed: Path, server: Server, tmp_path: Path) -> None:
    data = data_at(f"{server.url}/set/", packed, tmp_path)
    require_equal(packed, data)
    assert check_data(CheckOptions(data=str(data)), ALONE) == ("train", "val")
    of_shards = [(how, span) for how, name, span in server.asked if name.endswith(".tar")]
    assert all(span.startswith("bytes=") for how, span in of_shards if how == "GET")


def test_s3_gives_them(packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with object_store.moto() as url:
        put(f"{url}/bucket")
        for path in packed.parent.iterdir():
            put(f"{url}/bucket/deep/{path.name}", path.read_bytes())
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", SECRET)
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
        require_equal(packed, data_at("s3://bucket/deep", packed, tmp_path))
        with pytest.raises(UserError, match=r"s3://bucket/no/train.columns: the index .*No such file"):
            read(data_at("s3://bucket/no", packed, tmp_path))


def test_google_s_store_gives_them(
    packed: Path, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", server.url)
    monkeypatch.setenv("FSSPEC_GS_TOKEN", "anon")
    require_equal(packed, data_at("gs://bucket/set", packed, tmp_path))


def test_shards_are_staged_and_then_the_server_may_go(packed: Path, server: Server, tmp_path: Path) -> None:
    plain = read(data_at(f"{server.url}/set", packed, tmp_path))
    fill(plain, tmp_path / "stage")
    server.fault = lambda _: 404
    here, there = ImageReader(read(packed).train), ImageReader(with_stage(plain, tmp_path / "stage").train)
    for i in range(28):
        assert isinstance(there.annotations.nearest_file(i), ImageBytes)
        np.testing.assert_array_equal(there(i), here(i))


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "SECONDS", 1.5)
    monkeypatch.setattr(remote, "SECONDS_WHILE_GONE", 0.3)
    monkeypatch.setattr(remote, "PAUSES", (0.01, 0.02))


@pytest.mark.parametrize(
    ("status", "asks", "reason"),
    [
        (403, 1, "access is refused: does this job have credentials for it?"),
        (503, 3, "the server answers 503"),
        (404, 1, "train-00003.tar is gone"),
        (0, 1, "no answer in time"),
    ],
)
@pytest.mark.usefixtures("quick")
def test_a_server_that_fails_later_loses_images_in_bounded_time(
    packed: Path, server: Server, tmp_path: Path, status: int, asks: int, reason: str
) -> None:
    load = ImageReader(read(data_at(f"{server.url}/set", packed, tmp_path)).train)

    def fault(_: str) -> int:
        if not status:
            time.sleep(2)
        return status or 500

    server.fault = fault
    server.asked.clear()
    with pytest.raises(ImageError, match=r"cannot be read|gone") as lost:
        load(27)
    assert reason in lost.value.reason
    assert len(server.asked) == asks
    server.fault = lambda _: 0
    load(27)


@pytest.mark.usefixtures("quick")
def test_a_moment_s_failure_is_tried_again(packed: Path, server: Server, tmp_path: Path) -> None:
    load = ImageReader(read(data_at(f"{server.url}/set", packed, tmp_path)).train)
    answers = iter((503, 500))
    server.fault = lambda _: next(answers, 0)
    load(5)


def test_mistakes_are_said_in_a_line(
    packed: Path, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def message(url: str) -> str:
        with pytest.raises(UserError) as refused:
            read(data_at(url, packed, tmp_path))
        assert SECRET not in str(refused.value)
        return str(refused.value)

    assert "ftp:// is not read" in message("ftp://host/set")
    assert "credentials belong in the environment" in message(f"https://me:{SECRET}@host/set")
    assert "credentials belong in the environment" in message(f"https://host/set?sig={SECRET}")
    assert "a host or bucket and a folder" in message("s3:///set")
    shard = server.folder / "set" / "train-00001.tar"
    shard.write_bytes(shard.read_bytes()[:-1])
    assert f"{server.url}/set/train-00001.tar: the shard has " in message(f"{server.url}/set")
    server.gives_ranges = False
    assert "the server gives whole files only" in message(f"{server.url}/set")
    monkeypatch.setattr(remote, "NEEDS", {**remote.NEEDS, "http": "no_such_package"})
    remote._system.cache_clear()
    missing = message(f"{server.url}/set")
    assert "http:// needs no_such_package, which cannot be imported" in missing
    assert missing.endswith("pip install 'horovod_yolo[cloud]'")


def test_loose_files_and_urls_as_items_are_refused(packed: Path, tmp_path: Path) -> None:
    (tmp_path / "loose.yaml").write_text("path: s3://bucket/set\ntrain: images\nval: images\nnames: [a]\n")
    with pytest.raises(UserError, match="s3://bucket/set must hold a pack, and 'images' is no index of one"):
        read(tmp_path / "loose.yaml")
    (tmp_path / "item.yaml").write_text("train: s3://b/train.columns\nval: val.columns\nnames: [a]\n")
    with pytest.raises(UserError, match=r"train is a URL\. write the folder's URL as 'path'"):
        load_data_yaml(tmp_path / "item.yaml")


def test_what_libraries_say_holds_no_credential() -> None:
    signed = f"Forbidden, url='https://me:{SECRET}@host/a?X-Amz-Signature={'f' * 64}&X={SECRET}' {'k' * 40}"
    said = remote._said(RuntimeError(f"{signed}\nAuthorization: {SECRET}"))
    assert said == "RuntimeError: Forbidden, url='https:...host/a... ..."
    logging.getLogger("aiobotocore").warning("nobody hears this where %s", SECRET)
