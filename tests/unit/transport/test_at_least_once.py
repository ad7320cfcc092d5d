"""Without transactions: what a slice writes is delivered before its positions are written."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from pipeline.transport import Participant, Slice
from pipeline.transport.transaction import Transaction


class Notes(Participant):
    """Note the order of the calls, as a participant and as a producer."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def finish(self, work: Slice) -> None:
        self.calls.append("finish")

    def committed(self, work: Slice) -> None:
        self.calls.append("committed")

    def flush(self, timeout: float) -> int:
        self.calls.append("flush")
        return 0


def test_a_position_is_written_when_what_it_speaks_of_is_delivered(tmp_path: Path) -> None:
    """A crash between the two would lose changes otherwise: their position, or their IDs as seen, would be there alone."""
    transaction, notes = Transaction({}, tmp_path, "group", exactly_once=False), Notes()
    transaction._producer = cast("Any", notes)
    transaction.participants.append(notes)
    assert transaction.commit(Slice(cast("Any", notes)), b"membership")
    assert notes.calls == ["flush", "finish", "flush", "committed"]
