"""The step of the chaos' flow: it sleeps at a marked change, and at all changes while a file says so."""

from __future__ import annotations

import os
import time
from pathlib import Path

from headwater.lab.chaos_load import sleep_of
from pipeline.steps.python import ChangeView, enrich

NAME = "chaos"
SLOW_FILE = "CHAOS_SLOW_FILE"
"""The variable with the path of the file: it holds the seconds that each change takes."""


@enrich(NAME, batch=True)
def sleep(changes: list[ChangeView]) -> list[None]:
    """Add nothing, slowly."""
    slow = _slow()
    for change in changes:
        seconds = slow + sleep_of(change.event_id)
        if seconds:
            time.sleep(seconds)
    return [None] * len(changes)


def _slow() -> float:
    path = Path(os.environ.get(SLOW_FILE, ""))
    try:
        return float(path.read_text())
    except (OSError, ValueError):  # as always
        return 0.0
