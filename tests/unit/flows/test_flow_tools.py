"""What looks at flows: lines of the settings file, explain, golden files, pictures, versions."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from conftest import Headwater

from pipeline.errors import UsageError
from pipeline.files.toml_lines import line_of_key
from pipeline.flows import given_items, golden
from pipeline.flows.compile import onlooking
from pipeline.flows.explain import FlowTrace, explain
from pipeline.flows.graph import NAME, RULE, TEXT, WIDTH, mermaid, svg
from pipeline.flows.running_flow import AT_LEAST, RejectLimit
from pipeline.flows.versions import dump, parse_flows, text_of
from pipeline.settings.flows import FlowSettings
from pipeline.settings.root import Settings

SVG = "http://www.w3.org/2000/svg"
FILE = """\
prefix = "p"

[kafka]
session_timeout = 6

[[flows]]
name = "one"
to = "a"

[[flows]]
name = "two"
where = { a = 1 }
to = [
    { sink = "b", where = "op ==" },
    { sink = "c" },
]

[[flows.enrich]]
kind = "compute"
as = "1 +"
into = "x"
"""


@pytest.mark.parametrize(
    ("path", "line"),
    [
        (("prefix",), 1),
        (("kafka", "session_timeout"), 4),
        (("flows", 0, "to"), 8),
        (("flows", 1, "where"), 12),
        (("flows", 1, "to", 0, "where"), 14),
        (("flows", 1, "enrich", 0, "as"), 20),
        (("flows", 1, "nothing"), 10),
        (("flows", 2, "to"), None),
        (("nothing",), None),
    ],
)
def test_a_setting_is_found_in_its_file(path: tuple[Any, ...], line: int | None) -> None:
    assert line_of_key(FILE, path) == line


QUOTES = '"""'
EACH_ITS_LINE = rf"""a = 1
b.c = 2   # b.d = 0
"q.r" = 3
's' = [
    5, [5,
    6], {{ t = 6, "u" = {{ v = 6 }} }},  # ] }}
]
text = {QUOTES}
w = 0 \{QUOTES} ""]
{QUOTES}
other = '''
x = 0'''
y = "# [z]"
after = 14

[k]
l = 17
[k.m.n]
o = 19
[[f]]
g = 21
[[f.e]]
h = 23
[[f.e]]
h = 25
[f.e.i]
j = 27
[[f]]
g = 29
p = [{{ q = 30, r = [30] }}, {{ q = 30 }}]
[[f.e]]
h = 32
"""


def numbers(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[tuple[str | int, ...], int]]:
    if isinstance(value, dict | list):
        for name, one in value.items() if isinstance(value, dict) else enumerate(value):
            yield from numbers(one, (*path, name))
    elif isinstance(value, int):
        yield path, value


def test_each_setting_is_found_however_it_is_written() -> None:
    found = dict(numbers(tomllib.loads(EACH_ITS_LINE)))
    assert len(found) == 20
    assert {path: line_of_key(EACH_ITS_LINE, path) for path in found} == found
    assert line_of_key(EACH_ITS_LINE, ("f", 0, "e", 1, "union tag", "h")) == 25
    assert line_of_key(EACH_ITS_LINE, ("f", 0, "e", 1, "missing")) == 24
    assert line_of_key(EACH_ITS_LINE, ("f", 0, "e", 7, "h")) == 22
    assert line_of_key(EACH_ITS_LINE, ("f", 7, "g")) is None


FLOWS: list[dict[str, Any]] = [
    {
        "name": "orders",
        "from": ["orders"],
        "where": {"eventName": ["INSERT"]},
        "enrich": [
            {"kind": "join", "table": "customers", "on": "customer_id", "into": "customer"},
            {"kind": "compute", "as": 'enriched.customer.tier == "gold"', "into": "gold"},
        ],
        "mask_key": "file:/there/is/none",
        "mask": [{"path": "email", "how": "redact"}],
        "to": [{"sink": "gold", "where": "enriched.gold"}, {"sink": "rest"}],
    },
    {"name": "all", "to": "{table}", "where": "after.total > 1", "envelope": "plain"},
]
EVENT = {
    "eventID": "e-1",
    "eventName": "INSERT",
    "tableName": "orders",
    "dynamodb": {
        "Keys": {"order_id": {"S": "o-1"}},
        "NewImage": {"order_id": {"S": "o-1"}, "customer_id": {"S": "c-1"}, "email": {"S": "ada@example.com"}},
    },
}
ADA = {"customer_id": {"S": "c-1"}, "tier": {"S": "gold"}}


def flows() -> tuple[FlowSettings, ...]:
    return Settings.model_validate({"flows": FLOWS}).flows


def test_an_event_is_explained_step_by_step() -> None:
    orders, rest = explain(flows(), json.dumps(EVENT).encode(), onlooking(flows(), (), {"customers": [ADA]}))
    assert orders.outcome == "sent"
    told = {step.step: (step.outcome, step.details) for step in orders.steps}
    assert told["where"] == ("holds", ['eventName: holds, the event has "INSERT"'])
    assert told["enrich.0 join"][0] == "adds"
    assert told["enrich.1 compute"] == ("adds", ['gold = {"BOOL":true}'])
    assert told["mask"][0] == "changes"
    assert any("***" in line for line in told["mask"][1])
    assert told["to.0 gold"] == ("holds", ["enriched.gold: true"])
    (message,) = orders.messages
    assert (message.sink, message.key) == ("gold", '{"order_id":{"S":"o-1"}}')
    assert "ada@example.com" not in json.dumps(message.value)
    assert (rest.outcome, rest.reason) == ("rejected", "where: after.total > 1: there is no 'total': ask has() first")


def test_an_event_of_another_table_or_that_does_not_match_is_left_out_with_the_reason() -> None:
    other = {**EVENT, "tableName": "refunds"}
    first, _ = explain(flows(), json.dumps(other).encode(), onlooking(flows()))
    assert (first.outcome, first.reason) == ("left out", "the flow takes orders (from), and this is refunds")
    modified = {**EVENT, "eventName": "MODIFY"}
    first, _ = explain(flows(), json.dumps(modified).encode(), onlooking(flows()))
    assert (first.outcome, first.reason) == ("left out", "where does not hold")
    assert first.steps[0].details == ['eventName: does not hold, the event has "MODIFY"']


def test_a_partitioned_table_is_explained_tested_and_drawn_as_a_global_one(tmp_path: Path) -> None:
    join = {"kind": "join", "table": "totals", "state": "partitioned", "into": "total"}
    settings = Settings.model_validate({"flows": [{"name": "f", "from": ["orders"], "enrich": [join], "to": "s"}]})
    # Each attribute of the item that is meant is one of another item, too.
    others = [{"order_id": {"S": "o-1"}, "n": {"N": "1"}}, {"order_id": {"S": "o-2"}, "year": {"N": "2026"}}]
    total = {"order_id": {"S": "o-1"}, "year": {"N": "2026"}, "sum": {"N": "7"}}
    keys = {"order_id": {"S": "o-1"}, "year": {"N": "2026"}}
    event = {**EVENT, "dynamodb": {"Keys": keys, "NewImage": keys}}
    file = case(tmp_path, event=event, references={"totals": [*others, total]})
    golden.check(file, settings, update=True)
    (made,) = json.loads(file.read_text())["expect"]
    assert made["value"]["enriched"]["total"] == {"M": total}
    chart = mermaid(settings.flows)
    assert 't1[("totals")]' in chart
    assert "t1 -.-> f0" in chart
    assert parse_flows(json.loads(json.dumps(dump(settings.flows)))) == settings.flows


def explained(given: dict[str, Any], references: dict[str, Any] | None = None, **event: Any) -> FlowTrace:
    """What a flow of these settings makes of the event."""
    settings = Settings.model_validate({"flows": [{"name": "f", "to": "s", **given}]})
    (trace,) = explain(
        settings.flows, json.dumps({**EVENT, **event}).encode(), onlooking(settings.flows, (), references)
    )
    return trace


def steps_of(trace: FlowTrace) -> dict[str, str]:
    return {step.step: step.outcome for step in trace.steps}


def test_sql_sees_a_given_item_once() -> None:
    query = (
        "SELECT id, c.item->>'tier' AS tier, (SELECT count(*) FROM customers) AS items "
        "FROM changes LEFT JOIN customers c ON c.key = (changes.after->'customer_id')"
    )
    sql = {"kind": "sql", "tables": ["customers"], "query": query}
    trace = explained({"enrich": [sql]}, {"customers": [ADA]})
    assert trace.steps[0].details == ['tier = {"S":"gold"}', 'items = {"N":"1"}']


def test_sql_sees_given_items_of_topics_and_of_tables_with_a_sort_key() -> None:
    query = (
        "SELECT id, (SELECT string_agg(key->>'n', ',' ORDER BY key->>'n') FROM lines) AS lines, "
        '(SELECT min(key) FROM "crm.tiers") AS tier FROM changes'
    )
    sql = {"kind": "sql", "tables": ["lines", "topic:crm.tiers"], "query": query}
    lines = [{"order": {"S": "o-1"}, "n": {"N": str(n)}, "sum": {"N": "7"}} for n in (1, 2)]
    tiers = [{"key": "gold", "value": {"name": "Gold"}}, {"key": "bronze", "value": None}]
    trace = explained({"enrich": [sql]}, {"lines": lines, "topic:crm.tiers": tiers})
    assert trace.steps[0].details == ['lines = {"S":"1,2"}', 'tier = {"S":"\\"gold\\""}']


def test_an_item_of_a_joined_topic_is_found_by_its_key() -> None:
    join = {"kind": "join", "topic": "crm.people", "on": "customer_id", "into": "person"}
    rows = [{"key": "c-1", "value": {"name": "Ada", "debt": 1.5}}, {"key": "c-2", "value": None}]
    trace = explained({"enrich": [join]}, {"topic:crm.people": rows})
    assert trace.steps[0].details == ['person = {"M":{"name":{"S":"Ada"},"debt":{"N":"1.5"}}}']


@pytest.mark.parametrize(("missing", "outcome"), [("null", "sent"), ("drop", "left out"), ("reject", "rejected")])
def test_a_change_that_waits_for_a_reference_is_shown_with_what_comes_then(missing: str, outcome: str) -> None:
    joins = [
        {"kind": "join", "table": f"t{hold}", "on": "customer_id", "into": f"t{hold}", "hold": hold, "missing": missing}
        for hold in (30, 40)
    ]
    trace = explained({"enrich": joins})
    # What the first leaves out, or rejects, never gets to the second.
    assert (trace.waits, trace.outcome) == (40 if missing == "null" else 30, outcome)
    assert explained({"enrich": joins}, {"t30": [ADA], "t40": [ADA]}).waits == 0


def test_the_rules_are_shown_as_far_as_they_are_asked() -> None:
    to = [{"sink": "a", "where": "op == 'u'"}, {"sink": "b", "where": "op == 'c'"}, {"sink": "c"}]
    told = steps_of(explained({"to": to}))
    assert told == {"to.0 a": "does not hold", "to.1 b": "holds", "to.2 c": "not asked, to.1 takes it"}
    assert steps_of(explained({"to": to, "match": "all"}))["to.2 c"] == "takes everything"
    rest = steps_of(explained({"to": to[:1], "otherwise": "rest"}))
    assert rest["otherwise rest"] == "takes it, no `where` holds"


def test_what_rejects_is_shown_where_it_did() -> None:
    raises = "after.total > 1"
    assert steps_of(explained({"where": raises})) == {
        "where": f"rejects: {raises}: there is no 'total': ask has() first"
    }
    rules = [{"sink": "a", "where": "op == 'u'"}, {"sink": "b", "where": raises}, {"sink": "c"}]
    told = list(steps_of(explained({"to": rules})).items())
    assert told[0] == ("to.0 a", "does not hold")
    assert told[1][1].startswith("rejects: ")
    assert len(told) == 2, "the third rule is not asked"
    early = {"kind": "compute", "as": raises, "into": "x"}
    assert list(steps_of(explained({"to": rules, "enrich": [early]}))) == ["enrich.0 compute"], "it is not routed"


@pytest.mark.parametrize(
    ("where", "blamed"),
    [
        ("op == 'c' && has(after.email) && op == 'u'", "op == 'u': false"),
        ("op == 'c' && after.total > 1 && op == 'c'", "after.total > 1: there is no 'total': ask has() first"),
        ("op == 'u' || op == 'd' && op == 'c'", None),
        ("(op == 'u' && op == 'd')", None),
        ("after.email == 'a && b'", None),
    ],
)
def test_the_part_of_an_expression_that_is_to_blame_is_shown(where: str, blamed: str | None) -> None:
    details = explained({"where": where}).steps[0].details
    assert [line for line in details if line != f"{where}: false"] == ([] if blamed is None else [blamed])


def test_an_event_with_odd_values_is_explained_as_a_worker_would_reject_it() -> None:
    odd = {"Keys": {"id": {"S": "1"}}, "NewImage": {"id": {"S": "1"}, "total": "7"}}
    trace = explained({"where": "after.total > 1"}, dynamodb=odd)
    assert trace.outcome == "rejected"
    assert trace.steps[0].outcome.startswith("rejects: ")


@pytest.mark.parametrize("where", [{"a": 1}, "op =="])
def test_a_flow_that_cannot_be_compiled_is_refused_before_it_is_explained(where: Any) -> None:
    with pytest.raises(UsageError, match="flow f, where"):
        explained({"where": where})


def test_each_branch_of_a_pattern_is_shown() -> None:
    pattern = {"dynamodb": {"NewImage": {"$or": [{"order_id": {"S": ["o-2"]}}, {"gone": {"S": [{"exists": False}]}}]}}}
    assert explained({"where": pattern}).steps[0].details == [
        "dynamodb.NewImage.$or.0: does not hold",
        'dynamodb.NewImage.$or.0 dynamodb.NewImage.order_id.S: does not hold, the event has "o-1"',
        "dynamodb.NewImage.$or.1: holds",
        "dynamodb.NewImage.$or.1 dynamodb.NewImage.gone.S: holds, the event has no such field",
    ]


def test_what_is_not_given_is_shown() -> None:
    steps = [
        {"kind": "join", "table": "customers", "on": "customer_id", "into": "customer"},
        {"kind": "lookup", "url": "https://stock/{order_id}", "into": "stock"},
    ]
    join, lookup = explained({"enrich": steps}).steps
    assert join.details[-1] == "no items of customers are given here; give them with --reference"
    assert lookup.details[-1] == "not asked here: null"
    assert "given" not in explained({"enrich": steps}, {"customers": [ADA]}).steps[0].details[-1]


def case(tmp_path: Path, **content: Any) -> Path:
    file = tmp_path / "case.json"
    file.write_text(json.dumps({"event": EVENT, "references": {"customers": [ADA]}, **content}))
    return file


def test_golden_files_say_what_is_otherwise_and_can_be_written_again(tmp_path: Path) -> None:
    settings = Settings.model_validate({"flows": FLOWS})
    good = [{"flow": "orders", "sink": "gold", "headers": {"op": "c"}}, {"flow": "all", "rejected": "no 'total'"}]
    assert golden.check(case(tmp_path, expect=good), settings).differences == []
    bad = [{"flow": "orders", "sink": "rest", "headers": {"op": "u"}}, {"flow": "all", "rejected": "nothing"}]
    differences = golden.check(case(tmp_path, expect=bad), settings).differences
    assert [line.partition(":")[0].partition(".")[2] for line in differences] == ["sink", "headers", "rejected"]
    file = case(tmp_path, expect=[])
    assert "expected 0 outcomes, there are 2" in golden.check(file, settings).differences[0]
    golden.check(file, settings, update=True)
    assert golden.check(file, settings).ok
    with pytest.raises(UsageError, match="not a golden file"):
        golden.check(case(tmp_path, expectt=[]), settings)
    with pytest.raises(UsageError, match="there are no golden files"):
        golden.cases(tmp_path / "nothing")


def test_an_outcome_that_names_neither_is_none_of_a_change_that_is_rejected_or_waits(tmp_path: Path) -> None:
    good = [{"flow": "orders", "sink": "gold"}, {"flow": "all"}]
    (said,) = golden.check(case(tmp_path, expect=good), Settings.model_validate({"flows": FLOWS})).differences
    assert said.startswith("expect[1].rejected: not expected, got ")
    joins = [{"kind": "join", "table": "customers", "on": "customer_id", "into": "c", "hold": 30}]
    waiting = Settings.model_validate({"flows": [{"name": "f", "to": "s", "enrich": joins}]})
    (said,) = golden.check(case(tmp_path, references={}, expect=[{"flow": "f"}]), waiting).differences
    assert said == "expect[0].waits: not expected, got 30.0"


def test_a_golden_file_may_expect_a_wait(tmp_path: Path) -> None:
    join = {"kind": "join", "table": "customers", "on": "customer_id", "into": "c", "hold": 30, "missing": "drop"}
    settings = Settings.model_validate({"flows": [{"name": "f", "enrich": [join], "to": "s"}]})
    waits = [{"flow": "f", "waits": 30}]
    assert golden.check(case(tmp_path, references={}, expect=waits), settings).ok
    assert not golden.check(case(tmp_path, expect=waits), settings).ok
    file = case(tmp_path, references={}, expect=[])
    golden.check(file, settings, update=True)
    assert json.loads(file.read_text())["expect"] == waits


@pytest.mark.parametrize(
    ("where", "answer", "added"),
    [
        ({"url": "https://stock/{order_id}"}, {"left": 1.5}, {"M": {"left": {"N": "1.5"}}}),
        ({"table": "stock", "key": {"id": "order_id"}}, {"left": {"N": "2"}}, {"M": {"left": {"N": "2"}}}),
        ({"url": "https://stock/{order_id}"}, None, {"NULL": True}),
        ({"url": "https://stock/{nothing}"}, {"left": 1}, {"NULL": True}),
    ],
)
def test_a_golden_file_gives_the_answers_of_lookups(
    where: dict[str, Any], answer: Any, added: dict[str, Any], tmp_path: Path
) -> None:
    lookup = {"kind": "lookup", **where, "into": "stock"}
    settings = Settings.model_validate({"flows": [{"name": "f", "enrich": [lookup], "to": "s"}]})
    file = case(tmp_path, lookups={"stock": answer})
    golden.check(file, settings, update=True)
    written = json.loads(file.read_text())
    assert written["expect"][0]["value"]["enriched"] == {"stock": added}
    assert written["lookups"] == {"stock": answer}, "it stays in the file"


@pytest.mark.parametrize(
    ("content", "line", "why"),
    [
        ('{\n "event": {},\n "expect": [\n  {"flow": "f"},\n  {"headers": null}]}', 5, "Expected `object`, got `null`"),
        ('{\n "event": {},\n nope}', 3, "malformed"),
        ('{"event": {}', 1, "truncated"),
        ('{"event": {},\n "references":\n {"a": [\n  {"x": {"S": "1"}},\n  {"x": "1"}]}}', 5, "x is not of a type"),
        ('{"references": {"topic:t": [\n {"key": 1, "value": {}}]}, "event": {}}', 2, "a key, as text"),
        ('{\n "event": {"eventID": "e"}}', 2, "event: not a change"),
        ('{"event": {},\n "lookups": {"stock": {"left": 1}}}', 2, "lookups.stock: the value of left is not of a type"),
        ('{"event": {},\n "lookups": {\n"stok": 1}}', 3, "no step of the kind lookup adds stok"),
    ],
)
def test_a_golden_file_that_is_none_is_refused_with_its_line(content: str, line: int, why: str, tmp_path: Path) -> None:
    lookup = {"kind": "lookup", "table": "stock", "key": {"id": "order_id"}, "into": "stock"}
    settings = Settings.model_validate({"flows": [{"name": "f", "enrich": [lookup], "to": "s"}]})
    file = tmp_path / "case.json"
    file.write_text(content.replace('"event": {}', f'"event": {json.dumps(EVENT)}'))
    with pytest.raises(UsageError) as refused:
        golden.check(file, settings)
    assert why in refused.value.message
    assert refused.value.message.startswith(f"{file}:{line}: ")
    assert refused.value.hint


@pytest.mark.parametrize(
    ("name", "text", "why"),
    [
        ("customers", '\n{"id": {"S": "1"}}\nnope', ":3: JSON is malformed"),
        ("customers", '{"customer_id": "c-1"}', ":1: the value of customer_id is not of a type"),
        ("customers", '{"tags": {"SS": ["a"]}}', ":1: tags is not a key attribute"),
        ("customers", "[]", ":1: this is not an object"),
        ("customers", '{"id": {"S": "1"}, "n": {"L": ["1"]}}', ":1: the value of n is not of a type"),
        ("customers", '{"id": {"S": "1"}, "n": {"N": "one"}}', ":1: the value of n is not of a type"),
        ("topic:t", '{"key": "a", "value": 1}', ":1: Expected `object`"),
    ],
)
def test_a_file_of_items_is_refused_with_its_line(name: str, text: str, why: str, tmp_path: Path) -> None:
    file = tmp_path / f"{name}.jsonl"
    file.write_text(text)
    with pytest.raises(UsageError) as refused:
        given_items.read_items(file)
    assert f"{file}{why}" in refused.value.message
    assert "; expected " in refused.value.message
    assert refused.value.hint


def test_flows_are_drawn() -> None:
    chart = mermaid(flows())
    assert 't0[("orders")]' in chart
    assert "join customers" in chart
    picture = ET.fromstring(svg(flows()))  # noqa: S314 - our own
    words = [element.text for element in picture.iter(f"{{{SVG}}}text")]
    assert {"orders", "customers", "gold", "redact email", "{table}"} <= set(words)


def test_rules_and_what_is_published_on_the_way_are_drawn() -> None:
    join = {"kind": "join", "topic": "crm.regions", "on": "region", "into": "region"}
    to = [{"sink": "a", "where": 'op == "c"'}, {"sink": "b", "where": {"eventName": ["MODIFY"]}}]
    first = {"name": "first", "enrich": [join], "through": "way", "to": to, "otherwise": "rest"}
    every = {"name": "every", "match": "all", "to": [to[0], {"sink": "b"}, {"sink": "a", "where": "ttl_expired"}]}
    drawn = Settings.model_validate({"flows": [first, every]}).flows
    chart = mermaid(drawn)
    assert 'f0["first<br/>join topic:crm.regions<br/>on_leave delete"]' in chart
    nodes = {name: node for node, name in re.findall(r'(s\d)\(\["(.+?)"\]\)', chart)}
    assert list(nodes) == ["enriched.way", "a", "b", "rest"]
    ways = dict(re.findall(r"(f\d -->.*) (s\d)", chart))
    assert ways == {
        'f0 -->|"through"|': nodes["enriched.way"],
        'f0 -->|"1. op == &quot;c&quot;"|': nodes["a"],
        'f0 -->|"2. {&quot;eventName&quot;: [&quot;MODIFY&quot;]}"|': nodes["b"],
        'f0 -->|"otherwise"|': nodes["rest"],
        'f1 -->|"all: op == &quot;c&quot;, all: ttl_expired"|': nodes["a"],
        'f1 -->|"everything"|': nodes["b"],
    }
    texts = [element.text for element in ET.fromstring(svg(drawn)).iter(f"{{{SVG}}}text")]  # noqa: S314 - our own
    assert {"through", '1. op == "c"', "otherwise", "everything", "enriched.way"} <= set(texts)


def test_no_line_of_the_picture_is_wider_than_its_box() -> None:
    long = {
        "name": "w" * 100,
        "select": ["an_attribute_with_a_long_name", "another_one_of_them"],
        "enrich": [{"kind": "join", "topic": "M" * 100, "on": "x", "into": "x"}],
        "to": [{"sink": "s" * 150, "where": "op == 'c' && table == 'a-table-with-a-long-name'"}],
    }
    picture = ET.fromstring(svg(Settings.model_validate({"flows": [long]}).flows))  # noqa: S314 - our own
    for element in picture.iter(f"{{{SVG}}}text"):
        size = {"name": NAME, "line": TEXT, "rule": RULE, "halo": RULE}[element.attrib["class"]]
        assert len(element.text or "") * size * 0.65 <= WIDTH
        assert (element.text or "").endswith("…") or len(element.text or "") < 30
    titles = [title.text for title in picture.iter(f"{{{SVG}}}title")]
    assert f"{'s' * 150}" in titles, "the pointer shows it whole"


def test_a_version_says_all_that_the_settings_say() -> None:
    again = parse_flows(json.loads(json.dumps(dump(flows()))))
    assert again == flows()
    assert text_of(again) == text_of(flows())
    with pytest.raises(UsageError, match=r"flows\.0\.to"):
        parse_flows([{"name": "f", "to": []}])


def test_a_flow_may_reject_its_share_and_no_more() -> None:
    limit = RejectLimit(0.5)
    assert not limit.add(AT_LEAST - 1, AT_LEAST - 1), "too few to say anything"
    assert limit.add(1, 1)
    patient = RejectLimit(0.5)
    for _ in range(50):
        assert not patient.add(100, 40)
    assert patient.add(600, 600), "what was long ago counts little"
    assert not RejectLimit(1.0).add(1_000, 1_000)


def test_explain_and_its_kin_on_the_command_line(headwater: Headwater, tmp_path: Path) -> None:
    (tmp_path / "headwater.toml").write_text('[[flows]]\nname = "f"\nto = [{ sink = "s", where = "op ==" }]\n')
    done = headwater("flows", "apply", "--check")
    assert done.returncode == 2
    assert "headwater.toml:3: flow f, to.0.where: " in done.stderr
    (tmp_path / "headwater.toml").write_text('[[flows]]\nname = "f"\nto = "s"\n')
    (tmp_path / "event.json").write_text(json.dumps(EVENT))
    (tmp_path / "flow-tests").mkdir()
    (tmp_path / "flow-tests" / "a.json").write_text(json.dumps({"event": EVENT, "expect": []}))
    assert json.loads(headwater("explain", "event.json", "--json").stdout)[0]["outcome"] == "sent"
    assert "-> s" in headwater("explain", "event.json").stdout
    failed = headwater("flows", "test", "--json")
    assert failed.returncode == 1
    assert json.loads(failed.stdout)[0]["ok"] is False
    assert headwater("flows", "test", "--update").returncode == 0
    assert headwater("flows", "test").returncode == 0
    assert headwater("flows", "graph").stdout.startswith("flowchart LR")
    assert headwater("explain").returncode == 2
    key = headwater("flows", "new-key", str(tmp_path / "mask.key"))
    assert "mask_key = " in key.stderr
    assert headwater("flows", "new-key", str(tmp_path / "mask.key")).returncode == 2


def test_a_function_beside_the_settings_file_is_found(headwater: Headwater, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from headwater import enrich\n\n@enrich('size')\ndef size(change):\n    return {'size': len(change.after)}\n"
    )
    (tmp_path / "headwater.toml").write_text(
        'modules = ["mine"]\n[[flows]]\nname = "f"\nto = "s"\nenrich = [{ kind = "python", name = "size" }]\n'
    )
    (tmp_path / "event.json").write_text(json.dumps(EVENT))
    done = headwater("explain", "event.json", "--json")
    assert done.returncode == 0, done.stderr
    ((message,),) = [flow["messages"] for flow in json.loads(done.stdout)]
    assert message["value"]["enriched"] == {"size": {"N": "3"}}
    (tmp_path / "headwater.toml").write_text(
        'modules = ["mine"]\n[[flows]]\nname = "f"\nto = "s"\nenrich = [{ kind = "python", name = "sise" }]\n'
    )
    wrong = headwater("explain", "event.json")
    assert wrong.returncode == 2
    assert "there is no function 'sise' in `modules`, only size" in wrong.stderr
