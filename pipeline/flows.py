"""Compile the flows of the settings into steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import msgspec

from models.change import Change
from pipeline import flow_settings as settings
from pipeline.errors import UsageError
from pipeline.steps.enrich import JoinStep, Lookup, compute, join
from pipeline.steps.event import Event, Step
from pipeline.steps.expression import ENRICHED, ExpressionError, compile_expression, compile_value, truth
from pipeline.steps.filter import PatternError, Predicate, compile_pattern, fields, merge
from pipeline.steps.flow import Flow, Output, Where
from pipeline.steps.project import projection
from pipeline.steps.route import Rule, router


class FlowError(UsageError):
    """A flow that cannot be compiled: which, where in it, and why."""

    def __init__(self, flow: str, place: str, error: Exception) -> None:
        super().__init__(f"flow {flow}, {place}: {error}", hint="headwater check")
        self.place: list[str | int] = [int(part) if part.isdigit() else part for part in place.split(".")]


@dataclass(frozen=True)
class Means:
    """What steps need from outside."""

    references: Mapping[str, Lookup] = field(default_factory=dict)
    """By table, what finds its current items."""


def onlooking(*flows: settings.Flow, references: Mapping[str, Lookup] | None = None) -> Means:
    """Return what lets flows be compiled where no worker is: their reference tables are empty, or those given."""
    empty: dict[str, Lookup] = {table: lambda _: None for flow in flows for table in flow.references}
    return Means(references={**empty, **(references or {})})


def compile_flow(flow: settings.Flow, means: Means) -> Flow:
    """Compile a flow; raise UsageError that names the flow and the place in its pattern or expression."""
    compiler = _Compiler(flow, means)
    looked_at: dict[str, Any] = {}
    for pattern in (flow.where, *(to.where for to in flow.to)):
        if isinstance(pattern, Mapping):
            merge(looked_at, {name: rest for name, rest in fields(pattern).items() if name != ENRICHED})
    return Flow(
        name=flow.name,
        tables=frozenset(flow.tables),
        where=compiler.where(),
        look=projection(looked_at) if looked_at else None,
        enrich=[
            (f"enrich.{n} {step.kind}", compiler.enrich(step, f"enrich.{n}")) for n, step in enumerate(flow.enrich)
        ],
        router=router(
            [Rule(_name(to.sink), compiler.rule(to.where, f"to.{n}.where")) for n, to in enumerate(flow.to)],
            every=flow.match == "all",
            otherwise=None if flow.otherwise is None else _name(flow.otherwise),
        ),
        shape=compiler.shape(),
        output=compiler.output(),
        through=None if flow.through is None else plain_output,
    )


class _AsGiven:
    """The envelope `dynamodb`."""

    tombstone_follows = False

    def __call__(self, events: Sequence[Event]) -> None:
        for event in events:
            event.output = event.value
            if event.added:
                event.output = event.value.rstrip()[:-1] + b',"enriched":' + msgspec.json.encode(event.added) + b"}"


plain_output = _AsGiven()


def _name(sink: str) -> Callable[[Change], str]:
    if not settings.is_template(sink):
        return lambda change: sink
    return lambda change: settings.fill(sink, table=change.table, op=change.op, source=change.source)


class _Compiler:
    """Compiles the parts of one flow."""

    def __init__(self, flow: settings.Flow, means: Means) -> None:
        self._flow, self._means = flow, means

    def _fail(self, place: str, error: Exception) -> UsageError:
        return FlowError(self._flow.name, place, error)

    def where(self) -> Where | None:
        where = self._flow.where
        if where is None:
            return None
        try:
            if isinstance(where, str):
                condition = compile_expression(where)
                return lambda value, change, looked: condition(value, change)
            match = compile_pattern(where, dynamodb=True)
        except (PatternError, ExpressionError) as error:
            raise self._fail("where", error) from error
        if ENRICHED in fields(where):
            raise self._fail("where", PatternError("enriched: nothing is added yet here, use it in `to`"))
        return lambda value, change, looked: match(looked)

    def rule(self, where: settings.Where | None, place: str) -> Callable[[Event], bool] | None:
        if where is None:
            return None
        try:
            if isinstance(where, str):
                return _expression_rule(where)
            match = compile_pattern(where, dynamodb=True)
        except (PatternError, ExpressionError) as error:
            raise self._fail(place, error) from error
        return _enriched_rule(match) if ENRICHED in fields(where) else lambda event: match(event.looked)

    def enrich(self, step: settings.EnrichSettings, place: str) -> Step:
        if isinstance(step, settings.Join):
            lookup = self._means.references[step.table]
            return join(JoinStep(step.table, step.on, step.into, lookup, step.missing, step.hold))
        if isinstance(step, settings.Compute):
            try:
                return compute(step.expression, step.into)
            except ExpressionError as error:
                raise self._fail(f"{place}.as", error) from error
        raise self._fail(place, ValueError(f"{step.kind} is not there yet"))

    def shape(self) -> Sequence[tuple[str, Step]]:
        return []

    def output(self) -> Callable[[str], Output]:
        return cache(lambda sink: plain_output)


def _expression_rule(text: str) -> Callable[[Event], bool]:
    evaluate = compile_value(text)
    return lambda event: truth(text, evaluate(event.value, event.change, event.added))


def _enriched_rule(match: Predicate) -> Callable[[Event], bool]:
    """Let a pattern see what was added, as it will stand in the change."""

    def rule(event: Event) -> bool:
        added = {name: msgspec.json.decode(value) for name, value in event.added.items()}
        return match({**(event.looked or {}), ENRICHED: added})

    return rule
