"""Conditions in CEL: what they can name, what they say, and the same from the C++ implementation."""

from __future__ import annotations

import json
from typing import Any

import pytest
from cel_expr_python import cel as oracle  # type: ignore[import-untyped]
from flowing import flow, sinks

from models.change import decode
from pipeline.errors import UsageError
from pipeline.steps.expression import ExpressionError, _parts, compile_expression, compile_value, plain, truth

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
        name: {attribute: plain(one) for attribute, one in image.items()}
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
        ("missing(1)", "missing"),
    ],
)
def test_what_cannot_be_told_is_an_error_and_no_answer(text: str, words: str) -> None:
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
def test_numbers_are_computed_as_doubles_when_told_so(total: str) -> None:
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
    ("text", "cheap"),
    [
        ('op == "u" && after.total > 1', ['op == "u" ']),
        ('after.total > 1 && table in ["a", "b"] && op != "d"', [' table in ["a", "b"] ', ' op != "d"']),
        ('op == "u" || table == "a" && op == "c"', []),
        ('(op == "u" && table == "a") && after.x == 1', []),
        ('after.s == "a && op == 1" && op == "u"', [' op == "u"']),
        ("after.s == 'it\\'s && op' && op == 'u'", [" op == 'u'"]),
        ('op == "u" ? true : false', []),
        ('op == after.op && table == "x"', [' table == "x"']),
    ],
)
def test_what_needs_no_image_is_told_apart(text: str, cheap: list[str]) -> None:
    assert _parts(text)[0] == cheap


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
def test_another_key_is_told_without_the_rest(key: str, rest: str) -> None:
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
