"""A participant that kills its own process at a chosen point of a slice, when the chaos asks it to.

The chaos writes the point's name into `<state directory>.point`; the worker takes the file away and dies there.
"""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

from pipeline.transport import Participant, Slice

POINTS = ("finish", "commit", "committed")
"""Before the commit; while it is under way; between the commit and the write to RocksDB."""


class Killer(Participant):
    """Joined before all state, so that `committed` comes before anything is written to RocksDB."""

    def __init__(self, state: Path) -> None:
        self._wish = state.with_name(f"{state.name}.point")

    def finish(self, work: Slice) -> None:
        """Die before the commit, or a moment later."""
        if self._wished("finish"):
            os.kill(os.getpid(), signal.SIGKILL)
        if self._wished("commit"):
            threading.Timer(0.004, os.kill, (os.getpid(), signal.SIGKILL)).start()

    def committed(self, work: Slice) -> None:
        """Die with the state behind Kafka."""
        if self._wished("committed"):
            os.kill(os.getpid(), signal.SIGKILL)

    def _wished(self, point: str) -> bool:
        if not self._wish.exists() or self._wish.read_text() != point:
            return False
        self._wish.unlink()
        return True
