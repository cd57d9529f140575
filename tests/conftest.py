"""Fixtures for all tests: the built-in data set in small, and the data beside the checkout."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from horovod_yolo.data.digits import make_digits

SHARED = Path(__file__).resolve().parents[2] / "shared"

settings.register_profile("untimed", deadline=None)  # timings are for benchmarks; a busy machine fails none
settings.load_profile("untimed")


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An empty cache for this run of the tests: neither the user's cache nor an earlier run counts."""
    patch = pytest.MonkeyPatch()
    folder = tmp_path_factory.mktemp("cache")
    patch.setenv("XDG_CACHE_HOME", str(folder))
    yield folder
    patch.undo()


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``data.yaml`` of 28 + 7 tiny images of the built-in set, two of the training images without boxes."""
    folder = tmp_path_factory.mktemp("data") / "digits"
    make_digits(folder, images=35, size=128, seed=1)
    for label in sorted((folder / "labels" / "train").glob("*.txt"))[:2]:
        label.write_text("")
    return folder / "data.yaml"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The data sets beside the checkout."""
    folder = SHARED / "data"
    if not folder.is_dir():
        pytest.skip(f"LOUD SKIP: {folder} is absent; tests on its real data sets do not run")
    return folder
