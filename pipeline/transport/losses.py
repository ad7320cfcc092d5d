"""What retention has taken before it was read: reported once, in the transaction that continues behind it."""

from __future__ import annotations

from collections.abc import Callable

from faust.types import TP

from pipeline.transport.participant import Participant, Slice
from pipeline.transport.starts import LostRecords


class Losses(Participant):
    """Follows the slices before all others: state that keeps the offset of a partition sees the one behind the gap.

    While a loss is not reported its partition is held, so nothing of it is in the slice that tells it.
    """

    def __init__(
        self, is_free: Callable[[TP], bool], tell: Callable[[LostRecords], None], over: Callable[[LostRecords], None]
    ) -> None:
        """`is_free`: nothing else holds a partition. `tell` writes a loss down, in the slice; `over` is called after it."""
        self._is_free, self._tell, self._over = is_free, tell, over
        self._waiting: dict[TP, LostRecords] = {}
        self._telling: list[LostRecords] = []

    def add(self, lost: LostRecords) -> None:
        """Take note of a loss. On the event loop, between slices."""
        self._waiting[lost.tp] = lost

    @property
    def waiting(self) -> list[LostRecords]:
        """Those that are not reported yet."""
        return list(self._waiting.values())

    def due(self) -> bool:
        """Say whether a loss can be reported now."""
        return any(self._is_free(tp) for tp in self._waiting)

    def finish(self, work: Slice) -> None:
        """Report what can be reported, and move the offset behind it."""
        self._telling = [lost for lost in self.waiting if self._is_free(lost.tp)]
        for lost in self._telling:
            self._tell(lost)
            work.offsets[lost.tp] = lost.end

    def committed(self, work: Slice) -> None:
        """Let the partitions continue."""
        for lost in self._telling:
            self._waiting.pop(lost.tp, None)
            self._over(lost)
        self._telling = []

    def aborted(self, work: Slice) -> None:
        """Tell it again."""
        self._telling = []

    def revoked(self, partitions: frozenset[TP]) -> None:
        """Leave it to the next owner: the committed offset is where it was."""
        for tp in partitions:
            self._waiting.pop(tp, None)
