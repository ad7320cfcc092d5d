"""`headwater flows test`: golden files. Each holds an event and what the flows must make of it.

    {"event": {...as on raw...},
     "references": {"customers": [{"customer_id": {"S": "c-1"}}], "topic:regions": [{"key": "eu", "value": {...}}]},
     "lookups": {"stock": {...}},
     "expect": [{"flow": "orders", "sink": "orders-settled", "key": {...}, "value": {...}, "headers": {"op": "c"}}]}

Of an outcome only what is named is compared, of `headers` only those that are; values are compared as JSON, whole, numbers
with all their digits. A rejected change is expected as `{"flow": "orders", "rejected": "part of the reason"}`. What is made of
a change that has waited for a reference first (`hold`) has also `"waits"`, the seconds; when it is left out then, nothing else.
These two must be named where they are: an outcome without `rejected` does not match a rejected change.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
from msgspec import UNSET, UnsetType, structs

from models.change import MalformedChangeError
from pipeline.errors import UsageError
from pipeline.files import exact_json
from pipeline.files.content import content
from pipeline.files.json_lines import line_of_error, line_of_value
from pipeline.flows import given_items
from pipeline.flows.compile import onlooking
from pipeline.flows.explain import FlowTrace, explain
from pipeline.settings.enrich import LookupSettings
from pipeline.settings.root import Settings


class ExpectedOutcome(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """An outcome; what is not set is not compared."""

    flow: str | UnsetType = UNSET
    sink: str | UnsetType = UNSET
    key: Any | UnsetType = UNSET
    value: Any | UnsetType = UNSET
    headers: dict[str, str] | UnsetType = UNSET
    rejected: str | UnsetType = UNSET
    """Part of the reason."""
    waits: float | UnsetType = UNSET
    """Seconds."""


ALWAYS = ("rejected", "waits")
"""What of an outcome is compared although it is not named: without it, it were another outcome."""
_members = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


class GoldenFile(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """What a golden file holds."""

    event: dict[str, Any]
    references: dict[str, list[Any]] = {}
    lookups: dict[str, Any] = {}
    """By `into`, what is answered."""
    expect: list[ExpectedOutcome] = []


@dataclass(frozen=True)
class GoldenVerdict:
    """What came of a golden file."""

    file: Path
    differences: list[str]

    @property
    def ok(self) -> bool:
        """Whether the flows made of the event what was expected."""
        return not self.differences


def cases(place: Path) -> list[Path]:
    """Return the golden files of a directory, or the one file; raise UsageError when there are none."""
    found = sorted(place.rglob("*.json")) if place.is_dir() else [place] if place.is_file() else []
    if not found:
        raise UsageError(f"there are no golden files in {place}", hint="docs/how-to/test-flows.md")
    return found


def check(file: Path, settings: Settings, *, update: bool = False) -> GoldenVerdict:
    """Run the flows on the event of a golden file and compare; with `update`, write what they made into it instead."""
    case = load_golden(file)
    actual = [one for trace in outcome(file, case, settings) for one in _actual(trace)]
    if update:
        file.write_text(exact_json.with_member(file.read_text(), "expect", actual))
        return GoldenVerdict(file, [])
    expected = exact_json.loads(content(file)).get("expect", [])
    differences = []
    if len(expected) != len(actual):
        differences.append(f"expected {len(expected)} outcomes, there are {len(actual)}: {_short(actual)}")
    for number, (want, have) in enumerate(zip(expected, actual, strict=False)):
        differences += [f"expect[{number}].{line}" for line in _differences(want, have)]
    return GoldenVerdict(file, differences)


def load_golden(file: Path) -> GoldenFile:
    """Read a golden file; raise UsageError with the line of what is none."""
    text = content(file)
    try:
        case = msgspec.json.decode(text, type=GoldenFile)
        exact = exact_json.loads(text)
        return structs.replace(case, references=exact.get("references", {}), lookups=exact.get("lookups", {}))
    except msgspec.DecodeError as error:
        place = f"{file}:{line_of_error(text, error)}"
        raise UsageError(f"{place}: this is not a golden file: {error}", hint=given_items.HINT) from error


def outcome(file: Path, case: GoldenFile, settings: Settings) -> list[FlowTrace]:
    """Return what the flows make of the event of a golden file; raise UsageError with the line of what is none of theirs."""
    text = content(file)
    references = {
        name: given_items.checked(
            name, ((f"{file}:{line_of_value(text, ('references', name, n))}", item) for n, item in enumerate(items))
        )
        for name, items in case.references.items()
    }
    for name, answer in case.lookups.items():
        _check_answer(f"{file}:{line_of_value(text, ('lookups', name))}", name, answer, settings)
    means = onlooking(settings.flows, settings.modules, references, case.lookups)
    try:
        return explain(settings.flows, bytes(_members(text)["event"]), means)
    except MalformedChangeError as error:
        raise UsageError(f"{file}:{line_of_value(text, ('event',))}: event: {error}", hint=given_items.HINT) from error


def _check_answer(place: str, name: str, answer: Any, settings: Settings) -> None:
    asking = [
        step
        for flow in settings.flows
        for step in flow.enrich
        if isinstance(step, LookupSettings) and step.into == name
    ]
    if not asking:
        raise UsageError(f"{place}: lookups: no step of the kind lookup adds {name}", hint=given_items.HINT)
    if answer is not None and any(step.table is not None for step in asking):
        try:
            given_items.check_attributes(answer)
        except ValueError as error:
            wanted = f'{error}; expected the item of the table in typed JSON: {{"amount": {{"N": "12.50"}}, ...}}'
            raise UsageError(f"{place}: lookups.{name}: {wanted}", hint=given_items.HINT) from error


def _actual(trace: FlowTrace) -> list[dict[str, Any]]:
    waits = {"waits": trace.waits} if trace.waits else {}
    if trace.outcome == "rejected":
        return [{"flow": trace.flow, "rejected": trace.reason, **waits}]
    if not trace.messages and waits:
        return [{"flow": trace.flow, **waits}]
    return [
        {
            "flow": trace.flow,
            "sink": message.sink,
            "key": exact_json.loads(message.key),
            "value": message.value,
            "headers": message.headers,
            **waits,
        }
        for message in trace.messages
    ]


def _differences(want: Mapping[str, Any], have: Mapping[str, Any]) -> list[str]:
    found = [f"{name}: not expected, got {_short(have[name])}" for name in ALWAYS if name in have and name not in want]
    for name, expected in want.items():
        actual = have.get(name)
        if name == "rejected":
            same = actual is not None and expected in actual
        elif name == "headers":
            same = actual is not None and expected.items() <= actual.items()
        else:
            same = exact_json.same(actual, expected)
        if not same:
            found.append(f"{name}: expected {_short(expected)}, got {_short(actual)}")
    return found


def _short(value: Any) -> str:
    text = exact_json.dumps(value)
    return text if len(text) < 2_000 else f"{text[:2_000]}..."
