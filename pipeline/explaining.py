"""`headwater explain`: what each flow makes of one event, and why. Runs the flows as the worker does, without Kafka."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from msgspec.json import decode as decode_json

from models.change import Change, decode, item_key
from pipeline import flow_settings as settings
from pipeline.flows import Means, compile_flow
from pipeline.steps.event import Event, Value
from pipeline.steps.expression import ENRICHED, ExpressionError, compile_value, truth
from pipeline.steps.filter import compile_pattern, fields
from pipeline.steps.flow import Given, Message
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
    steps: list[StepTrace] = field(default_factory=list)
    messages: list[MessageTrace] = field(default_factory=list)

    def json(self) -> dict[str, Any]:
        """Return it as plain data."""
        return asdict(self)


def explain(flows: Sequence[settings.Flow], value: bytes, means: Means, at: float = 0.0) -> list[FlowTrace]:
    """Return what each flow makes of an event; raise MalformedChangeError when it is no change."""
    change = decode(value)
    key = item_key(change.body.keys)
    return [_flow(flow, Given(0, key, value, change, at), means) for flow in flows]


def _flow(flow: settings.Flow, given: Given, means: Means) -> FlowTrace:
    change = given.change
    if flow.tables and change.table not in flow.tables:
        return FlowTrace(flow.name, "left out", f"from: the table is {change.table}, not {' or '.join(flow.tables)}")
    trace = FlowTrace(flow.name, "sent")
    if flow.where is not None:
        matches, details = predicate(flow.where, given.value, change, {})
        trace.steps.append(StepTrace("where", "holds" if matches else "does not hold", details))
    watcher = _Watcher(trace)
    results = compile_flow(flow, means).run([given], watcher)
    if not results:
        trace.outcome, trace.reason = "left out", "where does not hold"
        return trace
    (result,) = results
    if result.error is not None:
        trace.outcome, trace.reason = "rejected", f"{result.stage}: {result.error}"
        return trace
    trace.messages = [_message(message) for message in result.messages]
    if not [message for message in trace.messages if message.sink]:
        trace.outcome = "left out"
        trace.reason = watcher.gone or "to: no `where` holds, and there is no `otherwise`"
    for number, to in enumerate(flow.to):
        if to.where is not None and not watcher.gone:
            matches, details = predicate(to.where, given.value, change, watcher.routed)
            trace.steps.append(StepTrace(f"to.{number} {to.sink}", "holds" if matches else "does not hold", details))
    return trace


class _Watcher:
    """Notes what each step has changed."""

    def __init__(self, trace: FlowTrace) -> None:
        self._trace = trace
        self._added: dict[str, str] = {}
        self._images: tuple[bytes | None, bytes | None, bytes | None] | None = None
        self.gone = ""
        self.routed: dict[str, Value] = {}
        """What was added when the event was routed."""

    def __call__(self, step: str, events: Sequence[Event]) -> None:
        for event in events:
            images = event.before_json, event.after_json, event.key
            if step == "where" or step.startswith("enrich."):
                self.routed = dict(event.added)
            added = {name: bytes(value).decode() for name, value in event.added.items()}
            if step != "where" and not step.startswith("to "):
                self._note(step, event, added, images)
            self._added, self._images = added, images

    def _note(
        self, step: str, event: Event, added: Mapping[str, str], images: tuple[bytes | None, bytes | None, bytes | None]
    ) -> None:
        details: list[str] = []
        if event.error is not None:
            outcome = f"rejects: {event.error}"
        elif event.gone:
            outcome = "leaves it out"
            self.gone = f"{step} leaves it out"
        else:
            details = [f"{name} = {value}" for name, value in added.items() if self._added.get(name) != value]
            details += [
                f"{what}: {_text(new)}"
                for what, old, new in zip(("before", "after", "key"), self._images or images, images, strict=True)
                if old != new
            ]
            outcome = "adds" if len(added) > len(self._added) else "changes" if details else "changes nothing"
        self._trace.steps.append(StepTrace(step, outcome, details))


def predicate(
    where: settings.Where, value: bytes, change: Change, added: Mapping[str, Value]
) -> tuple[bool, list[str]]:
    """Say whether a filter holds of a change with what was added to it, and for each of its parts whether that does."""
    if isinstance(where, str):
        try:
            holds = truth(where, compile_value(where)(value, change, added))
        except ExpressionError as error:
            return False, [str(error)]
        return holds, [f"{where}: {'true' if holds else 'false'}"]
    found = {**projection(fields(where))(value), ENRICHED: {name: decode_json(one) for name, one in added.items()}}
    details = [
        f"{path}: {'holds' if compile_pattern(part, dynamodb=True)(found) else 'does not hold'}, "
        f"the event has {json.dumps(_at(found, path), ensure_ascii=False)}"
        for path, part in _parts(where)
    ]
    return compile_pattern(where, dynamodb=True)(found), details


def _parts(pattern: Mapping[str, Any], before: tuple[str, ...] = ()) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each leaf of a pattern, as a pattern of its own, with its path."""
    for name, rest in pattern.items():
        if isinstance(rest, Mapping):
            yield from _parts(rest, (*before, name))
        else:
            part: dict[str, Any] = {name: rest}
            for outer in reversed(before):
                part = {outer: part}
            yield ".".join((*before, name)), part


def _at(found: Any, path: str) -> Any:
    for name in path.split("."):
        if not isinstance(found, Mapping) or name not in found:
            return None
        found = found[name]
    return found


def _message(message: Message) -> MessageTrace:
    try:
        value: Any = None if message.value is None else json.loads(message.value)
    except ValueError:
        value = message.value.hex() if message.value is not None else None
    headers = {name: one.decode(errors="backslashreplace") for name, one in message.headers}
    return MessageTrace(message.sink, _text(message.key), value, headers)


def _text(value: bytes | None) -> str:
    return "null" if value is None else value.decode(errors="backslashreplace")
