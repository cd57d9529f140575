"""Hosts for the tests of this folder."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from horovod_yolo.data.digits import make_digits
from tests.cluster.elastic import IMAGES
from tests.cluster.hosts import Cluster, why_not


@pytest.fixture(scope="session", autouse=True)
def hosts_can_be_made() -> None:
    """Skip this folder, loudly, where hosts cannot be made."""
    reason = why_not()
    if reason is not None:
        pytest.skip(f"LOUD SKIP: {reason}; nothing that crosses hosts is tested")


@pytest.fixture(scope="session")
def four_hosts(hosts_can_be_made: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """host1 to host4, healthy, for tests that leave them so."""
    with Cluster(4, tmp_path_factory.mktemp("hosts")) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def digits_64(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """data.yaml of digits of 64 px, for elastic jobs."""
    data = tmp_path_factory.mktemp("data") / "digits"
    make_digits(data, images=IMAGES, size=64, seed=2)
    return data / "data.yaml"


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder with a short name that all hosts see, and that every user may enter, unlike pytest's own."""
    with tempfile.TemporaryDirectory(prefix="hosts-") as made:
        Path(made).chmod(0o755)
        yield Path(made)
