"""Enrichment by SQL, by look-up and by functions of users."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from support.http_service import Service
from support.made_events import done, event, outcome, record

from headwater import DROP, Change, enrich
from headwater.testing import change, run
from pipeline.errors import TransientError, UsageError
from pipeline.flows.compile import CompileContext, FixedRows, compile_flow
from pipeline.services.lookups import lookup
from pipeline.settings.enrich import LookupSettings
from pipeline.settings.flows import FlowSettings
from pipeline.steps.lookup import FAILURES, AnswerCache, Breaker, compile_lookup
from pipeline.steps.python import load_functions
from pipeline.steps.sql import QueryError, compile_query

ORDER: dict[str, Any] = {
    "id": {"S": "o-1"},
    "customer": {"S": "c 1/ä"},
    "total": {"N": "10.50"},
    "lines": {"L": [{"N": "1"}]},
}


# -- SQL --------------------------------------------------------------------------------------------------------------


class Table:
    """A reference table of one item."""

    def version(self) -> object:
        return 1

    def rows(self) -> list[tuple[bytes, bytes]]:
        return [(b'{"S":"c 1/\xc3\xa4"}', b'{"id":{"S":"c 1/\xc3\xa4"},"tier":{"S":"gold"}}')]


def added(query: str, *values: bytes) -> list[Any]:
    return [outcome(one) for one in done(compile_query(query, {"customers": Table()}), *values)]


def selecting(expression: str) -> str:
    return " ".join(["SELECT id,", expression, "AS x FROM changes"])


def test_a_query_adds_its_columns_by_their_types() -> None:
    (one,) = added(
        "SELECT id, 2 * CAST(json_extract_string(after, '$.total') AS DECIMAL(38, 2)) AS doubled, 1.5::DOUBLE AS d, "
        "'x' AS text, NULL AS nothing, true AS yes, [1, 2] AS list, {'a': 1} AS struct, 'a'::BLOB AS blob FROM changes",
        record(ORDER),
    )
    assert one["added"] == {
        "doubled": {"N": "21"},
        "d": {"N": "1.5"},
        "text": {"S": "x"},
        "nothing": {"NULL": True},
        "yes": {"BOOL": True},
        "list": {"L": [{"N": "1"}, {"N": "2"}]},
        "struct": {"M": {"a": {"N": "1"}}},
        "blob": {"B": "YQ=="},
    }


def test_a_query_reads_tables_with_a_sort_key_and_topics() -> None:
    item = b'{"tier":{"S":"gold"}}'
    flow = FlowSettings.model_validate(
        {
            "name": "f",
            "to": "a",
            "enrich": [
                {
                    "kind": "sql",
                    "tables": ["lines", "topic:crm.tiers"],
                    "query": "SELECT id, lines.item ->> 'tier' AS line, tiers.item ->> 'tier' AS tier FROM changes "
                    "LEFT JOIN lines ON (lines.key ->> 'order') = (after ->> 'id') AND (lines.key ->> 'n')::INT = 1 "
                    """LEFT JOIN "crm.tiers" tiers ON tiers.key = json_extract(after, '$.customer')""",
                }
            ],
        }
    )
    rows = {
        "lines": FixedRows({b'{"n":{"N":"1"},"order":{"S":"o-1"}}': b'{"tier":{"S":"a"}}'}),
        "topic:crm.tiers": FixedRows({"c 1/ä".encode(): item}),
    }
    (one,) = done(compile_flow(flow, CompileContext(rows=rows)).enrich[0][1], record(ORDER))
    assert outcome(one)["added"] == {"line": {"S": "a"}, "tier": {"S": "gold"}}


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("12345678901234567890123456789012345678::HUGEINT", {"N": "12345678901234567890123456789012345678"}),
        ("1234567890123456789012345678901.1234500::DECIMAL(38, 7)", {"N": "1234567890123456789012345678901.12345"}),
        ("[100.50::DECIMAL(38, 2)]", {"L": [{"N": "100.5"}]}),
        ("100::DECIMAL(38, 2)", {"N": "100"}),
        ("0::DECIMAL(38, 2)", {"N": "0"}),
        ("DATE '2026-01-02'", {"S": "2026-01-02"}),
        ("TIME '10:00:00'", {"S": "10:00:00"}),
        ("TIMESTAMPTZ '2026-01-02 03:04:05.5+00'", {"S": "2026-01-02T03:04:05.500000Z"}),
        ("MAP {'a': [DATE '2026-01-02', NULL]}", {"M": {"a": {"L": [{"S": "2026-01-02"}, {"NULL": True}]}}}),
        ("array_value(1, 2)", {"L": [{"N": "1"}, {"N": "2"}]}),
        ("'a'::ENUM('a', 'b')", {"S": "a"}),
        ("union_value(n := 1)", {"N": "1"}),
    ],
)
def test_a_value_is_added_exactly_whatever_its_type(expression: str, value: Any) -> None:
    (one,) = added(selecting(expression), record(ORDER))
    assert one["error"] is None
    assert one["added"] == {"x": value}


@pytest.mark.parametrize("expression", ["'NaN'::DOUBLE", "'infinity'::TIMESTAMP", "MAP {1: 2}"])
def test_a_value_that_dynamodb_has_not_rejects_its_change(expression: str) -> None:
    query = selecting(f"CASE op WHEN 'd' THEN {expression} END")
    good, bad = added(query, record(ORDER), record(None, ORDER))
    assert good["added"] == {"x": {"NULL": True}}
    assert bad["error"].startswith("QueryError: ")


@pytest.mark.parametrize("type_name", ["UHUGEINT", "BIT", "BIGNUM", "TIMESTAMP_NS"])
def test_a_type_that_would_not_stay_exact_is_refused_before(type_name: str) -> None:
    for expression in (f"NULL::{type_name}", f"[NULL::{type_name}]", f"{{'a': MAP {{'b': NULL::{type_name}}}}}"):
        with pytest.raises(QueryError, match=f"x is a {type_name}, which cannot be added exactly: CAST it to VARCHAR"):
            compile_query(selecting(expression), {})


def test_decimals_keep_their_value_and_lose_the_zeros_at_their_end() -> None:
    texts = ("0.0000000012", "0", "-0.50", "120", "123456789012.5")
    query = selecting("CAST(json_extract_string(after, '$.total') AS DECIMAL(38, 12))")
    numbers = [one["added"]["x"] for one in added(query, *[record({**ORDER, "total": {"N": text}}) for text in texts])]
    wanted = ("0.0000000012", "0", "-0.5", "120", "123456789012.5")
    assert numbers == [{"N": one} for one in wanted]


def test_a_query_joins_reference_tables_and_leaves_out_what_it_does_not_give_back() -> None:
    query = (
        "SELECT changes.id, item ->> 'tier' AS tier FROM changes JOIN customers "
        "ON json_extract_string(after, '$.customer') = json_extract_string(customers.key, '$')"
    )
    one, other = added(query, record(ORDER), record({**ORDER, "customer": {"S": "nobody"}}))
    assert one["added"] == {"tier": {"S": "gold"}}
    assert other["gone"]


def test_a_query_over_a_window_of_the_batch_sees_the_whole_batch() -> None:
    first, second = added("SELECT id, count(*) OVER () AS n FROM changes", record(ORDER), record(ORDER, number=2))
    assert first["added"] == second["added"] == {"n": {"N": "2"}}


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("SELECT", "Parser Error"),
        ("SELECT nothing FROM changes", "nothing"),
        ("SELECT * FROM read_csv('/etc/passwd')", "disabled"),
        ("SELECT op FROM changes", "must select id"),
        ("SELECT sum(id) AS id FROM changes", "id is a HUGEINT"),
        ("SELECT id, op AS x, op AS x FROM changes", "selects x more than once"),
    ],
)
def test_a_query_that_cannot_be_run_is_refused_before(query: str, words: str) -> None:
    with pytest.raises(QueryError, match=words):
        compile_query(query, {})


def test_columns_are_there_however_they_are_asked_for() -> None:
    both = record(ORDER, {**ORDER, "total": {"N": "1"}})
    (one,) = added("SELECT id, \"BEFORE\" ->> 'total' AS old, Key ->> 'id' AS k FROM changes", both)
    assert one["added"] == {"old": {"S": "1"}, "k": {"S": "o-1"}}
    (one,) = added("SELECT id, c.after ->> 'id' AS new FROM (SELECT * FROM changes) AS c", both)
    assert one["added"] == {"new": {"S": "o-1"}}


@pytest.mark.parametrize(
    "query",
    [
        "FROM changes",
        "SELECT id, COLUMNS(c -> c LIKE 'k%') FROM changes",
        "SELECT unnest(changes) FROM changes",
    ],
)
def test_columns_are_there_where_a_query_means_them_without_their_names(query: str) -> None:
    (one,) = added(query, record(ORDER))
    assert one["added"]["key"] == {"S": '{"id":"o-1"}'}


def test_only_the_changes_at_fault_are_rejected() -> None:
    odd = record({**ORDER, "total": {"S": "much"}})
    good, bad = added("SELECT id, CAST(after ->> 'total' AS DECIMAL) AS n FROM changes", record(ORDER), odd)
    assert good["error"] is None
    assert "Conversion Error" in bad["error"]
    (twice,) = added("SELECT id, unnest([1, 2]) AS n FROM changes", record(ORDER))
    assert "more than one row for a change" in twice["error"]


# -- look-ups ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def service() -> Service:
    return Service()


def looked_up(address: str, *values: bytes, **more: Any) -> list[Any]:
    settings = LookupSettings.model_validate(
        {"kind": "lookup", "url": f"{address}/c/{{customer}}", "into": "c", **more}
    )
    step = lookup(settings, {"TOKEN": "s3cret"})
    return [outcome(one) for one in done(step, *values)]


def test_an_answer_is_added_exact_and_each_question_is_asked_once(service: Service) -> None:
    with service.running() as address:
        one, other = looked_up(address, record(ORDER), record(ORDER), headers={"Authorization": "Bearer ${TOKEN}"})
    assert one["added"]["c"] == {"M": {"tier": {"S": "gold"}, "score": {"N": "0.1234567890123456789"}}}
    assert other == one
    ((path, headers),) = service.asked
    assert path == "/c/c%201%2F%C3%A4"
    assert headers["Authorization"] == "Bearer s3cret"


def test_what_is_not_there_is_null_and_what_is_refused_is_rejected(service: Service) -> None:
    service.status = 404
    with service.running() as address:
        assert looked_up(address, record(ORDER))[0]["added"] == {"c": {"NULL": True}}
        assert looked_up(address, record({"id": {"S": "x"}}))[0]["added"] == {"c": {"NULL": True}}
        service.status = 400
        assert "answered 400" in looked_up(address, record(ORDER))[0]["error"]


def test_a_failure_is_tried_again_rejected_or_passed_on(service: Service) -> None:
    service.status = 503
    with service.running() as address:
        with pytest.raises(TransientError, match=r"the lookup into c has no answer: .* answered 503") as caught:
            looked_up(address, record(ORDER))
        assert "%C3%A4" not in str(caught.value), "no values of the change in messages"
        assert "answered 503" in looked_up(address, record(ORDER), on_failure="reject")[0]["error"]
        passed = looked_up(address, record(ORDER), on_failure="pass")[0]
        assert passed["added"] == {"c": {"NULL": True}}
        assert passed["marks"] == [("lookup_failed", b"c")]
    with pytest.raises(TransientError, match=r"127\.0\.0\.1"):
        looked_up(address, record(ORDER))


@pytest.mark.parametrize("text", ["", ".", ".."])
def test_a_value_that_would_name_another_place_is_not_asked_for(service: Service, text: str) -> None:
    with service.running() as address:
        settings = LookupSettings.model_validate(
            {"kind": "lookup", "url": f"{address}/c/{{customer}}/open", "into": "c"}
        )
        assert outcome(done(lookup(settings, {}), record({**ORDER, "customer": {"S": text}}))[0])["added"] == {
            "c": {"NULL": True}
        }
        settings = settings.model_copy(update={"url": f"{address}/c?of={{customer}}"})
        done(lookup(settings, {}), record({**ORDER, "customer": {"S": text}}))
    assert [path for path, _ in service.asked] == [f"/c?of={text}"]


def customers(*names: str) -> list[bytes]:
    return [record({**ORDER, "customer": {"S": name}}) for name in names]


def test_a_batch_does_not_wait_for_each_of_its_questions_when_the_service_is_down(service: Service) -> None:
    service.status = 503
    with service.running() as address:
        found = looked_up(address, *customers(*map(str, range(300))), on_failure="pass", concurrency=4)
    assert all(one["marks"] for one in found)
    assert FAILURES <= len(service.asked) < 100


def test_one_question_that_always_fails_leaves_the_others_their_answers(service: Service) -> None:
    service.statuses = {"/c/odd": 500}
    with service.running() as address:
        settings = LookupSettings.model_validate(
            {"kind": "lookup", "url": f"{address}/c/{{customer}}", "into": "c", "on_failure": "pass"}
        )
        step = lookup(settings, {})
        for batch in range(2 * FAILURES):
            found = [outcome(one) for one in done(step, *customers("odd", f"{batch}-1", f"{batch}-2"))]
            assert [len(one["marks"]) for one in found] == [1, 0, 0]


def test_a_kept_connection_that_the_service_has_closed_is_not_a_failure(service: Service) -> None:
    service.hangs_up = True
    with service.running() as address:
        found = looked_up(address, *customers(*map(str, range(50))), on_failure="pass", concurrency=1)
    assert not any(one["marks"] for one in found)


# -- look-ups in DynamoDB ---------------------------------------------------------------------------------------------


def batch_get_item(body: bytes) -> tuple[int, bytes]:
    """Answer as DynamoDB does: a key that is asked for twice, or is of another type, has the whole call refused."""
    keys = json.loads(body)["RequestItems"]["prices"]["Keys"]
    numbers = [Decimal(key["sku"]["N"]) for key in keys if "N" in key["sku"]]
    if len(numbers) != len(keys) or len(set(numbers)) != len(numbers):
        return 400, b'{"__type": "com.amazon.coral.validate#ValidationException", "message": "no"}'
    items = [{"sku": {"N": str(n)}, "price": {"N": "0.10"}} for n in numbers if n % 7]
    return 200, json.dumps({"Responses": {"prices": items}, "UnprocessedKeys": {}}).encode()


def priced(service: Service, patch: pytest.MonkeyPatch, *skus: dict[str, Any]) -> list[Any]:
    service.posted = batch_get_item
    table = {"kind": "lookup", "table": "prices", "key": {"sku": "sku"}, "into": "p", "region": "eu-west-1"}
    with service.running() as address:
        for name, value in (("ENDPOINT_URL_DYNAMODB", address), ("ACCESS_KEY_ID", "x"), ("SECRET_ACCESS_KEY", "x")):
            patch.setenv(f"AWS_{name}", value)
        step = lookup(LookupSettings.model_validate(table), {})
        return [outcome(one) for one in done(step, *[record({**ORDER, "sku": sku}) for sku in skus])]


def test_equal_keys_are_asked_for_once(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    found = priced(service, monkeypatch, {"N": "1"}, {"N": "1.0"}, {"N": "7"}, {"N": "1e0"})
    assert [one["error"] for one in found] == [None] * 4
    assert found[0]["added"] == {"p": {"M": {"sku": {"N": "1"}, "price": {"N": "0.10"}}}}
    assert found[1]["added"] == found[3]["added"] == found[0]["added"]
    assert found[2]["added"] == {"p": {"NULL": True}}


def test_a_key_of_another_type_rejects_its_own_change_alone(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    found = priced(service, monkeypatch, {"N": "1"}, {"S": "one"}, {"N": "2"}, {"L": []}, {"S": ""}, {"N": "3"})
    assert ["RefusedError" in (one["error"] or "") for one in found] == [False, True, False, False, False, False]
    assert [one["added"].get("p") == {"NULL": True} for one in found] == [False, False, False, True, True, False]


def test_a_variable_that_is_not_set_is_said_at_once() -> None:
    settings = LookupSettings.model_validate(
        {"kind": "lookup", "url": "http://x", "into": "c", "headers": {"A": "${NOTHING}"}}
    )
    with pytest.raises(UsageError, match="the variable NOTHING"):
        lookup(settings, {})


def test_a_service_that_fails_often_is_left_alone_for_a_while() -> None:
    now = [0.0]
    breaker = Breaker(lambda: now[0])
    left_alone = []
    for _ in range(FAILURES):
        left_alone.append(breaker.open)
        breaker.count(failed=True)
    left_alone.append(breaker.open)
    now[0] = 1.1
    left_alone.append(breaker.open)
    breaker.count(failed=True)
    now[0] = 2.5
    left_alone.append(breaker.open)  # twice as long as before
    now[0] = 3.2
    breaker.count(failed=False)
    breaker.count(failed=True)
    left_alone.append(breaker.open)
    assert left_alone == [False] * FAILURES + [True, False, True, False]


def test_calls_that_were_under_way_when_a_service_is_given_up_make_the_pause_no_longer() -> None:
    now = [0.0]
    breaker = Breaker(lambda: now[0])
    for _ in range(FAILURES + 60):
        breaker.count(failed=True)
    now[0] = 1.1
    assert not breaker.open


def test_answers_are_remembered_as_long_as_they_may() -> None:
    now = [0.0]
    memory = AnswerCache(10, ttl=10, missing_ttl=1, clock=lambda: now[0])
    value = event(record(ORDER)).change.body.keys
    memory.put(b"a", value)
    memory.put(b"b", None)
    memory.put(b"c", ValueError())
    unknown = ValueError()
    assert [memory.get(one, unknown) for one in (b"a", b"b", b"c")] == [value, None, unknown]
    now[0] = 2
    assert [memory.get(one, unknown) for one in (b"a", b"b")] == [value, unknown]
    now[0] = 11
    assert memory.get(b"a", unknown) is unknown


def test_a_batch_that_takes_too_long_gets_further_with_each_try() -> None:
    now, asked = [0.0], list[int]()

    def ask(questions: Sequence[bytes]) -> dict[bytes, Any]:
        asked.append(len(questions))
        now[0] += 4
        return dict.fromkeys(questions)

    memory = AnswerCache(10_000, 60, 60, lambda: now[0])
    step = compile_lookup("a", lambda one: one.key, ask, memory, "retry", lambda: now[0])
    events = [event(record({"id": {"S": f"k{number}"}})) for number in range(1_000)]
    with pytest.raises(TransientError, match="longer than 6 s"):
        step(events)
    step(events)
    assert asked == [400, 400, 200]
    assert all(one.added for one in events)
    asked.clear()
    forgetful = compile_lookup("a", lambda one: one.key, ask, AnswerCache(0, 60, 60), "retry", lambda: now[0])
    forgetful(events)
    assert asked == [400, 400, 200], "what is not remembered is asked in one go, however long it takes"


# -- functions --------------------------------------------------------------------------------------------------------


@enrich("vat")
def vat(change: Change) -> Any:
    if change.after is None:
        return DROP
    return {"vat": change.after["total"] / 5, "who": f"{change.op} {change.table} {change.key['id']}"}


@enrich("shares", batch=True)
def shares(changes: list[Change]) -> list[Any]:
    return [{"share": one.after["total"]} if one.after else None for one in changes]


def test_a_function_is_tried_without_kafka() -> None:
    found = run(
        vat, change("orders", new={"id": "o", "total": 100, "seal": b"\x00"}), change("orders", old={"id": "o"})
    )
    assert found == [{"vat": Decimal(20), "who": "c orders o"}, DROP]
    with pytest.raises(KeyError, match="total"):
        run(vat, change("orders", new={"id": "o"}))
    assert run(shares, change("t", new={"id": "a", "total": 1.5}), change("t", old={"id": "b"})) == [
        {"share": Decimal("1.5")},
        {},
    ]


def test_the_name_of_what_is_added_is_text() -> None:
    def numbered(change: Change) -> Any:
        return {1: change.op}

    with pytest.raises(ValueError, match="the name of an attribute is text, not int"):
        run(enrich("numbered")(numbered), change("orders", new={"id": "o"}))


def test_a_change_is_made_of_plain_values() -> None:
    one = change("orders", new={"id": "o", "tags": {"b", "a"}}, old={"id": "o"}, event_id="e", at=5)
    assert one["eventName"] == "MODIFY"
    assert one["dynamodb"]["NewImage"]["tags"] == {"SS": ["a", "b"]}
    assert one["dynamodb"]["Keys"] == {"id": {"S": "o"}}


def test_functions_are_found_in_modules_by_their_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine_found.py").write_text(
        "from headwater import enrich\n@enrich('one')\ndef first(change):\n    return {'n': 1}\n"
    )
    (tmp_path / "mine_broken.py").write_text("import nothing_of_the_kind\n")
    (tmp_path / "mine_twice.py").write_text(
        "from headwater import enrich\n@enrich('one')\ndef other(change):\n    pass\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    assert list(load_functions(["mine_found"])) == ["one"]
    with pytest.raises(UsageError, match="mine_broken cannot be imported: ModuleNotFoundError"):
        load_functions(["mine_broken"])
    with pytest.raises(UsageError, match="two functions are declared as 'one'"):
        load_functions(["mine_found", "mine_twice"])
    for name in ("mine_found", "mine_twice"):
        sys.modules.pop(name)
