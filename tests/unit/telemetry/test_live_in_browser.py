"""The live page in a real browser: its script under its policy, readable by all, on a desk and a phone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from horovod_yolo.core.address import Address
from horovod_yolo.telemetry.dashboard import Dashboard
from horovod_yolo.telemetry.live import LiveRun
from horovod_yolo.training.events import RankTime
from tests.helpers import browser
from tests.unit.report.test_in_browser import LOOKS

from .test_callbacks import epoch_report
from .test_dashboard import FACTS, start, step

EVIL = "<img src=x onerror=alert(1)>"


@pytest.fixture
def page(tmp_path: Path) -> Iterator[str]:
    """Of a run of eight ranks whose names are as bad as they may be."""
    if reason := browser.why_not():
        pytest.skip(f"LOUD SKIP: {reason}; pages are not looked at")
    facts = {"run": EVIL, "model": "long" * 40, "hosts": [EVIL, *(f"host-{k}" * 4 for k in range(7))]}
    run = LiveRun(tmp_path, {**FACTS, **facts}, lambda: 12.5)
    server = Dashboard(Address("127.0.0.1", 0), run)
    run.on_start(start())
    for number in range(1, 6):
        run.on_step(step(number, loss=1 / number, ranks=(RankTime(2, 1.0, 0.3, 0.2),) * 8))
    run.on_epoch(epoch_report(0))
    yield server.address.url
    server.close()


@pytest.mark.parametrize(("width", "dark"), LOOKS)
def test_the_live_page_is_fit_to_be_read(page: str, tmp_path: Path, width: int, dark: bool) -> None:
    found = browser.look_at(page, tmp_path, width=width, dark=dark)
    assert found == {"wide": 0, "broken": 0, "violations": []}


def test_its_script_runs_under_its_policy_and_shows_text_as_text(page: str, tmp_path: Path) -> None:
    shown = browser.shown(page, tmp_path, width=1280, dark=False, milliseconds=4000)
    assert "training: epoch 2 of 9, batch 0 of 10" in shown and "box loss: last 0.2" in shown
    assert "<td>host-0host-0host-0host-0</td><td>2</td><td>50%</td><td>30%</td><td>20%</td>" in shown
    assert shown.count("<img") == 0 and "&lt;img src=x" in shown
