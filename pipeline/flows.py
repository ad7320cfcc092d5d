"""Compile the flows of the settings into steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from pipeline.errors import UsageError
from pipeline.settings import Flow
from pipeline.steps.enrich import JoinStep, Lookup
from pipeline.steps.expression import ExpressionError, compile_expression
from pipeline.steps.filter import PatternError, compile_pattern, fields, merge
from pipeline.steps.project import projection
from pipeline.steps.route import FlowSteps, RouteStep, Where


def compile_flow(flow: Flow, lookups: Mapping[str, Lookup]) -> FlowSteps:
    """Compile a flow; raise UsageError that names the flow and the place in its pattern or expression."""
    where = _predicate(flow, flow.where, "where")
    routes = [RouteStep(to.sink, _predicate(flow, to.where, f"to.{n}.where")) for n, to in enumerate(flow.to)]
    joins = [JoinStep(join.on, join.into, lookups[join.table]) for join in flow.join]
    return FlowSteps(flow.name, frozenset(flow.tables), where, joins, routes, _look(flow))


def _look(flow: Flow) -> Callable[[bytes], Any] | None:
    """Return what decodes all that the patterns of a flow look at."""
    looked_at: dict[str, Any] = {}
    for pattern in (flow.where, *(to.where for to in flow.to)):
        if isinstance(pattern, Mapping):
            merge(looked_at, fields(pattern))
    return projection(looked_at) if looked_at else None


def _predicate(flow: Flow, where: Mapping[str, Any] | str | None, place: str) -> Where | None:
    if where is None:
        return None
    try:
        if isinstance(where, str):
            condition = compile_expression(where)
            return lambda value, change, looked: condition(value, change)
        match = compile_pattern(where, dynamodb=True)
    except (PatternError, ExpressionError) as error:
        raise UsageError(f"flow {flow.name}, {place}: {error}", hint="headwater check") from error
    return lambda value, change, looked: match(looked)
