"""Every step, and whole flows, in both forms: a batch of changes comes out as the same changes one by one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import cache
from itertools import count
from types import SimpleNamespace
from typing import Any, Literal, TypeVar
from zlib import crc32

import msgspec
import pytest
from botocore.exceptions import ClientError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.compiled_flows import flow
from support.made_events import event, outcome, record, records

from models.change import decode, item_key
from pipeline.flows.compile import CompileContext, FixedRows
from pipeline.services.lookups import Http, ItemBatches
from pipeline.services.registry import SchemaRegistry
from pipeline.settings.enrich import LookupSettings, MaskSettings
from pipeline.settings.formats import EnvelopeSettings, FormatSettings
from pipeline.settings.kafka import RegistrySettings
from pipeline.steps.enrich import JoinStep, compute, join
from pipeline.steps.envelope import compile_envelope
from pipeline.steps.event import Event, Step
from pipeline.steps.flow import Given, Result, pieces
from pipeline.steps.formats.registered import compile_format
from pipeline.steps.lookup import LOOKUP_LONGEST_S, Answer, AnswerCache, Breaker, Question, RefusedError, compile_lookup
from pipeline.steps.mask import compile_masks
from pipeline.steps.python import DROP, ChangeView, Function, call
from pipeline.steps.secrecy import MaskKey
from pipeline.steps.shape import drop, rename_attributes, select
from pipeline.steps.sql import compile_query

pytestmark = pytest.mark.slow

KEY = MaskKey(bytes(range(32)))


def price(change: ChangeView) -> Any:
    after = change.after
    if after is None:
        return DROP
    if "total" not in after:
        raise LookupError("total")
    return {"kind": type(after["total"]).__name__, "op": change.op}


def prices(changes: list[ChangeView]) -> list[Any]:
    return [price(change) for change in changes]


def ask(questions: Any) -> Mapping[Question, Answer]:
    return {
        question: RefusedError("odd") if b"7" in question else None if b"3" in question else msgspec.Raw(b'{"N":"1"}')
        for question in questions
    }


def found(key: bytes) -> bytes | None:
    return b'{"name":{"S":"x"}}' if len(key) % 2 else None


class CannedHttp:
    """Answers GETs by what is asked: found, not there, refused, no JSON, out of order."""

    def request(self, method: str, url: str, **_: Any) -> Any:
        answers = [(200, b'{"n":1.50}'), (404, b""), (400, b""), (200, b"nope"), (503, b"")]
        status, data = answers[crc32(url.encode()) % len(answers)]
        return SimpleNamespace(status=status, data=data)


class CannedItems:
    """Answers BatchGetItem: every third key is not there, and one with a 7 has the whole call refused."""

    def batch_get_item(self, RequestItems: Mapping[str, Any]) -> Any:  # noqa: N803 - boto3's name
        ((table, asked),) = RequestItems.items()
        keys = [key["id"]["S"] for key in asked["Keys"]]
        if any("7" in key for key in keys):
            raise ClientError({"Error": {"Code": "ValidationException"}}, "BatchGetItem")
        there = [key for key in keys if crc32(key.encode()) % 3]
        return {"Responses": {table: [{"id": {"S": key}, "name": {"S": key * 2}} for key in there]}}


@cache
def http() -> Http:
    service = Http(LookupSettings(kind="lookup", url="https://service.test/{id}", into="a"), {})
    service._pool = CannedHttp()  # type: ignore[assignment]  # asked in its place
    return unbroken(service)


@cache
def table_items() -> ItemBatches:
    service = ItemBatches(LookupSettings(kind="lookup", table="prices", region="eu-west-1", key={"id": "id"}, into="a"))
    service._client = CannedItems()  # type: ignore[assignment]  # asked in its place
    return unbroken(service)


Service = TypeVar("Service", Http, ItemBatches)


def unbroken(service: Service) -> Service:
    """Return a service that is never left alone: that depends on what was asked before, in either form."""
    service._breaker = Breaker(count(0.0, 2 * LOOKUP_LONGEST_S).__next__)
    return service


def asking(service: Http | ItemBatches, on_failure: Literal["reject", "pass"]) -> Step:
    return compile_lookup("a", service.question, service, AnswerCache(100, 60, 60), on_failure)


CUSTOMERS = FixedRows(
    {b'{"S":"k%d"}' % n: b'{"id":{"S":"k%d"},"tier":{"N":"%d.50"}}' % (n, n) for n in range(1, 40, 2)}
)
WITH_CUSTOMERS = (
    "SELECT changes.id, customers.item ->> 'tier' AS tier FROM changes "
    "LEFT JOIN customers ON customers.key = json_extract(changes.key, '$.id')"
)


def registered(kind: str, envelope: str, on_conflict: str) -> Step:
    registry = SchemaRegistry(RegistrySettings(url="mock://conformance"))
    format_settings = FormatSettings.model_validate({"kind": kind, "on_conflict": on_conflict})
    return compile_format(EnvelopeSettings.model_validate({"kind": envelope}), format_settings, "p.sink.s", registry)


STEPS: dict[str, Callable[[], Step]] = {
    "join": lambda: join(JoinStep("customers", "status", "customer", found)),
    "join, inner": lambda: join(JoinStep("customers", "status", "customer", found, missing="drop")),
    "join, reject": lambda: join(JoinStep("customers", "status", "customer", found, missing="reject")),
    "join, hold": lambda: join(JoinStep("customers", "id", "customer", found, hold=30, clock=lambda: 29.0)),
    "join, held": lambda: join(
        JoinStep("customers", "id", "customer", found, missing="reject", hold=30, clock=lambda: 30.0)
    ),
    "compute": lambda: compute('has(after.total) ? string(after.total) : "none"', "text"),
    "sql": lambda: compile_query("SELECT id, op || table_name AS what, after FROM changes WHERE op <> 'd'", {}),
    "sql, odd": lambda: compile_query(
        "SELECT id, CAST(json_extract_string(after, '$.n') AS INT) AS n FROM changes", {}
    ),
    "sql, reference": lambda: compile_query(WITH_CUSTOMERS, {"customers": CUSTOMERS}),
    "lookup, http": lambda: asking(http(), "reject"),
    "lookup, http, pass": lambda: asking(http(), "pass"),
    "lookup, items": lambda: asking(table_items(), "reject"),
    "lookup": lambda: compile_lookup("a", lambda one: one.key, ask, AnswerCache(100, 60, 60), "reject"),
    "lookup, pass": lambda: compile_lookup("a", lambda one: one.key, ask, AnswerCache(0, 60, 60), "pass"),
    "python": lambda: call(Function("price", price, batch=False)),
    "python, batch": lambda: call(Function("prices", prices, batch=True)),
    "select": lambda: select(["id", "total", "größe"]),
    "drop": lambda: drop(["total", "a-b"]),
    "rename": lambda: rename_attributes({"total": "status", "status": "total"}),
    "mask": lambda: compile_masks(
        [
            MaskSettings(path="id", how="hash"),
            MaskSettings(path="email", how="tokenise"),
            MaskSettings(path="address.n", how="redact"),
            MaskSettings(path="phones[*]", how="truncate"),
            MaskSettings(path="status[*]", how="hash"),
            MaskSettings(path="a-b", how="hash"),
            MaskSettings(path="total", how="drop"),
        ],
        KEY,
    ),
    "dynamodb": lambda: compile_envelope(EnvelopeSettings()),
    "plain": lambda: compile_envelope(EnvelopeSettings(kind="plain")),
    "debezium": lambda: compile_envelope(EnvelopeSettings(kind="debezium", numbers="string")),
    "debezium, documents": lambda: compile_envelope(EnvelopeSettings(kind="debezium", images="document")),
    "cloudevents": lambda: compile_envelope(EnvelopeSettings(kind="cloudevents")),
    "cloudevents, structured": lambda: compile_envelope(EnvelopeSettings(kind="cloudevents", mode="structured")),
}


@pytest.mark.parametrize("name", STEPS)
@given(values=st.lists(records(), min_size=1, max_size=8))
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_a_step_does_the_same_in_a_batch_and_change_by_change(name: str, values: list[bytes]) -> None:
    together = [event(value) for value in values]
    STEPS[name]()(together)
    apart = [event(value) for value in values]
    step = STEPS[name]()
    for one in apart:
        step([one])
    assert list(map(outcome, together)) == list(map(outcome, apart))


@pytest.mark.parametrize("on_conflict", ["reject", "widen"])
@pytest.mark.parametrize("envelope", ["plain", "debezium"])
@pytest.mark.parametrize("kind", ["avro", "protobuf", "json-schema"])
@given(values=st.lists(records(), min_size=1, max_size=6))
@settings(max_examples=25, deadline=None)
def test_a_format_says_the_same_in_a_batch_and_change_by_change(
    kind: str, envelope: str, on_conflict: str, values: list[bytes]
) -> None:
    """Once the schema is there: how many versions it takes to come there depends on the batches."""
    step = registered(kind, envelope, on_conflict)

    def encoded(events: list[Event]) -> list[Any]:
        return [(one.output, None if one.error is None else str(one.error)) for one in events]

    step([event(value) for value in values])
    together, apart = [event(value) for value in values], [event(value) for value in values]
    step(together)
    for one in apart:
        step([one])
    assert encoded(together) == encoded(apart)


FLOWS: dict[str, dict[str, Any]] = {
    "pass": {},
    "pattern": {"where": {"eventName": ["INSERT", "MODIFY"]}, "envelope": "plain"},
    "expression": {"where": "has(after.total) && changed('total')", "order": "strict"},
    "routes": {
        "enrich": [{"kind": "compute", "as": "op == 'c' ? 1 : 2", "into": "n"}],
        "to": [{"sink": "a", "where": "enriched.n == 1"}, {"sink": "{table}", "where": {"eventName": ["MODIFY"]}}],
        "match": "all",
        "otherwise": "rest",
        "rename": {"total": "sum"},
        "through": "way",
        "envelope": {"kind": "debezium", "tombstone": True},
    },
    "leaves": {
        "where": "op != 'd' && has(after.total)",
        "to": [
            {"sink": "a", "where": {"dynamodb": {"NewImage": {"status": {"S": [{"exists": True}]}}}}},
            {"sink": "b"},
        ],
        "envelope": "debezium",
        "mask_key": "env:KEY",
        "mask": [{"path": "id", "how": "tokenise"}, {"path": "status", "how": "hash"}],
    },
    "leaves, enriched": {
        "enrich": [
            {"kind": "python", "name": "price"},
            {"kind": "lookup", "url": "https://service.test/{id}", "into": "a"},
        ],
        "to": [{"sink": "n", "where": "enriched.kind == 'dict'"}, {"sink": "none", "where": "enriched.a == null"}],
        "match": "all",
        "otherwise": "rest",
        "on_leave": "tombstone",
    },
    "masks": {
        "mask_key": "env:KEY",
        "mask": [{"path": "id", "how": "tokenise"}, {"path": "email", "how": "hash"}, {"path": "n", "how": "truncate"}],
        "where": "op != 'd'",
        "envelope": "debezium",
    },
    "sql": {"enrich": [{"kind": "sql", "query": WITH_CUSTOMERS, "tables": ["customers"]}], "envelope": "plain"},
    "lookup": {"enrich": [{"kind": "lookup", "url": "https://service.test/{id}", "into": "a"}], "envelope": "plain"},
    "python": {"enrich": [{"kind": "python", "name": "price"}, {"kind": "python", "name": "prices"}]},
    "all": {
        "enrich": [
            {"kind": "python", "name": "price"},
            {"kind": "sql", "query": WITH_CUSTOMERS, "tables": ["customers"]},
            {"kind": "lookup", "url": "https://service.test/{id}", "into": "a"},
            {"kind": "compute", "as": "enriched.a == null ? 0 : 1", "into": "known"},
        ],
        "mask_key": "env:KEY",
        "mask": [{"path": "enriched.tier", "how": "hash"}, {"path": "total", "how": "redact"}],
        "to": [{"sink": "known", "where": "enriched.known == 1"}, {"sink": "others"}],
        "envelope": "plain",
    },
}
MEANS = CompileContext(
    rows={"customers": CUSTOMERS},
    functions={"price": Function("price", price, batch=False), "prices": Function("prices", prices, batch=True)},
    mask_key=lambda uri: KEY,
    lookup=lambda step: asking(http(), "reject"),
)


@pytest.mark.parametrize("name", FLOWS)
@given(values=st.lists(records(), min_size=1, max_size=8))
@settings(max_examples=60, deadline=None)
def test_a_flow_does_the_same_in_a_batch_and_change_by_change(name: str, values: list[bytes]) -> None:
    batch, single = (flow(means=MEANS, **FLOWS[name]) for _ in "ab")  # neither remembers the answers of the other
    changes = [Given(n, b"k", value, decode(value), 0.0) for n, value in enumerate(values)]

    def told(results: Any) -> list[Any]:
        return [
            (result.given.offset, result.messages, str(result.error), result.stage if result.error else "")
            for result in results
        ]

    apart = [result for change in changes for result in single.run([change])]
    assert told(batch.run(changes)) == told(apart)


@st.composite
def changes_of_two_tables(draw: st.DrawFn) -> list[Given]:
    """Draw changes of orders and of a partitioned table with the same few composite keys, in the order of raw."""
    kinds = st.tuples(st.sampled_from(["orders", "totals"]), st.integers(1, 3), st.booleans())
    given = []
    for number, (table, key, is_there) in enumerate(draw(st.lists(kinds, min_size=1, max_size=12))):
        item = {"id": {"S": "a"}, "n": {"N": str(key)}, "version": {"N": str(number)}}
        value = record(item if is_there else None, item, ("id", "n"), number, table)
        change = decode(value)
        given.append(Given(number, item_key(change.body.keys), value, change, 0.0))
    return given


@pytest.mark.parametrize("tables", [["orders"], []], ids=["one table", "also those of the partitioned table"])
@given(given=changes_of_two_tables(), most=st.integers(1, 12))
@settings(max_examples=150, deadline=None)
def test_a_partitioned_join_finds_in_a_batch_what_it_finds_change_by_change(
    tables: list[str], given: list[Given], most: int
) -> None:
    def run(parts: Iterable[list[Given]]) -> list[Any]:
        items: dict[bytes | None, bytes] = {}
        join = {"kind": "join", "table": "totals", "state": "partitioned", "into": "total", "missing": "reject"}
        compiled = flow({"partitioned:totals": items.get}, tables=tables, enrich=[join])
        results: list[Result] = []
        for part in parts:
            for one in part:  # as the worker does: all that a piece puts, then the flows
                if one.change.table == "totals" and one.change.after is not None:
                    items[one.key] = one.change.after
                elif one.change.table == "totals":
                    items.pop(one.key, None)
            results += compiled.run(part)
        return [(result.given.offset, result.messages, str(result.error)) for result in results]

    together = list(pieces(given, frozenset({"totals"}), most))
    assert [one for part in together for one in part] == given
    assert all(len(part) <= most for part in together)
    assert run(together) == run([one] for one in given)
