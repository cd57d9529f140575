"""Cameras and streams: always the newest image, however long the network takes, and back after a break."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence

from horovod_yolo.core.types import Image
from horovod_yolo.prediction.capture import frames_per_second, open_capture, quiet, require_open, retrieve
from horovod_yolo.prediction.predict import Frame
from horovod_yolo.prediction.result import Origin
from horovod_yolo.prediction.sources import Live

log = logging.getLogger(__name__)
SECONDS_TO_COME_BACK = 30.0
SECONDS_BETWEEN_TRIES = 0.5
SECONDS_BETWEEN_LOOKS = 0.5  # whether somebody asked to stop


class LiveStream:
    """A camera or a stream whose images a thread takes as they come; only the newest is held.

    Where images stop coming, it is opened again and again for ``patience`` seconds. Then it ends.

    Args:
        live: what to open.
        source: its place among the sources.
        news: is set when there is a new image, and at the end.
        every: of so many images the first counts.
        patience: seconds.

    Raises:
        UserError: it cannot be opened.
    """

    def __init__(
        self,
        live: Live,
        source: int,
        news: threading.Event,
        *,
        every: int = 1,
        patience: float = SECONDS_TO_COME_BACK,
    ) -> None:
        self.live = live
        self.ended = False
        self._source, self._news, self._every, self._patience = source, news, every, patience
        self._lock = threading.Lock()
        self._newest: Frame | None = None
        self._closing = threading.Event()
        self._grabbed = 0
        self._capture = open_capture(live.address)
        require_open(self._capture, live)
        self._thread = threading.Thread(target=self._run, name=f"frames of {live.name}", daemon=True)
        self._thread.start()

    def take(self) -> Frame | None:
        """The newest image, if there is one that was not taken yet."""
        with self._lock:
            frame, self._newest = self._newest, None
        return frame

    def close(self) -> None:
        """End the thread and let the camera go; may take as long as a stream that is silent is waited for."""
        self._closing.set()
        self._thread.join()

    def _run(self) -> None:
        try:
            with quiet:
                self._grab_all()
        finally:
            self._capture.release()
            self.ended = True
            self._news.set()

    def _grab_all(self) -> None:
        while not self._closing.is_set():
            if self._capture.grab():
                self._grabbed += 1
                if (self._grabbed - 1) % self._every == 0:
                    self._hold(retrieve(self._capture))
            elif not self._come_back():
                return

    def _hold(self, image: Image | None) -> None:
        if image is None:
            return
        fps = frames_per_second(self._capture) / self._every
        origin = Origin(self.live.name, self._source, self._grabbed, fps, live=True)
        with self._lock:
            self._newest = Frame(image, origin)
        self._news.set()

    def _come_back(self) -> bool:
        """Open it again; False where it does not come back, or nobody waits any more."""
        name, lost = self.live.name, time.monotonic()
        log.warning("%s: no image comes; it is tried again for %g s", name, self._patience)
        while time.monotonic() - lost < self._patience:
            self._capture.release()
            if self._closing.wait(SECONDS_BETWEEN_TRIES):
                return False
            self._capture = open_capture(self.live.address)
            if self._capture.isOpened() and self._capture.grab():
                self._grabbed += 1
                log.warning("%s: is back after %.1f s", name, time.monotonic() - lost)
                return True
        log.warning("%s: ends here; it did not come back within %g s", name, self._patience)
        return False


def newest_frames(
    streams: Sequence[LiveStream], news: threading.Event, stopped: Callable[[], bool] = lambda: False
) -> Iterator[Frame]:
    """Images of all streams by turns, each the newest of its stream, until all have ended.

    Args:
        streams: that share ``news``.
        news: see `LiveStream`.
        stopped: whether to end now.
    """
    over = False
    while not (over or stopped()):
        news.wait(SECONDS_BETWEEN_LOOKS)
        news.clear()
        over = all(stream.ended for stream in streams)  # before the look: an ended stream's last image counts
        for stream in streams:
            if (frame := stream.take()) is not None:
                yield frame
