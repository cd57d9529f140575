"""Waiting for what is only known by asking, without using the core that the others need for it."""

from __future__ import annotations

import time

MOST_SECONDS = 5e-3  # between two polls
POLLS_A_WAIT = 20  # a poll comes at most so late: the wait so far, divided by this


def pause(waited_s: float, shortest_s: float) -> None:
    """Sleep until the next poll: the longer the wait has been, the less a late one adds to it."""
    time.sleep(min(max(waited_s / POLLS_A_WAIT, shortest_s), MOST_SECONDS))
