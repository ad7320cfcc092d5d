"""Conditions in CEL: what they can name, what they say, and the same from the C++ implementation."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

import pytest
from cel_expr_python import cel as oracle  # type: ignore[import-untyped]
from support.compiled_flows import flow, sinks

from models.change import decode
from pipeline.errors import UsageError
from pipeline.steps.expression import (
    FUNCTIONS,
    TYPES,
    ExpressionError,
    clauses,
    compile_expression,
    compile_value,
    number_of,
    plain_number,
    truth,
)

BEFORE: dict[str, Any] = {"id": {"S": "o-1"}, "total": {"N": "5"}, "tags": {"SS": ["b", "a"]}, "gone": {"BOOL": True}}
AFTER: dict[str, Any] = {
    "id": {"S": "o-1"},
    "total": {"N": "7.50"},
    "count": {"N": "12"},
    "huge": {"N": "12345678901234567890123"},
    "tags": {"SS": ["a", "b"]},
    "status": {"S": "paid"},
    "nothing": {"NULL": True},
    "raw": {"B": "Af8="},
    "place": {"M": {"city": {"S": "Graz"}, "list": {"L": [{"N": "1"}, {"S": "x"}]}}},
    "class": {"S": "a name that CEL reserves"},
}


def change(**members: Any) -> bytes:
    body = {"Keys": {"id": {"S": "o-1"}}, "NewImage": AFTER, "OldImage": BEFORE, **members.pop("body", {})}
    whole = {"eventID": "e", "eventName": "MODIFY", "tableName": "orders", "dynamodb": body, **members}
    return json.dumps({name: value for name, value in whole.items() if value is not None}).encode()


def holds(text: str, value: bytes = change()) -> bool:
    return compile_expression(text)(value, decode(value))


TRUE = [
    'op == "u" && table == "orders"',
    'key.id == "o-1"',
    "after.total > 7.0 && after.total > before.total",
    "after.count == 12 && after.count + 1 == 13",
    "after.huge > 1.0e22",
    'after.status in ["paid", "shipped"]',
    'after.status.startsWith("pa") && size(after.status) == 4',
    "has(after.status) && !has(before.status)",
    "after.nothing == null",
    'after.place.city == "Graz" && after.place.list[0] == 1',
    'after["status"] == "paid"',
    'after["class"] != ""',
    'size(after) == 10 && "status" in after',
    'after.raw == b"\\x01\\xff"',
    '"a" in after.tags && after.tags.all(t, size(t) == 1)',
    'changed("total") && changed("status") && changed("gone") && !changed("tags") && !changed("id")',
    "!ttl_expired",
    'after.status.matches("^p.*d$")',
    'after.total > 5.0 ? after.status == "paid" : false',
]


@pytest.mark.parametrize("text", TRUE)
def test_what_holds(text: str) -> None:
    assert holds(text)
    assert not holds(f"!({text})")


@pytest.mark.parametrize("text", [text for text in TRUE if "changed(" not in text])
def test_the_cpp_implementation_says_the_same(text: str) -> None:
    value = change()
    images = {
        name: {
            attribute: plain_number(one, float if attribute == "huge" else number_of)
            for attribute, one in image.items()
        }
        for name, image in (("before", BEFORE), ("after", AFTER))
    }
    facts = {"op": "u", "table": "orders", "key": {"id": "o-1"}, "ttl_expired": False, **images}
    environment = oracle.NewEnv(variables=dict.fromkeys(facts, oracle.Type.DYN))
    found = environment.compile(text).eval(data=facts)
    assert found.type() == oracle.Type.BOOL, found.value()
    assert found.value() is holds(text, value)


def test_a_deletion_has_no_after_and_says_whether_it_has_expired() -> None:
    by_ttl = {"type": "Service", "principalId": "dynamodb.amazonaws.com"}
    body = {"NewImage": None}
    value = change(eventName="REMOVE", userIdentity=by_ttl, body=body)
    assert holds("ttl_expired && after == null && before.total == 5", value)
    assert not holds("ttl_expired", change(eventName="REMOVE", body=body))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("after.total >", "Syntax error"),
        ("afer.total > 1", "afer: there is no such name, expected one of op, table, key, before, after, ttl_expired"),
        ("after.tags.exists(t, t == 'a') && t == 'a'", "t: there is no such name"),
        ('after.status.startWith("p")', r"startWith: there is no such function, did you mean startsWith\?"),
        (".after.total > 1", r"\.after: there is no such name"),
        ("max(1, 2) > 1", "max: there is no such function, expected one of bytes, "),
        ("after.tags.exists(t)", "t: there is no such name"),
    ],
)
def test_what_cannot_be_compiled_says_why(text: str, words: str) -> None:
    with pytest.raises(ExpressionError, match=words):
        compile_expression(text)
    with pytest.raises(UsageError, match=f"flow f, where: .*{words}"):
        flow(where=text)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("after.nowhere > 1", "after.nowhere > 1: there is no 'nowhere': ask has"),
        ("after.status > 1", "after.status > 1: "),
        ("after.total", "gave 7.5, expected true or false"),
    ],
)
def test_what_has_no_answer_is_an_error(text: str, words: str) -> None:
    with pytest.raises(ExpressionError, match=words):
        holds(text)


DELETION = change(eventName="REMOVE", body={"NewImage": None})
INSERT = change(eventName="INSERT", body={"OldImage": None})


@pytest.mark.parametrize("text", ["after.total > 1", "has(after.total)", 'after["total"] == 1', '"total" in after'])
def test_of_a_deletion_it_is_said_that_after_is_null(text: str) -> None:
    with pytest.raises(ExpressionError, match=r"after is null, since this is a deletion: begin with op != 'd' &&"):
        holds(text, DELETION)
    assert not holds(f"op != 'd' && {text}", DELETION)


def test_of_an_insert_it_is_said_that_before_is_null() -> None:
    with pytest.raises(ExpressionError, match="before is null here: begin with before != null &&"):
        holds("before.total < after.total", INSERT)
    assert not holds("before != null && before.total < after.total", INSERT)


@pytest.mark.parametrize("total", ["50", "50.5"])
def test_numbers_are_computed_as_doubles_when_asked(total: str) -> None:
    value = change(body={"NewImage": {"total": {"N": total}}})
    assert holds("double(after.total) * 2.0 > 99.0", value)
    with pytest.raises(ExpressionError):
        holds("after.total * 2.0 > 99.0 && after.total * 2 > 99", value)


def test_patterns_and_expressions_mix_in_a_flow() -> None:
    mixed = flow(
        where={"eventName": ["MODIFY"]},
        to=[{"sink": "big", "where": "after.total > 100.0"}, {"sink": "small", "where": {"tableName": ["orders"]}}],
    )
    assert sinks(mixed, change()) == ["small"]


@pytest.mark.parametrize(
    ("text", "joined"),
    [
        ('op == "u" && after.total > 1', ['op == "u"', "after.total > 1"]),
        ('op == "u" || table == "a" && op == "c"', None),
        ('(op == "u" && table == "a") && after.x == 1', ['(op == "u" && table == "a")', "after.x == 1"]),
        ('after.s == "a && op == 1" && op == "u"', ['after.s == "a && op == 1"', 'op == "u"']),
        ("after.s == 'it\\'s && op' && op == 'u'", ["after.s == 'it\\'s && op'", "op == 'u'"]),
        ('op == "u" ? true : false', None),
        ('after.s == r"\\" && op == "u"', ['after.s == r"\\"', 'op == "u"']),
        ("after.s == '''a' && 'b''' && true", ["after.s == '''a' && 'b'''", "true"]),
        ('after.total > 5\n// && op == "c"\n', ["after.total > 5"]),
    ],
)
def test_what_is_joined_at_the_top_is_told_apart(text: str, joined: list[str] | None) -> None:
    assert clauses(text) == ([text] if joined is None else joined)


def test_a_cheap_part_that_does_not_hold_decides_without_the_image() -> None:
    assert compile_expression('op == "c" && after.nowhere > 1')(change(), decode(change())) is False
    with pytest.raises(ExpressionError, match="there is no 'nowhere'"):
        compile_expression('op == "u" && after.nowhere > 1')(change(), decode(change()))


MAPS: dict[str, Any] = {"m": {"M": {"x": {"N": "1"}, "deep": {"M": {"y": {"S": "a"}}}}}, "a.b": {"S": "old"}}


@pytest.mark.parametrize(
    ("after", "said"),
    [
        ({}, set()),
        ({"m": {"M": {**MAPS["m"]["M"], "x": {"N": "1.0"}}}}, set()),
        ({"m": {"M": {**MAPS["m"]["M"], "x": {"N": "2"}}}}, {"m", "m.x"}),
        ({"m": {"M": {"x": {"N": "1"}}}}, {"m", "m.deep", "m.deep.y"}),
        ({"m": {"S": "no map"}}, {"m", "m.x", "m.deep", "m.deep.y"}),
        ({"a.b": {"S": "new"}}, {"a.b"}),
        ({"a": {"M": {"b": {"S": "in a map"}}}}, set()),
    ],
)
def test_changed_follows_dots_into_maps_and_names_with_dots_win(after: dict[str, Any], said: set[str]) -> None:
    value = change(body={"OldImage": MAPS, "NewImage": {**MAPS, **after}})
    names = ["m", "m.x", "m.deep", "m.deep.y", "m.none", "m.x.none", "a.b"]
    assert {name for name in names if holds(f'changed("{name}")', value)} == said


@pytest.mark.parametrize("key", ["o-1", "o-2"])
@pytest.mark.parametrize("rest", ["after.nowhere > 1", "true"])
def test_another_key_is_found_without_the_rest(key: str, rest: str) -> None:
    text = f'key.id == "{key}" && {rest}'
    if key == "o-1" and rest != "true":
        with pytest.raises(ExpressionError, match="there is no 'nowhere'"):
            holds(text)
    else:
        assert holds(text) is (key == "o-1")


@pytest.mark.parametrize("status", [{"S": "paid"}, {"S": "open"}, {"N": "1"}, {"NULL": True}, None])
@pytest.mark.parametrize("rest", ["after.total > 1.0", "after.nowhere > 1", "true"])
def test_the_short_way_to_false_says_what_the_whole_expression_says(status: Any, rest: str) -> None:
    image = {"total": {"N": "7.5"}, **({} if status is None else {"status": status})}
    value = change(body={"NewImage": image})
    text = f'after.status == "paid" && {rest}'

    def told(evaluate: Any) -> Any:
        try:
            return truth(text, evaluate())
        except ExpressionError as error:
            return str(error)

    whole = compile_value(text)
    assert told(lambda: compile_expression(text)(value, decode(value))) == told(lambda: whole(value, decode(value), {}))


LONG = "12345678901234567890.12"


@pytest.mark.parametrize(
    "text",
    [
        "has(after.n) && after.n == before.n && after.n in [after.n]",
        "after.n > 5 && after.n < 1.0e20 && after.n != 5",
        "after.n > 12345678901234560000.0",
        'after.exists(name, name == "n") && "n" in after',
        "size(after) == 3",
        "after.n != after.m && !(after.n == after.m)",
        "after.all(name, name != 'nobody') ? true : false",
    ],
)
def test_numbers_that_cel_has_not_are_compared_with_all_their_digits(text: str) -> None:
    images = {"n": {"N": LONG}, "m": {"N": LONG[:-1] + "3"}, "s": {"S": LONG}}
    assert holds(text, change(body={"NewImage": images, "OldImage": images}))


@pytest.mark.parametrize("text", ["after.n < after.m", "after.n > 12345678901234567000.0", "after.n + 1.0 > after.m"])
def test_what_depends_on_digits_that_cel_has_not_is_an_error_and_no_answer(text: str) -> None:
    images = {"n": {"N": LONG}, "m": {"N": LONG[:-1] + "3"}}
    with pytest.raises(ExpressionError, match=r"depends on digits of 12345678901234567890\.12.*SQL or Python"):
        holds(text, change(body={"NewImage": images}))


def test_a_number_that_is_only_passed_on_keeps_its_digits() -> None:
    value = change(body={"NewImage": {"n": {"N": LONG}, "list": {"L": [{"N": "-0." + "1" * 38}]}}})
    found = compile_value('{"n": after.n, "list": after.list, "one": 1}')(value, decode(value), {})
    assert found == {"n": Decimal(LONG), "list": [Decimal("-0." + "1" * 38)], "one": 1}
    with pytest.raises(ExpressionError, match="SQL or Python"):
        compile_value("after.n * 2.0")(value, decode(value), {})


DAY = 'timestamp("2026-03-01T04:05:06.789Z")'
CALLS = {
    "size": 'size("é") == 1 && [1, 2].size() == 2 && size({"a": 1}) == 1 && size(b"abc") == 3',
    "contains": '"abc".contains("b")',
    "startsWith": '"abc".startsWith("ab")',
    "endsWith": '"abc".endsWith("bc")',
    "matches": '"abc".matches("^a.c$")',
    "int": 'int("5") == 5 && int(5.9) == 5',
    "uint": "uint(5) == 5u",
    "double": 'double("1.5") == 1.5 && double(1) == 1.0',
    "string": 'string(5) == "5" && string(1.5) == "1.5"',
    "bytes": 'bytes("a") == b"a"',
    "timestamp": f"{DAY} > timestamp('2026-02-28T23:00:00Z')",
    "duration": f"{DAY} - duration('1h') < {DAY}",
    "type": "type(1) == int",
    "dyn": "dyn(1) == 1",
    "getFullYear": f"{DAY}.getFullYear() == 2026",
    "getMonth": f"{DAY}.getMonth() == 2",
    "getDate": f"{DAY}.getDate() == 1",
    "getDayOfMonth": f"{DAY}.getDayOfMonth() == 0",
    "getDayOfWeek": f"{DAY}.getDayOfWeek() == 0",
    "getDayOfYear": f"{DAY}.getDayOfYear() == 59",
    "getHours": f"{DAY}.getHours() == 4",
    "getMinutes": f"{DAY}.getMinutes() == 5",
    "getSeconds": f"{DAY}.getSeconds() == 6",
    "getMilliseconds": f"{DAY}.getMilliseconds() == 789",
}


@pytest.mark.parametrize("name", sorted(FUNCTIONS - {"changed"}))
def test_each_function_that_is_said_to_exist_does_what_the_cpp_implementation_does(name: str) -> None:
    assert holds(CALLS[name])
    assert oracle.NewEnv().compile(CALLS[name]).eval(data={}).value() is True


def test_a_function_is_told_apart_from_what_it_does_not_take() -> None:
    with pytest.raises(ExpressionError, match="startsWith does not take such values"):
        holds('after.total.startsWith("p")')


@pytest.mark.parametrize("name", sorted(TYPES))
def test_each_type_that_is_said_to_exist_does(name: str) -> None:
    assert holds(f"type(after.count) == {name}") is (name == "int")


def test_the_size_of_text_counts_characters() -> None:
    value = change(body={"NewImage": {"s": {"S": "é😀"}, "b": {"B": "Af8="}, "size": {"N": "7"}}})
    assert holds("size(after.s) == 2 && after.s.size() == 2 && size(after.b) == 2 && after.size == 7", value)
