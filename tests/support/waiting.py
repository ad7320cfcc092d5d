"""Waiting for what a test expects; nothing else in the tests sleeps."""

from __future__ import annotations

import time
from collections.abc import Callable

DEADLINE = 90.0


def until(condition: Callable[[], bool], what: str, seconds: float = DEADLINE) -> None:
    """Wait for a condition; fail when it does not come true in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {seconds:.0f} s"
        time.sleep(0.05)  # between two looks; nothing depends on it
