"""What looks at flows: lines of the settings file, explain, golden files, pictures, versions."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from conftest import Headwater

from pipeline import golden
from pipeline.errors import UsageError
from pipeline.explaining import explain
from pipeline.flow_settings import Flow
from pipeline.flow_versions import dump, parse, text_of
from pipeline.flows import onlooking
from pipeline.graphing import mermaid, svg
from pipeline.running import AT_LEAST, RejectLimit
from pipeline.settings import Settings
from pipeline.toml_lines import line_of

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
    assert line_of(FILE, path) == line


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
    assert {path: line_of(EACH_ITS_LINE, path) for path in found} == found
    assert line_of(EACH_ITS_LINE, ("f", 0, "e", 1, "union tag", "h")) == 25
    assert line_of(EACH_ITS_LINE, ("f", 0, "e", 1, "missing")) == 24
    assert line_of(EACH_ITS_LINE, ("f", 0, "e", 7, "h")) == 22
    assert line_of(EACH_ITS_LINE, ("f", 7, "g")) is None


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


def flows() -> tuple[Flow, ...]:
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
    assert (first.outcome, first.reason) == ("left out", "from: the table is refunds, not orders")
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
    assert parse(json.loads(json.dumps(dump(settings.flows)))) == settings.flows


def case(tmp_path: Path, **content: Any) -> Path:
    file = tmp_path / "case.json"
    file.write_text(json.dumps({"event": EVENT, "references": {"customers": [ADA]}, **content}))
    return file


def test_golden_files_say_what_is_otherwise_and_can_be_written_anew(tmp_path: Path) -> None:
    settings = Settings.model_validate({"flows": FLOWS})
    good = [{"flow": "orders", "sink": "gold", "headers": {"op": "c"}}, {"flow": "all", "rejected": "no 'total'"}]
    assert golden.check(case(tmp_path, expect=good), settings).differences == []
    bad = [{"flow": "orders", "sink": "rest", "headers": {"op": "u"}}, {"flow": "all", "rejected": "nothing"}]
    differences = golden.check(case(tmp_path, expect=bad), settings).differences
    assert [line.split(":")[1].strip() for line in differences] == ["sink", "headers", "rejected"]
    file = case(tmp_path, expect=[])
    assert "expected 0 outcomes, there are 2" in golden.check(file, settings).differences[0]
    golden.check(file, settings, update=True)
    assert golden.check(file, settings).ok
    with pytest.raises(UsageError, match="no golden file"):
        golden.check(case(tmp_path, expectt=[]), settings)
    with pytest.raises(UsageError, match="there are no golden files"):
        golden.cases(tmp_path / "nothing")


def test_flows_are_drawn() -> None:
    chart = mermaid(flows())
    assert 't0[("orders")]' in chart
    assert "join customers" in chart
    picture = ET.fromstring(svg(flows()))  # noqa: S314 - our own
    words = [element.text for element in picture.iter("{http://www.w3.org/2000/svg}text")]
    assert {"orders", "customers", "gold", "redact email", "{table}"} <= set(words)


def test_a_version_says_all_that_the_settings_say() -> None:
    again = parse(json.loads(json.dumps(dump(flows()))))
    assert again == flows()
    assert text_of(again) == text_of(flows())
    with pytest.raises(UsageError, match=r"flows\.0\.to"):
        parse([{"name": "f", "to": []}])


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
