"""A participant that sends a signal at a chosen point of a slice, when it is asked to: to its own process, or the broker's.

Who asks writes the point into `<state directory>.point`; the worker takes the file away and sends the signal there.
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


def ask(state: Path, point: str, victim: int = 0, number: signal.Signals = signal.SIGKILL) -> None:
    """Ask the worker with this state directory to send a signal to a process at a point; 0: to itself."""
    _wish(state).write_text(f"{point} {victim} {number.value}\n")


def _wish(state: Path) -> Path:
    return state.with_name(f"{state.name}.point")


class Killer(Participant):
    """Joined before all state, so that `committed` comes before anything is written to RocksDB."""

    def __init__(self, state: Path) -> None:
        self._wish = _wish(state)

    def finish(self, work: Slice) -> None:
        """Send it before the commit, or a moment later."""
        self._send("finish")
        if wish := self._wished("commit"):
            threading.Timer(UNDER_WAY, _kill, wish).start()

    def committed(self, work: Slice) -> None:
        """Send it with the state behind Kafka."""
        self._send("committed")

    def _send(self, point: str) -> None:
        if wish := self._wished(point):
            _kill(*wish)

    def _wished(self, point: str) -> tuple[int, int] | None:
        """Return process and signal that are wished for at this point, and forget the wish."""
        if not self._wish.exists():
            return None
        text = self._wish.read_text()
        if not text.endswith("\n") or not text.startswith(f"{point} "):
            return None
        self._wish.unlink()
        _, victim, number = text.split()
        return int(victim) or os.getpid(), int(number)


def _kill(victim: int, number: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(victim, number)
