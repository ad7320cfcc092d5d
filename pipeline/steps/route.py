"""Decide to which sinks a change goes, and with which headers. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple

from models import change as changes
from models.change import Change
from pipeline.steps.event import Event, Headers

REPLAY = "replay"
"""Header of what a replay has written to a live topic: its ID. It comes after those that every message has."""
OPS = {name: op.encode() for name, op in changes.OPS.items()}
Router = Callable[[Event], tuple[str, ...]]
"""Returns the names of the sinks; none: the change is left out."""


class Rule(NamedTuple):
    """A sink and the condition that leads there; None: everything does."""

    sink: Callable[[Change], str]
    where: Callable[[Event], bool] | None
    holds: bool = True
    """Whether an item is in its sink: of one that is named by the kind of the change (`{op}`) nobody can say that."""


def router(rules: Sequence[Rule], *, every: bool, otherwise: Callable[[Change], str] | None) -> Router:
    """Return what finds the sinks of an event: of the first rule that holds, or of each that does (`every`)."""
    if rules and rules[0].where is None and not every:  # the common case: one sink for all
        only = rules[0].sink
        return lambda event: (only(event.change),)

    def route(event: Event) -> tuple[str, ...]:
        found: list[str] = []
        for sink, where, _ in rules:
            if where is None or where(event):
                found.append(sink(event.change))
                if not every:
                    break
        if not found and otherwise is not None:
            return (otherwise(event.change),)
        # One that two rules name gets a change once.
        return tuple(dict.fromkeys(found))

    return route


def headers(change: Change) -> Headers:
    """Return the headers of a message on a sink topic."""
    table, op, source = _named(
        change.event_name, change.table_name, change.arn, change.event_source, change.record_format
    )
    return [
        ("event_id", change.event_id.encode()),
        table,
        op,
        source,
        ("ts_us", b"%d" % change.ts_us),
        ("sequence", change.body.sequence.encode()),
    ]


@lru_cache(maxsize=4096)
def _named(*facts: str) -> tuple[tuple[str, bytes], ...]:
    """Return the headers that many changes share."""
    event_name, table_name, arn, event_source, record_format = facts
    change = Change("", event_name, _NO_BODY, event_source, arn, table_name, record_format)
    return ("table", change.table.encode()), ("op", OPS[event_name]), ("source", change.source.encode())


_NO_BODY = changes.Body(changes.NONE)
