"""Fixtures for all tests: the built-in data set in small, and the data beside the checkout.

A process that runs tests has a temporary folder of its own, and a test that leaves anything behind fails.
"""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from multiprocessing.util import Finalize
from pathlib import Path

import pytest
from hypothesis import settings

from horovod_yolo.data.digits import make_digits
from tests.helpers.leaks import Held, new_since
from tests.helpers.tiny_free import add_tiny_free
from tests.helpers.tiny_zoo import add_tiny

SHARED = Path(__file__).resolve().parents[2] / "shared"

settings.register_profile("untimed", deadline=None)  # timings are for benchmarks; a busy machine fails none
settings.load_profile("untimed")
OWN_FOLDER = pytest.StashKey[str]()


def pytest_configure(config: pytest.Config) -> None:
    """Make the temporary folder. Its name is short: the address of a socket in it has 107 bytes."""
    if config.getoption("numprocesses", None):
        return  # this process runs no tests, its workers do
    os.environ.setdefault(
        "PYTEST_DEBUG_TEMPROOT", tempfile.gettempdir()
    )  # tmp_path outlives the run, for people
    folder = tempfile.mkdtemp(prefix="t-")
    Path(folder).chmod(0o1777)  # as /tmp: hosts have other users
    config.stash[OWN_FOLDER] = os.environ["TMPDIR"] = tempfile.tempdir = folder


def pytest_unconfigure(config: pytest.Config) -> None:
    """Remove it when this process ends, after multiprocessing has removed its own folder, at -100."""
    folder = config.stash.get(OWN_FOLDER, None)
    if folder is None:
        return
    os.environ["TMPDIR"] = tempfile.tempdir = str(Path(folder).parent)
    Finalize(None, shutil.rmtree, args=(folder,), kwargs={"ignore_errors": True}, exitpriority=-200)


@pytest.fixture(scope="session", autouse=True)
def nothing_is_left_in_the_end() -> Iterator[None]:
    """For what fixtures of modules and of the session hold."""
    before = Held.now()
    yield
    if left := new_since(before):
        pytest.fail("left behind by a module's or the session's fixtures: " + "; ".join(left))


@pytest.fixture(scope="module")
def tiny() -> Iterator[None]:
    """The zoo has the tiny networks, too: for a module that asks for them by ``usefixtures``."""
    with pytest.MonkeyPatch.context() as patch:
        add_tiny(patch)
        add_tiny_free(patch)
        yield


@pytest.fixture(autouse=True)
def nothing_is_left_behind() -> Iterator[None]:
    """Fail a test after which there are threads, processes, variables, sockets or files more than before."""
    before = Held.now()
    yield
    if left := new_since(before):
        pytest.fail("left behind: " + "; ".join(left))


@pytest.fixture(scope="session", autouse=True)
def own_cache(nothing_is_left_in_the_end: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An empty cache for this run of the tests: neither the user's cache nor an earlier run counts."""
    patch = pytest.MonkeyPatch()
    folder = tmp_path_factory.mktemp("cache")
    patch.setenv("XDG_CACHE_HOME", str(folder))
    yield folder
    patch.undo()


@pytest.fixture
def hangups_are_heard() -> Iterator[None]:
    """Under nohup the whole run of the tests ignores SIGHUP, and so does what it starts."""
    before = signal.getsignal(signal.SIGHUP)
    if before is signal.SIG_IGN:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


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
