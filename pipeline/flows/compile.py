"""Compile the flows of the settings into steps."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, lru_cache, partial
from operator import attrgetter
from typing import TYPE_CHECKING, Any

import msgspec

from models.change import Change
from pipeline.errors import RejectedError, UsageError
from pipeline.flows.given_items import by_key, finder, own_key_finder
from pipeline.flows.leaving import compile_leaving, patterns_look_at
from pipeline.packages import missing
from pipeline.services.keys import mask_key
from pipeline.services.lookups import canned, lookup
from pipeline.settings.enrich import (
    PARTITIONED,
    TOPIC,
    ComputeSettings,
    Condition,
    EnrichSettings,
    JoinSettings,
    LookupSettings,
    SqlSettings,
)
from pipeline.settings.flows import FlowSettings, fill, holds_items, is_template
from pipeline.settings.formats import EnvelopeSettings
from pipeline.settings.load import line_of_setting
from pipeline.settings.root import Settings
from pipeline.steps.enrich import JoinStep, Lookup, compute, join, reference, text_of_key
from pipeline.steps.envelope import Encoder, compile_envelope
from pipeline.steps.event import Event, Step
from pipeline.steps.expression import ENRICHED, ExpressionError, compile_expression, compile_value, truth
from pipeline.steps.filter import PatternError, Predicate, compile_pattern, fields
from pipeline.steps.flow import Flow, Where, WriteStep
from pipeline.steps.formats.connect import compile_key_schemas, compile_schemas
from pipeline.steps.mask import compile_masks
from pipeline.steps.project import projection
from pipeline.steps.python import Function, call, load_functions
from pipeline.steps.route import Rule, router
from pipeline.steps.secrecy import KEY_BYTES, MaskKey
from pipeline.steps.shape import drop, rename_attributes, select

if TYPE_CHECKING:  # of extras
    from pipeline.steps.formats.registered import Registry
    from pipeline.steps.sql import ReferenceRows


class FlowError(UsageError):
    """A flow that cannot run: which, where in it and in the settings file, and why."""

    def __init__(self, flow: FlowSettings, place: str, error: Exception) -> None:
        at = line_of_setting(flow, parts_of(place))
        reason = error.message if isinstance(error, UsageError) else str(error)
        hint = (error.hint if isinstance(error, UsageError) else "") or PAGES.get(place.rpartition(".")[2], PAGE)
        before, said = f"{at}: " if at else "", f"{place}: {reason.removeprefix(f'{place}: ')}"
        super().__init__(f"{before}flow {flow.name}, {said}", hint=hint)
        self.detail = f"{before}{said}"
        """The same, where the flow is named already."""


def parts_of(place: str) -> list[str | int]:
    """Return the names and numbers of a place in a flow: `enrich.0.on`."""
    return [
        int(part) if part.isdigit() else part for part in place.split(".", 1 if place.startswith("rename.") else -1)
    ]


PAGE = "docs/how-to/write-a-flow.md"
PAGES = {
    "where": "docs/how-to/filter-changes.md",
    "as": "docs/how-to/compute-attributes.md",
    "query": "docs/how-to/enrich-by-sql.md",
    "name": "docs/how-to/enrich-in-python.md",
    "format": "docs/how-to/use-a-schema-registry.md",
    "key_format": "docs/how-to/use-a-schema-registry.md",
}
"""What to read about a setting, by its name."""


@dataclass(frozen=True)
class CompileContext:
    """What steps need from outside."""

    references: Mapping[str, Lookup] = field(default_factory=dict)
    """By reference (see `JoinSettings`), what finds its current items."""
    key_schema: Callable[[str], str] = field(default=lambda table: "")
    """Returns the key attributes of a partitioned table; '': nobody knows them yet."""
    rows: Mapping[str, ReferenceRows] = field(default_factory=dict)
    """By table, all its current items."""
    functions: Mapping[str, Function] = field(default_factory=dict)
    """What users have declared by `@enrich`."""
    mask_key: Callable[[str], MaskKey] = field(default=mask_key)
    """Returns the key of a URI."""
    lookup: Callable[[LookupSettings], Step] = field(default=lambda step: lookup(step, os.environ))
    """Returns the step of a lookup."""
    topic: Callable[[str], str] = field(default=lambda sink: sink)
    """Returns the topic of a sink."""
    registry: Registry | None = None
    """The Schema Registry; None: there is none."""
    lacks: Callable[[EnrichSettings], str] = field(default=lambda step: "")
    """Says what a step is not given here, though a worker would ask for it; '' when nothing."""


def schema_registry(settings: Settings) -> Registry | None:
    """Return the registry of the settings, None when there is none; raise UsageError when its packages are not here."""
    if settings.schema_registry.url is None:
        return None
    try:
        from pipeline.services.registry import SchemaRegistry  # noqa: PLC0415 - of the extra `registry`
    except ModuleNotFoundError as error:
        raise (missing.explained(error) or error) from error
    return SchemaRegistry(settings.schema_registry)


class FixedRows:
    """A reference table that does not change."""

    def __init__(self, items: Mapping[bytes, bytes]) -> None:
        self._items = items

    def version(self) -> object:
        """Return always the same."""
        return 0

    def rows(self) -> Sequence[tuple[bytes, bytes]]:
        """Return keys and items."""
        return list(self._items.items())


class NewRegistry:
    """A Schema Registry of its own, for flows that are only looked at."""

    def __init__(self) -> None:
        self._schemas: dict[str, str] = {}

    def latest(self, subject: str) -> str | None:
        """Return the newest schema of a subject."""
        return self._schemas.get(subject)

    def register(self, subject: str, schema: str, kind: str) -> int:
        """Register a schema."""
        self._schemas[subject] = schema
        return 1


STAND_IN = MaskKey(bytes(KEY_BYTES))
"""The key of flows that are only looked at: what it hashes is another than in a worker."""


def onlooking(
    flows: Iterable[FlowSettings],
    modules: Sequence[str] = (),
    references: Mapping[str, Sequence[Any]] | None = None,
    answers: Mapping[str, Any] | None = None,
) -> CompileContext:
    """Return what lets flows be compiled and run where no worker is.

    Reference tables hold the rows given (see `given_items`), and lookups answer what is given for their `into`, else null; no
    service is asked, no key is read, no schema registered.
    """
    given, known, flows = references or {}, answers or {}, tuple(flows)
    tables = {table for flow in flows for table in flow.references} | set(given)
    partitioned = {table for flow in flows for table in flow.partitioned}

    def lacks(step: EnrichSettings) -> str:
        if isinstance(step, LookupSettings):
            return "" if step.into in known else "not asked here: null"
        if isinstance(step, JoinSettings):
            wanted: Sequence[str] = (step.table or step.reference,)
        else:
            wanted = step.tables if isinstance(step, SqlSettings) else ()
        missing = ", ".join(table for table in wanted if table not in given)
        return f"no items of {missing} are given here; give them with --reference" if missing else ""

    return CompileContext(
        references={
            **{table: finder(table, given.get(table, ())) for table in tables},
            **{f"{PARTITIONED}{table}": own_key_finder(given.get(table, ())) for table in partitioned},
        },
        rows={table: FixedRows(by_key(table, given.get(table, ()))) for table in tables},
        functions=load_functions(modules),
        mask_key=lambda uri: STAND_IN,
        lookup=lambda step: canned(step, known.get(step.into)),
        registry=NewRegistry(),
        lacks=lacks,
    )


def compile_flow(flow: FlowSettings, means: CompileContext) -> Flow:
    """Compile a flow; raise UsageError that names the flow and the place in its pattern or expression."""
    compiler = _Compiler(flow, means)
    looked_at = patterns_look_at(flow)
    where = compiler.where()
    first = _first(flow.where) if isinstance(flow.where, Mapping) else None
    rules = [
        Rule(_name(to.sink, means.topic), compiler.rule(to.where, f"to.{n}.where"), holds_items(to.sink))
        for n, to in enumerate(flow.to)
    ]
    otherwise = (
        None if flow.otherwise is None else Rule(_name(flow.otherwise, means.topic), None, holds_items(flow.otherwise))
    )
    route = router(rules, every=flow.match == "all", otherwise=None if otherwise is None else otherwise.sink)
    return Flow(
        name=flow.name,
        tables=frozenset(flow.tables),
        where=where,
        first=first,
        look=projection(looked_at) if looked_at else None,
        enrich=[
            (f"enrich.{n} {step.kind}", compiler.enrich(step, f"enrich.{n}")) for n, step in enumerate(flow.enrich)
        ],
        router=route,
        shape=compiler.shape(),
        output=compiler.output(),
        through=None if flow.through is None else compile_envelope(EnvelopeSettings()),
        leaving=compile_leaving(flow, where, first, rules, otherwise, route),
    )


LEGAL = re.compile(r"[A-Za-z0-9._-]+").fullmatch
LONGEST_NAME = 249
"""Characters of a topic's name at most."""
HELD = {"eventName": "event_name", "eventSource": "event_source", "eventSourceARN": "arn", "tableName": "table_name"}
"""Fields of a record that a change holds: their names in it."""
UNSAID = {"", "aws:dynamodb"}
"""What is there when the record lacks the field; then only its bytes can tell."""


def _first(where: Mapping[str, Any]) -> Callable[[Change], bool] | None:
    """Return what says of some changes that a pattern does not match them; None: it asks for no field that a change holds."""
    tests = [(attrgetter(HELD[name]), _held(name, rest)) for name, rest in where.items() if name in HELD]

    def may_match(change: Change) -> bool:
        for value_of, may_be in tests:  # noqa: SIM110 - a generator would cost half of what is saved
            if not may_be(value_of(change)):
                return False
        return True

    return may_match if tests else None


def _held(name: str, rest: Any) -> Callable[[str], bool]:
    match = compile_pattern({name: rest}, dynamodb=True)
    # There are few values, of many changes.
    return lru_cache(maxsize=1024)(lambda value: value in UNSAID or match({name: value}))


def _name(sink: str, topic: Callable[[str], str]) -> Callable[[Change], str]:
    """Return what names the sink of a change; it raises RejectedError where a template makes no name that Kafka takes."""
    if not is_template(sink):
        return lambda change: sink

    @lru_cache(maxsize=4096)
    def filled(table: str, op: str, source: str) -> str:
        name = fill(sink, table=table, op=op, source=source)
        if not LEGAL(name) or len(topic(name)) > LONGEST_NAME:
            raise RejectedError(
                f"the sink {sink!r} becomes {name[:300]!r}: the name of a topic has letters, digits, . _ - and at most "
                f"{LONGEST_NAME} characters",
                hint="route the table to a sink of another name, or leave it out: docs/how-to/route-changes.md",
            )
        return name

    return lambda change: filled(change.table, change.op, change.source)


def re_emits(step: EnrichSettings) -> bool:
    """Say whether a step has changes sent again."""
    return isinstance(step, JoinSettings) and step.re_emits


class _Compiler:
    """Compiles the parts of one flow."""

    def __init__(self, flow: FlowSettings, means: CompileContext) -> None:
        self._flow, self._means = flow, means

    def _fail(self, place: str, error: Exception) -> UsageError:
        return FlowError(self._flow, place, error)

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

    def rule(self, where: Condition | None, place: str) -> Callable[[Event], bool] | None:
        if where is None:
            return None
        try:
            if isinstance(where, str):
                return _expression_rule(where)
            match = compile_pattern(where, dynamodb=True)
        except (PatternError, ExpressionError) as error:
            raise self._fail(place, error) from error
        return _enriched_rule(match) if ENRICHED in fields(where) else lambda event: match(event.looked)

    def enrich(self, step: EnrichSettings, place: str) -> Step:
        if isinstance(step, JoinSettings):
            lookup = self._means.references[step.reference]
            key_of = reference if step.topic is None else text_of_key
            return join(
                JoinStep(
                    step.reference,
                    step.on,
                    step.into,
                    lookup,
                    step.missing,
                    step.hold,
                    step.re_emits,
                    key_of=key_of,
                    key_schema=partial(self._means.key_schema, step.table or ""),
                )
            )
        if isinstance(step, ComputeSettings):
            try:
                return compute(step.expression, step.into)
            except ExpressionError as error:
                raise self._fail(f"{place}.as", error) from error
        if isinstance(step, SqlSettings):
            return self._sql(step, place)
        if isinstance(step, LookupSettings):
            return self._means.lookup(step)
        if (function := self._means.functions.get(step.name)) is None:
            known = ", ".join(sorted(self._means.functions)) or "none"
            raise self._fail(
                f"{place}.name", ValueError(f"there is no function {step.name!r} in `modules`, only {known}")
            )
        return call(function)

    def _sql(self, step: SqlSettings, place: str) -> Step:
        try:
            from pipeline.steps.sql import QueryError, compile_query  # noqa: PLC0415 - of the extra `sql`
        except ModuleNotFoundError as error:
            raise self._fail(place, missing.explained(error) or error) from error
        try:
            rows = {name: self._means.rows[name] for name in step.tables}
            topics = {name.removeprefix(TOPIC): rows.pop(name) for name in step.topics}
            return compile_query(step.query, rows, topics)
        except QueryError as error:
            raise self._fail(f"{place}.query", error) from error

    def shape(self) -> Sequence[tuple[str, Step]]:
        flow = self._flow
        steps: list[tuple[str, Step]] = []
        if flow.mask and flow.mask_key is not None:
            # First, under the names that they have in DynamoDB: no other step can move an attribute out of reach.
            steps.append(("mask", compile_masks(flow.mask, self._means.mask_key(flow.mask_key))))
        if flow.select:
            steps.append(("select", select(flow.select)))
        if flow.drop:
            steps.append(("drop", drop(flow.drop)))
        if flow.rename:
            steps.append(("rename", rename_attributes(flow.rename)))
        return steps

    def output(self) -> Callable[[str], WriteStep]:
        flow, means = self._flow, self._means
        if not flow.format.has_schema and not flow.key_format.is_struct:
            encoder = compile_envelope(flow.envelope)
            return lambda sink: encoder
        value, key = self._values(), self._keys()
        return cache(lambda sink: replace(value(means.topic(sink)), keys=key(means.topic(sink))))

    def _values(self) -> Callable[[str], Encoder]:
        """Return what gives the last step of a topic, but for its keys."""
        flow = self._flow
        if flow.format.schemas:
            return lambda topic: compile_schemas(flow.envelope, flow.format, topic)
        if not flow.format.is_registered:
            return lambda topic: compile_envelope(flow.envelope)
        compile_format, _, registry = self._registered("format", flow.format.kind)
        return lambda topic: compile_format(flow.envelope, flow.format, topic, registry)

    def _keys(self) -> Callable[[str], Step | None]:
        """Return what gives the step that encodes the keys of a topic."""
        flow = self._flow
        if not flow.key_format.is_struct:
            return lambda topic: None
        if flow.key_format.schemas:
            return lambda topic: compile_key_schemas(flow.envelope, topic)
        _, compile_keys, registry = self._registered("key_format", flow.key_format.kind)
        return lambda topic: compile_keys(flow.envelope, flow.key_format, topic, registry)

    def _registered(self, place: str, kind: str) -> tuple[Callable[..., Encoder], Callable[..., Step], Registry]:
        """Return what compiles formats with their schemas in a registry, and the registry."""
        if self._means.registry is None:
            raise self._fail(place, ValueError(f"{kind} needs schema_registry.url"))
        try:
            from pipeline.steps.formats.registered import compile_format, compile_keys  # noqa: PLC0415 - of the extra
        except ModuleNotFoundError as error:
            raise self._fail(place, missing.explained(error) or error) from error
        return compile_format, compile_keys, self._means.registry


def _expression_rule(text: str) -> Callable[[Event], bool]:
    evaluate = compile_value(text)
    return lambda event: truth(text, evaluate(event.value, event.change, event.added))


def _enriched_rule(match: Predicate) -> Callable[[Event], bool]:
    """Let a pattern see what was added, as it will be in the change."""

    def rule(event: Event) -> bool:
        added = {name: msgspec.json.decode(value) for name, value in event.added.items()}
        return match({**(event.looked or {}), ENRICHED: added})

    return rule
