"""Decide what becomes of a change in a flow: which sink topic, with which value and headers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from models.change import Change
from pipeline.steps.enrich import JoinStep, enrich

Where = Callable[[bytes, Change, Any], bool]
"""Takes a change's bytes, the change, and what `FlowSteps.look` has decoded of it; says whether it matches."""


class RouteStep(NamedTuple):
    """A sink and the predicate that leads there; None: everything does."""

    sink: str
    where: Where | None


class FlowSteps(NamedTuple):
    """A flow, compiled."""

    name: str
    tables: frozenset[str]
    where: Where | None
    joins: Sequence[JoinStep]
    routes: Sequence[RouteStep]
    look: Callable[[bytes], Any] | None
    """Decodes what the patterns look at, and nothing else; None: they look at nothing."""


class Routed(NamedTuple):
    """One message for one sink topic."""

    sink: str
    value: bytes


def run_flow(flow: FlowSteps, value: bytes, change: Change) -> Iterator[Routed]:
    """Filter, enrich and route one change: no message, or one, for the first route that matches."""
    if flow.tables and change.table not in flow.tables:
        return
    looked = {} if flow.look is None else flow.look(value)
    if flow.where is not None and not flow.where(value, change, looked):
        return
    for route in flow.routes:
        if route.where is None or route.where(value, change, looked):
            yield Routed(route.sink, enrich(value, change, flow.joins))
            return


def headers(change: Change) -> list[tuple[str, bytes]]:
    """Return the headers of a message on a sink topic."""
    return [
        ("event_id", change.event_id.encode()),
        ("table", change.table.encode()),
        ("op", change.op.encode()),
        ("source", change.source.encode()),
        ("ts_us", str(change.ts_us).encode()),
        ("sequence", change.body.sequence.encode()),
    ]
