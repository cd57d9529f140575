"""Cameras and streams: the newest image only, back after a break, a clean end. Against a real RTSP server."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from horovod_yolo.assembly.predict import PredictOptions, predict
from horovod_yolo.core.errors import UserError
from horovod_yolo.prediction import capture, live
from horovod_yolo.prediction.live import LiveStream, newest_frames
from horovod_yolo.prediction.sources import Live
from horovod_yolo.process.stop import StopRequest
from tests.helpers.pictures import write_video
from tests.helpers.rtsp import RtspServer, require_rtsp_server
from tests.helpers.untrained import write_untrained
from tests.helpers.world import run_world


@pytest.fixture
def server() -> Iterator[RtspServer]:
    require_rtsp_server()
    server = RtspServer()
    server.start()
    yield server
    server.stop()


class Away:
    """Makes a server go away for some seconds."""

    def __init__(self, server: RtspServer, way: str, seconds: float) -> None:
        self._server, self._way = server, way
        leave, self._come_back = (
            (server.stop, server.start) if way == "gone" else (server.freeze, server.thaw)
        )
        leave()
        self._timer = threading.Timer(seconds, self._come_back)
        self._timer.start()

    def over(self) -> None:
        self._timer.join()


def frames_around_a_break(server: RtspServer, way: str, seconds: float) -> tuple[list[int], float]:
    """Numbers of all images, and the longest time without one."""
    news = threading.Event()
    stream = LiveStream(Live(server.address, server.address), 3, news, patience=30)
    numbers, gap, last, away = [], 0.0, time.monotonic(), None
    for frame in newest_frames([stream], news):
        assert frame.pixels.shape == (48, 64, 3) and frame.origin.source == 3 and frame.origin.live
        numbers.append(frame.origin.number)
        gap, last = max(gap, time.monotonic() - last), time.monotonic()
        if len(numbers) == 5:
            away = Away(server, way, seconds)
        if away is not None and gap >= seconds and len(numbers) >= 12:
            break
    stream.close()
    assert away is not None
    away.over()
    return numbers, gap


def test_a_stream_that_goes_away_comes_back(server: RtspServer, caplog: pytest.LogCaptureFixture) -> None:
    numbers, gap = frames_around_a_break(server, "gone", 1.0)
    assert numbers == sorted(set(numbers)) and gap >= 1
    assert "no image comes; it is tried again for 30 s" in caplog.text
    assert "is back after" in caplog.text


@pytest.mark.slow  # half a minute: python -m pytest -m slow tests/unit/prediction/test_live.py
@pytest.mark.parametrize("way", ["gone", "silent"])
def test_a_stream_that_stops_for_five_seconds_comes_back(
    server: RtspServer, way: str, caplog: pytest.LogCaptureFixture
) -> None:
    numbers, gap = frames_around_a_break(server, way, 5.0)
    assert numbers == sorted(set(numbers)) and 5 <= gap < 20
    assert "is back after" in caplog.text


def test_predict_writes_a_stream_down_until_it_ends(
    server: RtspServer,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """On two ranks, of which one has nothing to do; the server goes away for good."""
    weights = write_untrained(tmp_path / "best.pt")
    options = PredictOptions(
        weights=str(weights),
        source=(server.address.replace("://", "://me:secret@"),),
        reconnect=1.0,
        conf_thres=1e-6,
        device="cpu",
        save_txt=True,
        project=str(tmp_path),
    )

    def stop_when_some_are_written() -> None:
        deadline = time.monotonic() + 60
        while len([*(tmp_path / "exp" / "labels").glob("*.txt")]) < 5 and time.monotonic() < deadline:
            time.sleep(0.05)
        server.stop()

    stopper = threading.Thread(target=stop_when_some_are_written)
    stopper.start()
    counts = run_world(2, lambda comm: predict(options, comm, StopRequest()))
    stopper.join()
    assert counts[0] == counts[1] and counts[0].frames >= 5 and not counts[0].stopped
    (video,) = (tmp_path / "exp").glob("*.mp4")
    opened = cv2.VideoCapture(str(video))
    assert opened.get(cv2.CAP_PROP_FRAME_COUNT) == counts[0].frames
    opened.release()
    assert "ends here; it did not come back within 1 s" in caplog.text
    assert "secret" not in caplog.text + str(video)
    assert "WARN" not in capfd.readouterr().err


def test_a_wrong_path_of_a_server_is_one_line(server: RtspServer) -> None:
    """In a process of its own: how much FFmpeg writes is settled when a process opens its first video."""
    address = server.address + "x"
    code = (
        "import threading; from horovod_yolo.prediction.live import Live, LiveStream\n"
        f"try: LiveStream(Live({address!r}, 'x'), 0, threading.Event())\n"
        "except ValueError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("x: this stream cannot be opened. check the address\n", "")


def test_no_such_camera_is_one_line(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match="no such camera: 987"):
        LiveStream(Live(987, "camera 987"), 0, threading.Event())
    assert capfd.readouterr() == ("", "")


def endless(monkeypatch: pytest.MonkeyPatch, path: Path, frames: int, pause: float) -> None:
    """Let a video stand for a stream that sends an image every ``pause`` seconds."""
    write_video(path, frames)
    grab_images = capture.retrieve

    def slowly(opened: Any) -> Any:
        time.sleep(pause)
        return grab_images(opened)

    monkeypatch.setattr(live, "retrieve", slowly)


def test_a_slow_network_gets_the_newest_image_and_no_backlog(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    endless(monkeypatch, tmp_path / "clip.avi", 25, pause=0.01)
    news = threading.Event()
    stream = LiveStream(Live(str(tmp_path / "clip.avi"), "x"), 0, news, patience=0)
    seen = []
    for frame in newest_frames([stream], news):
        assert np.abs(frame.pixels.astype(int) - 10 * (frame.origin.number - 1)).max() <= 4
        seen.append(frame.origin.number)
        while not stream.ended:  # a network that takes as long as all the rest of the stream
            time.sleep(0.01)
    stream.close()
    assert seen[-1] == 25 and len(seen) <= 2


def test_several_streams_are_looked_at_by_turns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    endless(monkeypatch, tmp_path / "clip.avi", 10, pause=0.01)
    news = threading.Event()
    address = str(tmp_path / "clip.avi")
    streams = [LiveStream(Live(address, str(i)), i, news, every=3, patience=0) for i in range(3)]
    seen = [(frame.origin.source, frame.origin.number) for frame in newest_frames(streams, news)]
    for stream in streams:
        stream.close()
    assert {source for source, _ in seen} == {0, 1, 2}
    assert {number for _, number in seen} <= {1, 4, 7, 10}
    assert all((source, 10) in seen for source in range(3))


def test_a_request_to_stop_is_heard_while_a_stream_is_silent(tmp_path: Path) -> None:
    write_video(tmp_path / "clip.avi", 1)
    news = threading.Event()
    stream = LiveStream(Live(str(tmp_path / "clip.avi"), "x"), 0, news, patience=60)
    asked = threading.Event()
    timer = threading.Timer(0.2, asked.set)
    timer.start()
    start = time.monotonic()
    list(newest_frames([stream], news, asked.is_set))
    stream.close()
    timer.join()
    assert time.monotonic() - start < 5
