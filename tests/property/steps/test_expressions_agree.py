"""What makes expressions fast changes nothing: the whole expression, and the C++ implementation of CEL, say the same."""

from __future__ import annotations

import json
import os
from typing import Any

import pytest
from cel_expr_python import cel as oracle  # type: ignore[import-untyped]
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from models.change import decode
from pipeline.steps.expression import NAMES, ExpressionError, compile_expression, compile_value, plain_number, truth

pytestmark = pytest.mark.slow

EXAMPLES = int(os.environ.get("HEADWATER_TEST_EXAMPLES", "150"))
ATTRIBUTES = ("status", "total", "tags", "place", "size", "after", "nobody")
TEXTS = ("paid", "open", "", "a && b", "// no", 'after.status == "paid"', "é😀")
NUMBERS = ("5", "-1", "7.5", "0.1", "1E+20", "9223372036854775807")
SPACES = st.sampled_from([" ", "  ", "\n", "\t", " // it is && op == 'c'\n", "\n//\n"])


def quoted(text: str) -> st.SearchStrategy[str]:
    """Return a string of CEL in one of its spellings."""
    plain = [json.dumps(text, ensure_ascii=False)]
    if "'" not in text:
        plain += [f"'{text}'", f"'''{text}'''", f"r'{text}'"]
    if '"' not in text:
        plain += [f'"""{text}"""', f'R"{text}"']
    return st.sampled_from(plain)


texts = st.sampled_from(TEXTS).flatmap(quoted)
images = st.sampled_from(["after", "before"])


@st.composite
def attributes(draw: st.DrawFn) -> str:
    """Return what leads to an attribute, as CEL can say it."""
    image, name = draw(images), draw(st.sampled_from(ATTRIBUTES))
    forms = [f"{image}.{name}", f'{image}["{name}"]', f"{image} . {name}", f"{image}.place.city"]
    return draw(st.sampled_from(forms))


@st.composite
def atoms(draw: st.DrawFn) -> str:
    """Return a condition without && and ||."""
    image, name, text = draw(images), draw(attributes()), draw(texts)
    other, number = draw(attributes()), draw(st.sampled_from(["5", "7.5", "0", "-1"]))
    comparison = draw(st.sampled_from(["==", "!="]))
    order = draw(st.sampled_from(["<", "<=", ">", ">="]))
    return draw(
        st.sampled_from(
            [
                f'op {comparison} "c"',
                f"op in [{text}, 'u']",
                f"table {comparison} {text}",
                'table == "orders"',
                'key.id == "k"',
                f"{name} {comparison} {text}",
                f"{name} {comparison} {other}",
                f"{name} {order} {number}",
                f"{image}.total {order} {number}",
                f"has({image}.status)",
                f"{image} == null",
                f"{image} != null",
                f"{text} in {image}",
                f"{image}.exists(k, k == {text})",
                f"{image}.all(k, k != 'status')",
                f"{image}.exists_one(k, k.startsWith('s'))",
                f"{image}.filter(k, k == 'status').size() == 1",
                f"{image}.tags.exists(after, after == {text})",
                f"{image}.tags.map(t, size(t)) == [1, 1]",
                f"size({image}) == {number}",
                f"{image}.size() > 2",
                f"{image}.status.size() == 4",
                f"{image}.size == 1",
                f"{image}.status.startsWith({text})",
                f"{image}.place.city.contains({text})",
                f"({image}.total > 1 ? {name} : {other}) == {text}",
                f"{{'a': {name}}}.a == {text}",
                f"[{name}, {other}][0] == {text}",
                f"{image}.total + 1 > 6",
                f"double({image}.total) * 2.0 > 10.0",
                "ttl_expired",
                "true",
                "false",
            ]
        )
    )


def joined(parts: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    """Return expressions made of others."""
    return st.one_of(
        st.tuples(parts, SPACES, st.sampled_from(["&&", "&&", "&&", "||"]), SPACES, parts).map("".join),
        parts.map(lambda part: f"!({part})"),
        parts.map(lambda part: f"({part})"),
        st.tuples(parts, parts, parts).map(lambda three: f"({three[0]}) ? ({three[1]}) : ({three[2]})"),
        st.tuples(parts, SPACES).map("".join),
    )


expressions = st.recursive(atoms(), joined, max_leaves=6)
values = st.one_of(
    st.sampled_from(TEXTS).map(lambda text: {"S": text}),
    st.sampled_from(NUMBERS).map(lambda number: {"N": number}),
    st.just({"NULL": True}),
    st.just({"BOOL": True}),
    st.lists(st.sampled_from(["a", "b"]), min_size=1, unique=True).map(lambda some: {"SS": sorted(some)}),
    st.just({"M": {"city": {"S": "paid"}}}),
)
items = st.dictionaries(st.sampled_from(ATTRIBUTES[:-1]), values, max_size=5)
USUAL = {
    "status": {"S": "paid"},
    "total": {"N": "7.5"},
    "tags": {"SS": ["a", "b"]},
    "place": {"M": {"city": {"S": "paid"}}},
}
EVENTS = {(False, True): "INSERT", (True, True): "MODIFY", (True, False): "REMOVE"}


@st.composite
def events(draw: st.DrawFn) -> dict[str, Any]:
    """Return an event as on raw."""
    found = {name: draw(st.one_of(st.none(), st.just(USUAL), items)) for name in ("OldImage", "NewImage")}
    assume(any(image is not None for image in found.values()))
    there = {name: image for name, image in found.items() if image is not None}
    kind = EVENTS["OldImage" in there, "NewImage" in there]
    body = {"Keys": {"id": {"S": "k"}}, **there}
    return {"eventID": "e", "eventName": kind, "tableName": "orders", "dynamodb": body}


def said(evaluate: Any, *arguments: Any) -> Any:
    """Return an answer, None when it is an error."""
    try:
        return evaluate(*arguments)
    except ExpressionError:
        return None


UNCHECKED: Any = object()


def of_cpp(text: str, event: dict[str, Any]) -> Any:
    """Return what the C++ implementation says; None when that is an error, UNCHECKED when its type checker is stricter."""
    body = event["dynamodb"]
    ops = {"INSERT": "c", "MODIFY": "u", "REMOVE": "d"}
    facts: dict[str, Any] = {"op": ops[event["eventName"]], "table": "orders", "ttl_expired": False}
    for name, image in (("before", "OldImage"), ("after", "NewImage"), ("key", "Keys")):
        facts[name] = None if image not in body else {one: plain_number(value) for one, value in body[image].items()}
    try:
        program = oracle.NewEnv(variables=dict.fromkeys(NAMES, oracle.Type.DYN)).compile(text)
    except Exception:  # noqa: BLE001 - it has no class of its own
        return UNCHECKED
    try:
        found = program.eval(data=facts)
    except Exception:  # noqa: BLE001 - as above
        return None
    return found.value() if found.type() == oracle.Type.BOOL else None


MACROS = (".all(", ".exists(", ".exists_one(", ".map(", ".filter(")
COMMENTED = 'after.total > 5\n// && op == "c"\n'
CHANGED: dict[str, Any] = {"eventID": "e", "eventName": "MODIFY", "tableName": "orders"}
CHANGED |= {"dynamodb": {"Keys": {"id": {"S": "k"}}, "NewImage": USUAL, "OldImage": USUAL}}


@settings(max_examples=EXAMPLES, deadline=None)
@given(expressions, events())
@example(COMMENTED, CHANGED)
@example('after.exists(k, k == "status") && after.size() == 4', CHANGED)
def test_the_fast_way_says_what_the_whole_expression_says(text: str, event: dict[str, Any]) -> None:
    value = json.dumps(event).encode()
    change = decode(value)
    fast = said(compile_expression(text), value, change)
    assert fast == said(lambda: truth(text, compile_value(text)(value, change, {})))
    reference = of_cpp(text, event)
    if reference is UNCHECKED:
        return
    if fast is None:  # the binding gives up at the first element that a macro cannot tell, which is an error, no answer
        assert reference is None or any(macro in text for macro in MACROS)
    else:
        assert fast == reference
