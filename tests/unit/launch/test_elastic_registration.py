"""Who is ready and who is lost of an elastic job, as horovodrun counts it in our build of Horovod."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import pytest

pytest.importorskip("horovod", reason="LOUD SKIP: Horovod is not installed")
from horovod.runner.elastic.registration import WorkerStateRegistry


class Driver:
    """What the registry asks of horovodrun: which hosts are out, and what it tells it to do."""

    def __init__(self) -> None:
        self.out: set[str] = set()
        self.told: list[str] = []
        self.registry = WorkerStateRegistry(self, self)

    def finished(self) -> bool:
        return "stop" in self.told

    def is_blacklisted(self, host: str) -> bool:
        return host in self.out

    def blacklist(self, host: str) -> None:
        self.out.add(host)

    def resume(self) -> None:
        self.told.append("resume")
        self.registry.reset(1)

    def stop(self, error_message: str | None = None) -> None:
        self.told.append("stop")


@pytest.fixture
def driver() -> Iterator[Driver]:
    made = Driver()
    made.registry.reset(2)
    before = set(threading.enumerate())
    yield made
    made.told.append("stop")  # lets go of who waits
    for thread in set(threading.enumerate()) - before:
        thread.join(10)
        assert not thread.is_alive()


def said(driver: Driver, record: Callable[[str, int], int], host: str, until: Callable[[], bool]) -> None:
    """A worker's message, which waits for the other workers'."""
    threading.Thread(target=record, args=(host, 0), daemon=True).start()
    deadline = time.monotonic() + 10
    while not until():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def recorded(driver: Driver, state: str, host: str) -> Callable[[], bool]:
    return lambda: (host, 0) in driver.registry.get(state)


@pytest.mark.parametrize("first", ["FAILURE", "READY"])
def test_a_worker_counts_once_and_the_healthy_one_goes_on(driver: Driver, first: str) -> None:
    """The one of host2 is lost, or waits, and asks to be taken in again before host4 has said anything."""
    registry = driver.registry
    lost = first == "FAILURE"
    said(
        driver,
        registry.record_failure if lost else registry.record_ready,
        "host2",
        recorded(driver, first, "host2"),
    )
    again = threading.Thread(target=registry.record_ready, args=("host2", 0), daemon=True)
    again.start()
    again.join(0.5)  # as long as it would take to do harm
    assert driver.told == [] and again.is_alive()
    said(driver, registry.record_ready, "host4", lambda: driver.told != [])
    assert driver.told == ["resume"]
    assert driver.out == ({"host2"} if lost else set())
    again.join(10)
    assert not again.is_alive()
