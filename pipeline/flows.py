"""Compile the flows of the settings into steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from pipeline.errors import UsageError
from pipeline.settings import Flow
from pipeline.steps.enrich import JoinStep, Lookup
from pipeline.steps.filter import PatternError, Predicate, compile_pattern, fields, merge
from pipeline.steps.project import projection
from pipeline.steps.route import FlowSteps, RouteStep


def compile_flow(flow: Flow, lookups: Mapping[str, Lookup]) -> FlowSteps:
    """Compile a flow; raise UsageError that names the flow and the place in its pattern."""
    where = _predicate(flow, flow.where, "where")
    routes = [RouteStep(to.sink, _predicate(flow, to.where, f"to.{n}.where")) for n, to in enumerate(flow.to)]
    joins = [JoinStep(join.on, join.into, lookups[join.table]) for join in flow.join]
    return FlowSteps(flow.name, frozenset(flow.tables), where, joins, routes, _look(flow))


def _look(flow: Flow) -> Callable[[bytes], Any] | None:
    """Return what decodes all that the patterns of a flow look at."""
    looked_at: dict[str, Any] = {}
    for pattern in (flow.where, *(to.where for to in flow.to)):
        if pattern is not None:
            merge(looked_at, fields(pattern))
    return projection(looked_at) if looked_at else None


def _predicate(flow: Flow, pattern: Mapping[str, Any] | None, place: str) -> Predicate | None:
    if pattern is None:
        return None
    try:
        return compile_pattern(pattern, dynamodb=True)
    except PatternError as error:
        raise UsageError(f"flow {flow.name}, {place}: {error}", hint="headwater check") from error
