"""Messages that tell one sink that an item has moved to another (`on_leave`), where one destination takes both.

The item is still in the destination then: to delete it there would be wrong, or right or wrong by chance, since two topics
have no order.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import cast

from confluent_kafka import Message

from pipeline.sinks.rows import Rows
from pipeline.steps.leave import MOVED_TO


class Moves:
    """Knows the sinks of a destination."""

    def __init__(self, sinks: Collection[str]) -> None:
        # An item that has left the only sink has left the destination.
        self._sinks = frozenset(sinks) if len(sinks) > 1 else frozenset[str]()

    def stays(self, record: Message) -> bool:
        """Say whether a deletion is of an item that has moved to another sink of the destination."""
        if not self._sinks:
            return False
        for name, value in cast("list[tuple[str, bytes | None]]", record.headers() or []):
            if name == MOVED_TO and value:
                return not self._sinks.isdisjoint(value.decode(errors="replace").split(","))
        return False

    def without(self, rows: Rows) -> Rows:
        """Return rows without those of items that stay."""
        if not self._sinks or all(kind.op != "d" for kind in set(rows.kinds)):
            return rows
        places = [
            place for place, kind in enumerate(rows.kinds) if not (kind.op == "d" and self.stays(rows.records[place]))
        ]
        return rows if len(places) == len(rows) else rows.take(places)
