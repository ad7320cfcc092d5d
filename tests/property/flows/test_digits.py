"""A number of DynamoDB is never another number: by every step, in every envelope, and where people look at it."""

from __future__ import annotations

import io
import json
import os
from decimal import Context, Decimal
from pathlib import Path
from typing import Any

import fastavro
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support.compiled_flows import run as run_flow

from headwater import enrich
from headwater.testing import change as changed
from headwater.testing import run
from models.attributes import python_value
from pipeline.files import exact_json
from pipeline.flows import golden
from pipeline.flows.compile import CompileContext, NewRegistry, compile_flow, onlooking
from pipeline.flows.explain import explain
from pipeline.settings.flows import FlowSettings
from pipeline.settings.root import Settings
from pipeline.steps.python import Function

pytestmark = pytest.mark.slow

EXAMPLES = int(os.environ.get("HEADWATER_TEST_EXAMPLES", "25"))
DIGITS = Context(prec=38)


@st.composite
def numbers(draw: st.DrawFn) -> str:
    """Return a number as DynamoDB writes it: 38 digits at most, between 1E-130 and 9.9E+125."""
    count = draw(st.one_of(st.integers(1, 38), st.just(38), st.just(17)))
    digits = draw(st.integers(10 ** (count - 1), 10**count - 1))
    exponent = draw(st.one_of(st.integers(-130, 126 - count), st.integers(-min(count, 20), 0)))
    number = Decimal(digits).scaleb(exponent, DIGITS) * draw(st.sampled_from([1, -1]))
    return draw(st.sampled_from([str(number), format(number, "f")])) if exponent > -60 else str(number)


LONG = "12345678901234567890123456789012345678"
SQL = """
SELECT changes.id, after ->> 'n' AS sql, changes.before ->> 'n' AS sql_before, changes.key ->> 'k' AS sql_key,
       item ->> 'n' AS sql_item, enriched ->> 'passed' AS sql_enriched
FROM changes LEFT JOIN items ON items.key = json_extract(after, '$.id')
"""
TEXTS = {"sql", "sql_before", "sql_key", "sql_item", "sql_enriched"}
STEPS: list[dict[str, Any]] = [
    {"kind": "join", "table": "items", "on": "id", "into": "joined"},
    {"kind": "compute", "as": "after.n", "into": "passed"},
    {"kind": "compute", "as": '{"n": after.n, "list": [after.n, enriched.joined.n]}', "into": "built"},
    {"kind": "lookup", "url": "https://service.test/{id}", "into": "answer"},
    {"kind": "python", "name": "same"},
    {"kind": "sql", "tables": ["items"], "query": SQL},
]


def same(event: Any) -> dict[str, Any]:
    number = event.after["n"]
    return {"python": number + 0, "sum": number + number - number, "product": number * number}


def means(text: str) -> CompileContext:
    """Return what the steps need: an item and an answer with the number."""
    items = [{"id": {"S": "i"}, "n": {"N": text}}]
    base = onlooking([flow()], (), {"items": items}, {"answer": exact_json.loads(f'{{"n": {text}}}')})
    return CompileContext(
        **{**vars(base), "functions": {"same": Function("same", same, batch=False)}, "registry": NewRegistry()}
    )


def flow(**more: Any) -> FlowSettings:
    return FlowSettings.model_validate({"name": "f", "to": "s", "enrich": STEPS, "envelope": "plain", **more})


def record(text: str) -> bytes:
    image = {"id": {"S": "i"}, "k": {"N": text}, "n": {"N": text}}
    body = {"Keys": {"id": {"S": "i"}, "k": {"N": text}}, "NewImage": image, "OldImage": image}
    whole = {"eventID": "e", "eventName": "MODIFY", "tableName": "orders", "dynamodb": body}
    return json.dumps(whole).encode()


def is_all_right(found: dict[str, Any], text: str) -> None:
    """Fail unless all that was added is the number, and the product of it by itself."""
    number = Decimal(text)
    assert found.pop("product") == Context(prec=76).multiply(number, number)
    assert found.pop("joined")["n"] == found.pop("answer")["n"] == found.pop("python") == found.pop("sum") == number
    assert found.pop("passed") == number
    assert found.pop("built") == {"n": number, "list": [number, number]}
    assert {name: Decimal(found.pop(name)) for name in sorted(TEXTS)} == dict.fromkeys(sorted(TEXTS), number)


@settings(max_examples=EXAMPLES, deadline=None)
@given(numbers())
@example("90071992547409.93")
@example(LONG)
@example("-0.00000012345678901234567890123456789012345678")
@example("9007199254740993")
@example("9223372036854775808")
def test_every_step_and_envelope_keeps_all_digits(text: str) -> None:
    number, given_means = Decimal(text), means(text)
    (result,) = run_flow(compile_flow(flow(), given_means), record(text))
    assert result.error is None, result.error
    found = exact_json.loads(result.messages[0].value or b"")
    assert (found.pop("n"), found.pop("k"), found.pop("id")) == (number, number, "i")
    is_all_right(found, text)
    assert found == {}
    for kind in ("debezium", "cloudevents"):
        (result,) = run_flow(compile_flow(flow(envelope=kind), given_means), record(text))
        found = exact_json.loads(result.messages[0].value or b"")
        assert found["before"]["n"] == found["after"]["n"] == number
        is_all_right(found["enriched"], text)
    (result,) = run_flow(compile_flow(flow(envelope="dynamodb"), given_means), record(text))
    found = json.loads(result.messages[0].value or b"")
    assert Decimal(found["dynamodb"]["NewImage"]["n"]["N"]) == number
    is_all_right({name: python_value(value) for name, value in found["enriched"].items()}, text)


@settings(max_examples=EXAMPLES, deadline=None)
@given(numbers())
@example(LONG)
def test_a_cast_in_sql_is_exact(text: str) -> None:
    number = Decimal(text)
    sign, digits, exponent = number.as_tuple()
    assert isinstance(exponent, int)
    scale = max(0, -exponent)
    if scale > 37 or len(digits) + max(exponent, 0) > 38 or number.adjusted() + 1 + scale > 38:
        return  # no DECIMAL(38, s) holds it; DuckDB casts 1e-11 to none with s = 38, which is an error
    query = f"SELECT id, CAST(after ->> 'n' AS DECIMAL(38, {scale})) AS found FROM changes"  # noqa: S608 - a number
    steps = [{"kind": "sql", "query": query}]
    (result,) = run_flow(compile_flow(flow(enrich=steps), onlooking([])), record(text))
    assert exact_json.loads(result.messages[0].value or b"")["found"] == number, sign


@settings(max_examples=EXAMPLES, deadline=None)
@given(numbers())
@example(LONG)
def test_avro_readers_find_all_digits(text: str) -> None:
    registry = NewRegistry()
    avro = flow(enrich=[], format={"kind": "avro", "on_conflict": "widen"})
    (result,) = run_flow(compile_flow(avro, CompileContext(registry=registry)), record(text))
    assert result.error is None, result.error
    schema = json.loads(registry.latest("s-value") or "")
    found: Any = fastavro.schemaless_reader(io.BytesIO((result.messages[0].value or b"")[5:]), schema, None)
    assert Decimal(found["n"]) == Decimal(text)


@settings(max_examples=EXAMPLES, deadline=None)
@given(numbers())
@example("12345678901234567890.12345678")
def test_people_see_all_digits_and_inputs_are_left_alone(text: str) -> None:
    number = Decimal(text)
    (trace,) = explain([flow()], record(text), means(text))
    shown = exact_json.loads(exact_json.dumps(trace.json(), ascii_only=True))
    assert shown["messages"][0]["value"]["n"] == number
    assert f'"N":"{text}"' in str(shown["steps"][0]["details"])


def test_an_updated_golden_file_keeps_its_inputs_to_the_letter(tmp_path: Path) -> None:
    inputs = (
        '{ "event": {"eventID": "e-1", "eventName": "INSERT", "tableName": "orders",\n'
        '    "dynamodb": {"Keys": {"id": {"S": "i"}}, "NewImage": {"id": {"S": "i"}, "n": {"N": "1.50"}}}},\n'
        f'  "lookups": {{"answer": {{"n": 0.{LONG}, "m": [1.0, 2E+3], "expect": "\\u00e9"}}}}'
    )
    file = tmp_path / "case.json"
    settings_of_flow = Settings.model_validate(
        {
            "flows": [
                {"name": "f", "to": "s", "envelope": "plain", "enrich": [STEPS[3] | {"url": "https://a.test/{id}"}]}
            ]
        }
    )
    for expected in (', "expect": [{"flow": "g"}]\n}\n', "\n}\n", ',\n  "expect":[] }'):
        file.write_text(inputs + expected)
        assert not golden.check(file, settings_of_flow).ok
        assert golden.check(file, settings_of_flow, update=True).ok
        assert file.read_text().startswith(inputs)
        assert f'"n": 0.{LONG}' in file.read_text()[len(inputs) :]
        assert golden.check(file, settings_of_flow).ok
        file.write_text(file.read_text().replace(f'"n": 0.{LONG}', f'"n": 0.{LONG[:-1]}9'))
        assert golden.check(file, settings_of_flow).ok, "input and outcome are others, and the same"
        text = file.read_text()
        file.write_text(text[: len(inputs)] + text[len(inputs) :].replace(f"0.{LONG[:-1]}9", f"0.{LONG}"))
        assert not golden.check(file, settings_of_flow).ok


@given(numbers(), numbers())
@settings(max_examples=EXAMPLES, deadline=None)
def test_functions_of_users_get_and_compute_exact_numbers(one: str, other: str) -> None:
    @enrich("product")
    def product(change: Any) -> dict[str, Any]:
        return {"product": change.after["one"] * change.after["other"]}

    (found,) = run(product, changed("t", new={"id": "x", "one": Decimal(one), "other": Decimal(other)}))
    assert found["product"] == Context(prec=200).multiply(Decimal(one), Decimal(other))
