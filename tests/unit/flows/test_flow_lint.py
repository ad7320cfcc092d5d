"""Settings that can have no effect are refused; those that can hardly have one are named, with their lines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import Headwater
from pydantic import ValidationError

from pipeline.flows.lint import lint
from pipeline.settings.flows import FlowSettings

JOIN = {"kind": "join", "table": "customers", "on": "customer_id", "into": "customer"}
KEY: dict[str, Any] = {"mask_key": "file:mask.key"}


def flow(**more: Any) -> FlowSettings:
    return FlowSettings.model_validate({"name": "f", "from": ["orders"], "to": "s", **more})


def image(attributes: dict[str, Any], name: str = "NewImage") -> dict[str, Any]:
    return {"where": {"dynamodb": {name: attributes}}}


def masked(*paths: str, **more: Any) -> dict[str, Any]:
    return {"mask": [{"path": path, "how": "redact"} for path in paths], **KEY, **more}


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (masked("address.*"), r"mask.0.path[\s\S]*\[\*\] means all elements"),
        (masked("*"), r"\* is not a name"),
        (masked("email "), "ends with a blank"),
        (masked(" email"), "ends with a blank"),
        (masked("address..street"), "expected a path"),
        (masked("phones[x]"), "expected a path"),
        (masked("[0]"), "expected a path"),
        (masked("a.[0]"), "expected a path"),
        (masked("a[0]b"), "expected a path"),
        (masked('"a'), "expected a path"),
        (masked(""), "expected a path"),
        ({"drop": ["address.*"]}, r"drop.0[\s\S]*\* is not a name"),
        ({"select": ["a", "phones[*"]}, r"select.1[\s\S]*expected a path"),
        ({"rename": {"phones[0]": "first"}}, "an element of a list has no name"),
        ({"rename": {"a": ""}}, "at least 1 character"),
        ({"enrich": [{**JOIN, "on": "ids[*]"}]}, r"\[\*\] names many values"),
        (
            masked("enriched.nobody.id", enrich=[JOIN]),
            "mask.0.path: enriched.nobody.id is not among what the steps add",
        ),
        ({"enrich": [{"kind": "lookup", "url": "http://a.test/{id", "into": "x"}]}, "is not part of an {attribute}"),
        ({"enrich": [{"kind": "lookup", "url": "http://a.test/id}", "into": "x"}]}, "is not part of an {attribute}"),
        ({"enrich": [{"kind": "lookup", "url": "http://a.test/{}", "into": "x"}]}, "is not part of an {attribute}"),
        ({"enrich": [{"kind": "lookup", "url": "http://a.test/{a.*}", "into": "x"}]}, r"\* is not a name"),
    ],
    ids=str,
)
def test_what_can_match_nothing_by_its_form_is_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        flow(**settings)


@pytest.mark.parametrize(
    ("settings", "place", "words"),
    [
        (masked("mail", rename={"email": "mail"}), "mask.0.path", "mail is still called email"),
        (masked("a", "a"), "mask.1.path", "mask.0 has made a unreadable"),
        (image({"status": ["paid"]}), "where", "dynamodb.NewImage.status: DynamoDB writes the type before a value"),
        (image({"status": {"s": ["paid"]}}), "where", "status: s is not a type of DynamoDB"),
        (image({"place": {"M": {"city": ["Graz"]}}}), "where", "place.M.city: DynamoDB writes the type"),
        (image({"status": {"S": [5]}}), "where", "status.S: 5 never matches, S holds text"),
        (image({"status": {"S": [{"numeric": [">", 5]}]}}), "where", "never matches, S holds text"),
        (image({"done": {"BOOL": ["true"]}}, "OldImage"), "where", "done.BOOL: 'true' never matches, BOOL holds true"),
        ({"where": {"eventName": ["insert"]}}, "where", "eventName: matches none of INSERT, MODIFY, REMOVE, READ"),
        ({"where": {"eventName": ["INSERT", "DELETE"]}}, "where", "eventName: 'DELETE' is not one of"),
        ({"where": {"tableName": ["order"]}}, "where", "tableName: matches none of orders"),
        (
            {"where": {"eventname": ["INSERT"]}},
            "where",
            "eventname: a record has no such field, did you mean eventName?",
        ),
        ({"where": {"dynamodb": {"newImage": {}}}}, "where", "did you mean NewImage?"),
        ({"where": {"$or": [{"eventName": ["a"]}, {"tableName": ["orders"]}]}}, "where", "eventName: matches none"),
        (
            {"to": [{"sink": "a", "where": {"enriched": {"x": {"S": ["a"]}}}}]},
            "to.0.where",
            "enriched.x: no step adds it",
        ),
        ({"where": 'op == "INSERT"'}, "where", "op is never 'INSERT', only one of c, u, d, r"),
        ({"where": 'op in ["c", "x"] && after.op == "y"'}, "where", "op is never 'x'"),
        ({"where": 'table != "order"'}, "where", "table is never 'order'"),
        ({"enrich": [{"kind": "compute", "as": "enriched.x", "into": "y"}]}, "enrich.0.as", "enriched.x: no step adds"),
        ({"enrich": [JOIN, {**JOIN, "on": "other"}]}, "enrich.1.into", "customer replaces what enrich.0 has added"),
        ({"rename": {"a": "c", "b": "c"}}, "rename.b", "a and b get one name, c: one of them is lost"),
        ({"select": ["a"], "drop": ["b"]}, "drop.0", "b: select has left it out"),
        ({"select": ["a"], "rename": {"b": "c"}}, "rename.b", "b: select has left it out"),
        ({"drop": ["b"], "rename": {"b": "c"}}, "rename.b", "b: drop has left it out"),
        ({"drop": ["c"], "rename": {"b": "c"}}, "drop.0", "c is still called b"),
        ({"select": ["c"], "rename": {"b": "c"}}, "select.0", "c is still called b"),
        (
            {"enrich": [JOIN], "drop": ["enriched.custmer"]},
            "drop.0",
            "enriched.custmer: no step adds it, only customer",
        ),
        ({"enrich": [JOIN], "rename": {"enriched.c": "x"}}, "rename.enriched.c", "enriched.c: no step adds it"),
        ({"select": ["id", "enriched.customer"]}, "select.1", "no step adds it, only nothing"),
        ({"enrich": [{**JOIN, "on": "enriched.nobody.id"}]}, "enrich.0.on", "enriched.nobody.id: no step adds it"),
        (
            {"enrich": [{"kind": "lookup", "url": "http://a.test/{enriched.x}", "into": "x"}]},
            "enrich.0.url",
            "enriched.x: no step adds it, only nothing",
        ),
    ],
    ids=str,
)
def test_what_can_hardly_have_an_effect_is_named(settings: dict[str, Any], place: str, words: str) -> None:
    found = lint(flow(**settings))
    assert words in " ".join(one.problem for one in found)
    assert place in {one.place for one in found}


@pytest.mark.parametrize(
    "settings",
    [
        image({"status": {"S": ["paid", {"exists": False}]}, "n": {"N": [5, "5"]}, "l": {"L": {"S": ["x"]}}}),
        image({"status": [{"exists": False}], "ok": {"BOOL": [True]}, "no": {"NULL": [True]}, "set": {"SS": ["a"]}}),
        {"where": {"eventName": [{"anything-but": "REMOVE"}], "userIdentity": {"type": ["Service"]}}},
        {"where": 'op == "c" || op in ["u", "d"] && table == "orders" && after.table == "x" // op == "INSERT"'},
        masked("email", "phones[*].number", "enriched.customer.name", enrich=[JOIN], rename={"email": "mail"}),
        {"select": ["a.b", "c"], "drop": ["a.b.d"], "rename": {"a.b.e": "x", "c": "e"}},
        {"rename": {"a.x": "n", "b.x": "n"}},
        {"enrich": [{"kind": "sql", "query": "SELECT 1"}], "drop": ["enriched.anything"]},
        {"enrich": [JOIN, {**JOIN, "on": "enriched.customer.region.id", "into": "region"}]},
        {"enrich": [{"kind": "lookup", "url": "http://a.test/{place.city}?n={ids[0]}", "into": "x"}]},
    ],
    ids=str,
)
def test_nothing_is_said_of_what_has_an_effect(settings: dict[str, Any]) -> None:
    assert lint(flow(**settings)) == []


WRITTEN = """
[[flows]]
name = "f"
to = "s"
where = { eventName = ["insert"] }
rename = { a = "c", b = "c" }
"""


def test_lint_shows_doubts_alone_with_their_lines(headwater: Headwater, tmp_path: Path) -> None:
    (tmp_path / "headwater.toml").write_text(WRITTEN)
    found = headwater("flows", "lint")
    assert found.returncode == 1
    assert found.stdout.splitlines() == [
        "headwater.toml:5: flow f, where: eventName: matches none of INSERT, MODIFY, REMOVE, READ",
        "headwater.toml:6: flow f, rename.b: a and b get one name, c: one of them is lost",
    ]
    as_json = json.loads(headwater("flows", "lint", "--json").stdout)
    assert [(one["place"], one["at"]) for one in as_json] == [
        ("where", "headwater.toml:5"),
        ("rename.b", "headwater.toml:6"),
    ]
    applied = headwater("flows", "apply", "--check")
    assert applied.returncode == 0
    assert "warning: headwater.toml:5: flow f, where: eventName" in applied.stderr
    (tmp_path / "headwater.toml").write_text('[[flows]]\nname = "f"\nto = "s"\n')
    assert headwater("flows", "lint").returncode == 0
