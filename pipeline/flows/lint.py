"""What of a flow can hardly have an effect: `headwater flows lint`; warnings of `check`, `flows apply` and the worker. Pure.

What cannot have one by its form is an error of the settings. Here is what is valid but matches no change that AWS writes or
that the flow gets: a pattern without the type tag, a mask of a name that `rename` makes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from typing import Any, NamedTuple

from models.attribute_path import is_added, parse, readings
from models.attributes import type_tags
from models.change import OPS
from pipeline.settings.enrich import PLACE, ComputeSettings, JoinSettings, LookupSettings, PythonSettings, SqlSettings
from pipeline.settings.flows import FlowSettings
from pipeline.steps.cel_tokens import Token, attributes_in, tokens
from pipeline.steps.expression import ENRICHED
from pipeline.steps.filter import PatternError, compile_pattern

RECORD = (
    "eventID",
    "eventName",
    "eventVersion",
    "eventSource",
    "awsRegion",
    "dynamodb",
    "eventSourceARN",
    "userIdentity",
    "tableName",
    "recordFormat",
    ENRICHED,
)
"""What a record has, and what a flow adds."""
BODY = (
    "Keys",
    "NewImage",
    "OldImage",
    "SequenceNumber",
    "SizeBytes",
    "StreamViewType",
    "ApproximateCreationDateTime",
    "ApproximateCreationDateTimePrecision",
)
"""What `dynamodb` has."""
IMAGES = ("Keys", "NewImage", "OldImage")
LEAVES: Mapping[str, tuple[type, ...]] = {
    "S": (str,),
    "B": (str,),
    "SS": (str,),
    "BS": (str,),
    "BOOL": (bool,),
    "NULL": (bool,),
}
"""What is below a type tag; below N and NS text is compared with numbers, too."""


class Doubt(NamedTuple):
    """Something that can hardly have an effect."""

    place: str
    """Where in the flow: `mask.0.path`."""
    problem: str


def lint(flow: FlowSettings) -> list[Doubt]:
    """Return what of a flow can hardly have an effect, in the order of its settings."""
    return [*_filters(flow), *_steps(flow), *_shapes(flow)]


def _filters(flow: FlowSettings) -> Iterator[Doubt]:
    places = [("where", flow.where), *((f"to.{n}.where", route.where) for n, route in enumerate(flow.to))]
    for place, where in places:
        if isinstance(where, str):
            yield from _expression(flow, place, where)
        elif where is not None:
            for problem in _record(flow, where):
                yield Doubt(place, problem)


# -- patterns ---------------------------------------------------------------------------------------------------------


def _fields(pattern: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the fields of a pattern, those of the patterns in its `$or` among them."""
    for name, rest in pattern.items():
        if name == "$or":
            for one in rest:
                yield from _fields(one)
        else:
            yield name, rest


def _record(flow: FlowSettings, pattern: Mapping[str, Any]) -> Iterator[str]:
    for name, rest in _fields(pattern):
        if name not in RECORD:
            yield _unknown(name, RECORD, "a record")
        elif name == "eventName":
            yield from _none_of(name, rest, OPS)
        elif name == "tableName" and flow.tables:
            yield from _none_of(name, rest, flow.tables)
        elif name == "dynamodb" and isinstance(rest, Mapping):
            yield from _body(rest)
        elif name == ENRICHED and isinstance(rest, Mapping):
            yield from _added(flow, rest)


def _body(pattern: Mapping[str, Any]) -> Iterator[str]:
    for name, rest in _fields(pattern):
        if name not in BODY:
            yield _unknown(name, BODY, "dynamodb")
        elif name in IMAGES and isinstance(rest, Mapping):
            yield from _members(rest, f"dynamodb.{name}")


def _members(pattern: Mapping[str, Any], place: str) -> Iterator[str]:
    """Look at the attributes of an item, or of a map in it."""
    for name, rest in _fields(pattern):
        yield from _value(rest, f"{place}.{name}")


def _value(pattern: Any, place: str) -> Iterator[str]:
    """Look at what is asked of an attribute value, which is an object with its type."""
    if not isinstance(pattern, Mapping):
        if pattern != [{"exists": False}]:
            yield f'{place}: DynamoDB writes the type before a value: {{ S = ["paid"] }}'
        return
    for tag, rest in _fields(pattern):
        if tag not in type_tags:
            yield f"{place}: {tag} is not a type of DynamoDB, expected one of {', '.join(type_tags)}"
        elif tag == "M" and isinstance(rest, Mapping):
            yield from _members(rest, f"{place}.M")
        elif tag == "L" and isinstance(rest, Mapping):
            yield from _value(rest, f"{place}.L")
        elif tag in LEAVES and isinstance(rest, Sequence):
            yield from _leaf(tag, rest, f"{place}.{tag}")


def _leaf(tag: str, entries: Sequence[Any], place: str) -> Iterator[str]:
    kinds = LEAVES[tag]
    for entry in entries:
        plain = not isinstance(entry, Mapping)
        numeric = isinstance(entry, Mapping) and "numeric" in entry
        if numeric or (plain and (not isinstance(entry, kinds) or (kinds == (str,) and isinstance(entry, bool)))):
            expected = "true or false" if bool in kinds else "text"
            yield f"{place}: {entry!r} never matches, {tag} holds {expected}"


def _none_of(name: str, rest: Any, known: Iterable[str]) -> Iterator[str]:
    """Say that a pattern matches none of the values that there are."""
    values = list(known)
    try:
        match = compile_pattern({name: rest})
    except PatternError:  # said where it is compiled
        return
    if not any(match({name: value}) for value in values):
        yield f"{name}: matches none of {', '.join(values)}"
    elif isinstance(rest, Sequence):
        for entry in rest:
            if isinstance(entry, str) and entry not in values:
                yield f"{name}: {entry!r} is not one of {', '.join(values)}"


def _added(flow: FlowSettings, pattern: Mapping[str, Any]) -> Iterator[str]:
    known = added_by(flow)
    for name, _ in _fields(pattern):
        if known is not None and name not in known:
            yield _unadded(f"{ENRICHED}.{name}", known)


def _unadded(path: str, known: Sequence[str]) -> str:
    return f"{path}: no step adds it, only {', '.join(known) or 'nothing'}"


def added_by(flow: FlowSettings, before: int | None = None) -> list[str] | None:
    """Return the names that the steps of a flow add (those before one of them); None: nobody knows what a step adds."""
    steps = flow.enrich[:before]
    if any(isinstance(step, SqlSettings | PythonSettings) for step in steps):
        return None
    return [step.into for step in steps if isinstance(step, JoinSettings | ComputeSettings | LookupSettings)]


def _unknown(name: str, known: Sequence[str], of: str) -> str:
    near = get_close_matches(name, known, 1, 0.7)
    return f"{name}: {of} has no such field" + (f", did you mean {near[0]}?" if near else f", only {', '.join(known)}")


# -- expressions ------------------------------------------------------------------------------------------------------


def _expression(flow: FlowSettings, place: str, text: str, step: int | None = None) -> Iterator[Doubt]:
    try:
        found = tokens(text)
    except ValueError:  # said where it is compiled
        return
    facts = {"op": list(OPS.values())} | ({"table": list(flow.tables)} if flow.tables else {})
    for name, known in facts.items():
        for constant in _compared(found, name):
            if constant not in known:
                yield Doubt(place, f"{name} is never {constant!r}, only one of {', '.join(known)}")
    known_added = added_by(flow, step)
    read = attributes_in(found, ENRICHED)
    for name in sorted(read or ()):
        if known_added is not None and name not in known_added:
            yield Doubt(place, _unadded(f"{ENRICHED}.{name}", known_added))


def _compared(found: Sequence[Token], name: str) -> Iterator[str]:
    """Yield the texts that a name is compared with."""
    texts = [token.text for token in found]
    for number, token in enumerate(found):
        if token.kind != "name" or token.text != name or texts[number - 1 : number] == ["."]:
            continue
        behind = texts[number + 1 : number + 2]
        if behind in (["=="], ["!="]) and found[number + 2].kind == "string":
            yield texts[number + 2].strip("\"'")
        elif behind == ["in"] and texts[number + 2 : number + 3] == ["["]:
            end = texts.index("]", number)
            yield from (one.text.strip("\"'") for one in found[number + 3 : end] if one.kind == "string")


# -- steps and shapes -------------------------------------------------------------------------------------------------


def _steps(flow: FlowSettings) -> Iterator[Doubt]:
    taken: dict[str, int] = {}
    for number, step in enumerate(flow.enrich):
        if isinstance(step, ComputeSettings):
            yield from _expression(flow, f"enrich.{number}.as", step.expression, number)
        if isinstance(step, JoinSettings) and step.on is not None:
            yield from _not_added(flow, [(f"enrich.{number}.on", step.on)], number)
        if isinstance(step, LookupSettings):
            yield from _not_added(
                flow, [(f"enrich.{number}.key.{name}", path) for name, path in step.key.items()], number
            )
            yield from _not_added(
                flow, [(f"enrich.{number}.url", path) for path in PLACE.findall(step.url or "")], number
            )
        if isinstance(step, JoinSettings | ComputeSettings | LookupSettings):
            if (first := taken.get(step.into)) is not None:
                yield Doubt(f"enrich.{number}.into", f"{step.into} replaces what enrich.{first} has added")
            taken[step.into] = number


def _not_added(flow: FlowSettings, named: Sequence[tuple[str, str]], step: int | None = None) -> Iterator[Doubt]:
    """Name the paths into what is added that lead to nothing that a step (before this one) adds."""
    known = added_by(flow, step)
    for place, path in named:
        parts = parse(path)
        if known is not None and is_added(parts) and not any(name in known for name, _ in readings(parts[1:])):
            yield Doubt(place, _unadded(path, known))


def _shapes(flow: FlowSettings) -> Iterator[Doubt]:
    yield from _not_added(flow, [(f"select.{n}", path) for n, path in enumerate(flow.select)])
    yield from _not_added(flow, [(f"drop.{n}", path) for n, path in enumerate(flow.drop)])
    yield from _not_added(flow, [(f"rename.{old}", old) for old in flow.rename])
    selected = {parse(path)[:2] if is_added(parse(path)) else parse(path)[:1] for path in flow.select}
    dropped = {parse(path) for path in flow.drop}
    news = {new: old for old, new in flow.rename.items()}
    masked: dict[str, int] = {}
    for number, mask in enumerate(flow.mask):
        if mask.path in news and mask.path not in flow.rename:
            old = news[mask.path]
            yield Doubt(
                f"mask.{number}.path", f"masks come before rename: {mask.path} is still called {old}, name that"
            )
        if (first := masked.get(mask.path)) is not None:
            yield Doubt(f"mask.{number}.path", f"mask.{first} has made {mask.path} unreadable already")
        masked[mask.path] = number
    left = f"select has left it out, only {', '.join(flow.select)} are there"
    for number, path in enumerate(flow.drop):
        if selected and not _is_in(path, selected):
            yield Doubt(f"drop.{number}", f"{path}: {left}")
        elif path in news and path not in flow.rename:
            yield Doubt(f"drop.{number}", f"drop comes before rename: {path} is still called {news[path]}, name that")
    for number, path in enumerate(flow.select):
        if path in news and path not in flow.rename:
            yield Doubt(
                f"select.{number}", f"select comes before rename: {path} is still called {news[path]}, name that"
            )
    for old in flow.rename:
        if selected and not _is_in(old, selected):
            yield Doubt(f"rename.{old}", f"{old}: {left}")
        elif parse(old) in dropped:
            yield Doubt(f"rename.{old}", f"{old}: drop has left it out")
    for (where, new), count in Counter((parse(old)[:-1], new) for old, new in flow.rename.items()).items():
        if count > 1:
            olds = [old for old, one in flow.rename.items() if one == new and parse(old)[:-1] == where]
            yield Doubt(f"rename.{olds[-1]}", f"{' and '.join(olds)} get one name, {new}: one of them is lost")


def _is_in(path: str, selected: set[tuple[Any, ...]]) -> bool:
    parts = parse(path)
    return (
        parts[:2] in selected
        or parts[:1] in selected
        or bool({part for part in selected if part == parts[: len(part)]})
    )
