"""Compile what finds the sinks that items have left (`on_leave`), and say which attributes decide that."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from models.attribute_path import is_added, parse, readings
from models.change import Change
from pipeline.settings.enrich import (
    PLACE,
    ComputeSettings,
    Condition,
    EnrichSettings,
    JoinSettings,
    LookupSettings,
    PythonSettings,
    SqlSettings,
)
from pipeline.settings.flows import FlowSettings
from pipeline.steps.cel_tokens import attributes_in, free_names, tokens
from pipeline.steps.expression import ENRICHED
from pipeline.steps.filter import fields, merge_fields
from pipeline.steps.flow import Where
from pipeline.steps.leave import Leaving, alike
from pipeline.steps.route import Router, Rule

IMAGES = ("NewImage", "OldImage")


def compile_leaving(
    flow: FlowSettings,
    where: Where | None,
    first: Callable[[Change], bool] | None,
    rules: Sequence[Rule],
    otherwise: Rule | None,
    route: Router,
) -> Leaving | None:
    """Return what finds the sinks that items have left; None where nothing is sent to them."""
    if flow.leaves is None:
        return None
    asks_enriched = any(map(_asks_enriched, _conditions(flow)))
    seen = _attributes(flow, steps=asks_enriched)
    envelope = flow.envelope
    return Leaving(
        where=where,
        first=first,
        rules=rules,
        ways=[*rules, *([] if otherwise is None else [otherwise])],
        every=flow.match == "all",
        route=route,
        looks=_look_at_images(flow),
        alike=None if seen is None else alike(sorted(seen)),
        asks_enriched=asks_enriched,
        may_drop=any(map(_may_drop, flow.enrich)),
        tombstones=flow.leaves == "tombstone",
        bare=flow.leaves == "tombstone" or (envelope.kind == "plain" and envelope.tombstone is not False),
        as_aws=envelope.kind == "dynamodb",
    )


def patterns_look_at(flow: FlowSettings) -> dict[str, Any]:
    """Return what the patterns of a flow look at in a change, as `fields` says it; nothing of what is added.

    Where an item may leave a sink, they look at the same in both images.
    """
    found: dict[str, Any] = {}
    for pattern in _conditions(flow):
        if isinstance(pattern, Mapping):
            merge_fields(found, {name: rest for name, rest in fields(pattern).items() if name != ENRICHED})
    body = found.get("dynamodb")
    if flow.leaves is not None and isinstance(body, dict) and not body.keys().isdisjoint(IMAGES):
        either: dict[str, Any] = {}
        for name in IMAGES:
            merge_fields(either, {"": body.pop(name)} if name in body else {})
        body.update(dict.fromkeys(IMAGES, either[""]))
    return found


def _look_at_images(flow: FlowSettings) -> bool:
    body = patterns_look_at(flow).get("dynamodb", {})
    return body is True or not body.keys().isdisjoint(IMAGES)


def _conditions(flow: FlowSettings) -> Iterator[Condition]:
    for where in (flow.where, *(to.where for to in flow.to)):
        if where is not None:
            yield where


def _asks_enriched(where: Condition) -> bool:
    return ENRICHED in (free_names(tokens(where)) if isinstance(where, str) else fields(where))


def _may_drop(step: EnrichSettings) -> bool:
    """Say whether a step may leave changes out."""
    if isinstance(step, JoinSettings):
        return step.missing == "drop"
    return isinstance(step, SqlSettings | PythonSettings)


def _attributes(flow: FlowSettings, *, steps: bool) -> set[str] | None:
    """Return the attributes that decide, beside what patterns look at, in which sinks an item is; None where that may be any.

    `steps`: also those that decide what is added to it.
    """
    named = [_named(where) for where in _conditions(flow) if isinstance(where, str)]
    if steps:
        named += map(_asked, flow.enrich)
    found: set[str] = set()
    for one in named:
        if one is None:
            return None
        found |= one
    return found


def _named(text: str) -> frozenset[str] | set[str] | None:
    before, after = attributes_in(tokens(text), "before"), attributes_in(tokens(text), "after")
    return None if before is None or after is None else before | after


def _asked(step: EnrichSettings) -> frozenset[str] | set[str] | None:
    """Return the attributes of an item that a step asks for; None: perhaps all."""
    if isinstance(step, JoinSettings):
        return _own([step.on] if step.on is not None else [])
    if isinstance(step, ComputeSettings):
        return _named(step.expression)
    if isinstance(step, LookupSettings):
        return _own([*PLACE.findall(step.url or ""), *step.key.values()])
    return None


def _own(paths: Sequence[str]) -> set[str]:
    """Return the attributes of the item that some paths may begin with."""
    return {name for path in map(parse, paths) if not is_added(path) for name, _ in readings(path)}
