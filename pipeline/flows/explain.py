"""`headwater explain`: what each flow makes of one event, and why. Runs the flows as the worker does, without Kafka."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from msgspec import structs
from msgspec.json import decode as decode_json

from models.change import Change, decode, item_key
from pipeline.files import exact_json
from pipeline.flows.compile import CompileContext, compile_flow
from pipeline.settings.enrich import Condition
from pipeline.settings.flows import FlowSettings, fill
from pipeline.steps.enrich import MissingReferenceError
from pipeline.steps.event import Event, Value
from pipeline.steps.expression import ENRICHED, clauses, compile_value, truth
from pipeline.steps.filter import compile_pattern, fields
from pipeline.steps.flow import Flow, Given, Message, Result
from pipeline.steps.project import projection


@dataclass(frozen=True)
class StepTrace:
    """What a step made of the event."""

    step: str
    outcome: str
    """One line."""
    details: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class MessageTrace:
    """What would be written."""

    sink: str
    """'' for what `through` publishes."""
    key: str
    value: Any
    headers: dict[str, str]


@dataclass
class FlowTrace:
    """What a flow made of the event."""

    flow: str
    outcome: str
    """sent, left out, rejected."""
    reason: str = ""
    waits: float = 0.0
    """Seconds for which the change waits first, at most, for a reference that is not there (`hold`)."""
    steps: list[StepTrace] = field(default_factory=list)
    messages: list[MessageTrace] = field(default_factory=list)

    def json(self) -> dict[str, Any]:
        """Return it as plain data."""
        return asdict(self)


HOLDS, DOES_NOT, REJECTS = "holds", "does not hold", "rejects: "
CLOCK_MARGIN_S = 0.001
"""Seconds by which a wait is over for certain, whatever the clock's precision."""
MISSING: Any = object()


def explain(flows: Sequence[FlowSettings], value: bytes, means: CompileContext) -> list[FlowTrace]:
    """Return what each flow makes of an event that came to raw just now; raise MalformedChangeError when it is not a change."""
    change = decode(value)
    given = Given(0, item_key(change.body.keys), value, change, time.monotonic())
    return [_flow(flow, given, means) for flow in flows]


def _flow(flow: FlowSettings, given: Given, means: CompileContext) -> FlowTrace:
    change = given.change
    if flow.tables and change.table not in flow.tables:
        return FlowTrace(
            flow.name, "left out", f"the flow takes {' and '.join(flow.tables)} (from), and this is {change.table}"
        )
    compiled = compile_flow(flow, means)
    trace = FlowTrace(flow.name, "sent")
    if flow.where is not None:
        trace.steps.append(StepTrace("where", *predicate(flow.where, given.value, change, {})))
    watcher, results = _run(compiled, given, [means.lacks(step) for step in flow.enrich])
    trace.waits = watcher.waits
    if not results:
        trace.outcome, trace.reason = "left out", f"where {DOES_NOT}"
        return trace
    (result,) = results
    trace.steps += watcher.enriched
    early = (
        not result.taken or watcher.gone or (result.error is not None and result.stage.startswith(("where", "enrich.")))
    )
    if not early:
        trace.steps += _routes(flow, given, watcher.added, _deletion_sinks(flow, result))
    trace.steps += [StepTrace(f"leaves {sink}", "its old image matches what leads there") for sink in _left(result)]
    trace.steps += watcher.shaped
    if result.error is not None:
        trace.outcome, trace.reason = "rejected", f"{result.stage}: {result.error}"
        return trace
    trace.messages = [_message(message) for message in result.messages]
    if not [message for message in trace.messages if message.sink]:
        trace.outcome = "left out"
        trace.reason = (
            f"where {DOES_NOT}"
            if not result.taken
            else watcher.gone or "to: no `where` holds, and there is no `otherwise`"
        )
    return trace


def _run(compiled: Flow, given: Given, lacks: Sequence[str]) -> tuple[_Watcher, list[Result]]:
    """Run a flow on an event; while it waits for a reference, again as one that has waited."""
    waits = 0.0
    while True:
        watcher = _Watcher(lacks, waits)
        at = given.at - waits - CLOCK_MARGIN_S if waits else given.at
        results = compiled.run([structs.replace(given, at=at)], watcher)
        error = results[0].error if results else None
        if not isinstance(error, MissingReferenceError) or not error.until:
            return watcher, results
        waits = round(error.until - at, 3)


class _Watcher:
    """Notes what each step has changed."""

    def __init__(self, lacks: Sequence[str], waits: float) -> None:
        """`lacks`: of each step of `enrich`, what it is not given here."""
        self._lacks, self.waits = lacks, waits
        self._before: dict[str, str] = {}
        self._images: tuple[bytes | None, bytes | None, bytes | None] | None = None
        self.enriched: list[StepTrace] = []
        """What `enrich` did, before the event is routed."""
        self.shaped: list[StepTrace] = []
        """What later steps did."""
        self.gone = ""
        self.added: dict[str, Value] = {}
        """What was added when the event was routed."""

    def __call__(self, step: str, events: Sequence[Event]) -> None:
        enriches = step.startswith("enrich.")
        for event in events:
            images = event.before_json, event.after_json, event.key
            if enriches:
                self.added = dict(event.added)
            added = {name: bytes(value).decode() for name, value in event.added.items()}
            if step != "where" and not step.startswith("to "):
                trace = self._trace(step, event, added, images)
                if enriches and (lack := self._lacks[len(self.enriched)]):
                    trace.details.append(lack)
                (self.enriched if enriches else self.shaped).append(trace)
            self._before, self._images = added, images

    def _trace(
        self, step: str, event: Event, added: Mapping[str, str], images: tuple[bytes | None, bytes | None, bytes | None]
    ) -> StepTrace:
        if event.error is not None:
            return StepTrace(step, f"rejects: {event.error}")
        if event.gone:
            self.gone = f"{step} leaves it out"
            return StepTrace(step, "leaves it out")
        details = [f"{name} = {value}" for name, value in added.items() if self._before.get(name) != value]
        details += [
            f"{what}: {_text(new)}"
            for what, old, new in zip(("before", "after", "key"), self._images or images, images, strict=True)
            if old != new
        ]
        outcome = "adds" if len(added) > len(self._before) else "changes" if details else "changes nothing"
        return StepTrace(step, outcome, details)


def _left(result: Result) -> list[str]:
    """Return the sinks that the item has left."""
    return list(dict.fromkeys(message.sink for message in result.messages if message.left))


def _deletion_sinks(flow: FlowSettings, result: Result) -> set[str] | None:
    """Return the sinks of a deletion that goes by its old image; None for all other changes."""
    change = result.given.change
    if flow.leaves is None or change.op != "d" or change.before is None or result.error is not None:
        return None
    return {message.sink for message in result.messages}


def _routes(flow: FlowSettings, given: Given, added: Mapping[str, Value], deletion: set[str] | None) -> list[StepTrace]:
    """Return what the rules of `to` say, as far as they are asked; of a `deletion` that goes by its old image, its sinks."""
    if len(flow.to) == 1 and flow.to[0].where is None:
        return []  # there is nothing to decide
    traces: list[StepTrace] = []
    taken = ""
    for number, to in enumerate(flow.to):
        name = f"to.{number}"
        gets = deletion is None or _sink(to.sink, given.change) in deletion
        if taken and flow.match == "first":
            outcome, details = f"not asked, {taken} takes it", list[str]()
        elif to.where is None:
            outcome, details = ("takes everything", []) if gets else (DOES_NOT, ["its old image matches another route"])
        else:
            outcome, details = predicate(to.where, given.value, given.change, added)
            if outcome == DOES_NOT and deletion is not None and gets:
                details.append("gets the deletion, as its old image matches")
        traces.append(StepTrace(f"{name} {to.sink}", outcome, details))
        if outcome.startswith(REJECTS):
            return traces
        if outcome != DOES_NOT:
            taken = taken or name
    if (
        flow.otherwise is not None
        and not taken
        and (deletion is None or _sink(flow.otherwise, given.change) in deletion)
    ):
        traces.append(StepTrace(f"otherwise {flow.otherwise}", "takes it, no `where` holds"))
    return traces


def _sink(name: str, change: Change) -> str:
    return fill(name, table=change.table, op=change.op, source=change.source)


def predicate(where: Condition, value: bytes, change: Change, added: Mapping[str, Value]) -> tuple[str, list[str]]:
    """Say whether a filter holds of a change with what was added to it, or rejects it, and what in it decides that."""
    if isinstance(where, str):
        return _condition(where, lambda text: truth(text, compile_value(text)(value, change, added)))
    found = {**projection(fields(where))(value), ENRICHED: {name: decode_json(one) for name, one in added.items()}}
    return _outcome(where, found), list(_leaves(where, found))


def _condition(text: str, evaluate: Callable[[str], bool]) -> tuple[str, list[str]]:
    """Say what comes of an expression, and of what it joins by `&&` the first that is to blame."""

    def told(part: str) -> str:
        try:
            return HOLDS if evaluate(part) else DOES_NOT
        except Exception as error:  # noqa: BLE001 - a flow rejects the change, whatever is wrong with it
            return f"{REJECTS}{error}"

    outcome = told(text)
    if outcome == HOLDS:
        return outcome, [f"{text}: true"]
    details, kind = ([f"{text}: false"], DOES_NOT) if outcome == DOES_NOT else ([], REJECTS)
    parts = clauses(text)
    blamed = next((part for part in parts if len(parts) > 1 and told(part).startswith(kind)), None)
    if blamed is not None:  # an error names its expression itself
        details.append(f"{blamed}: false" if kind == DOES_NOT else told(blamed).removeprefix(REJECTS))
    return outcome, details


def _outcome(pattern: Mapping[str, Any], found: Any) -> str:
    return HOLDS if compile_pattern(pattern, dynamodb=True)(found) else DOES_NOT


def _leaves(pattern: Mapping[str, Any], found: Any, before: tuple[str, ...] = (), branch: str = "") -> Iterator[str]:
    """Yield what comes of each leaf of a pattern, as a pattern of its own; of `$or`, of each branch and its leaves."""

    def whole(part: Mapping[str, Any]) -> Mapping[str, Any]:
        for outer in reversed(before):
            part = {outer: part}
        return part

    for name, rest in pattern.items():
        if name == "$or":
            for number, one in enumerate(rest):
                inner = f"{branch}{'.'.join((*before, name))}.{number}"
                yield f"{inner}: {_outcome(whole(one), found)}"
                yield from _leaves(one, found, before, f"{inner} ")
        elif isinstance(rest, Mapping):
            yield from _leaves(rest, found, (*before, name), branch)
        else:
            outcome, has = _outcome(whole({name: rest}), found), _at(found, (*before, name))
            shown = "no such field" if has is MISSING else exact_json.dumps(has)
            yield f"{branch}{'.'.join((*before, name))}: {outcome}, the event has {shown}"


def _at(found: Any, path: Sequence[str]) -> Any:
    """Return what an event has at a path; of an array what its elements have there."""
    if not path:
        return found
    if isinstance(found, list):
        several = [_at(one, path) for one in found]
        return [one for one in several if one is not MISSING] or MISSING
    if not isinstance(found, Mapping) or path[0] not in found:
        return MISSING
    return _at(found[path[0]], path[1:])


def _message(message: Message) -> MessageTrace:
    try:
        value: Any = None if message.value is None else exact_json.loads(message.value)
    except ValueError:
        value = message.value.hex() if message.value is not None else None
    headers = {name: one.decode(errors="backslashreplace") for name, one in message.headers}
    return MessageTrace(message.sink, _text(message.key), value, headers)


def _text(value: bytes | None) -> str:
    return "null" if value is None else value.decode(errors="backslashreplace")
