"""A participant that kills a process at a chosen point of a slice, when the chaos asks it to: its own, or the broker's.

The chaos writes the point into `<state directory>.point`; the worker takes the file away and kills there.
"""

from __future__ import annotations

import os
import signal
import threading
from contextlib import suppress
from pathlib import Path

from pipeline.transport import Participant, Slice

POINTS = ("finish", "commit", "committed")
"""Before the commit; while it is under way; between the commit and the write to RocksDB."""
UNDER_WAY = 0.004
"""Seconds from the last record of a slice until its commit is likely to be under way."""


def ask(state: Path, point: str, victim: int = 0) -> None:
    """Ask the worker with this state directory to kill a process at a point; 0: itself."""
    _wish(state).write_text(f"{point} {victim}")


def _wish(state: Path) -> Path:
    return state.with_name(f"{state.name}.point")


class Killer(Participant):
    """Joined before all state, so that `committed` comes before anything is written to RocksDB."""

    def __init__(self, state: Path) -> None:
        self._wish = _wish(state)

    def finish(self, work: Slice) -> None:
        """Kill before the commit, or a moment later."""
        if victim := self._wished("finish"):
            _kill(victim)
        if victim := self._wished("commit"):
            threading.Timer(UNDER_WAY, _kill, (victim,)).start()

    def committed(self, work: Slice) -> None:
        """Kill with the state behind Kafka."""
        if victim := self._wished("committed"):
            _kill(victim)

    def _wished(self, point: str) -> int:
        """Return the process to kill at this point, 0 for none."""
        if not self._wish.exists():
            return 0
        wished, _, victim = self._wish.read_text().partition(" ")
        if wished != point or not victim:
            return 0
        self._wish.unlink()
        return int(victim) or os.getpid()


def _kill(victim: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(victim, signal.SIGKILL)
