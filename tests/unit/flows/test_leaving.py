"""An item that leaves a sink: which sinks learn of it, and what they are told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from support.compiled_flows import flow, run, sinks
from support.made_events import record

from models.change import decode
from pipeline.flows.compile import CompileContext, NewRegistry, onlooking
from pipeline.flows.explain import explain
from pipeline.flows.golden import check
from pipeline.flows.graph import steps as drawn
from pipeline.settings.flows import FlowSettings
from pipeline.settings.root import Settings
from pipeline.steps.flow import Given, Message, Result
from pipeline.steps.secrecy import MaskKey

PAID = {"dynamodb": {"NewImage": {"status": {"S": ["paid"]}}}}
TO: list[Any] = [{"sink": "settled", "where": PAID}, {"sink": "other"}]
KEY = MaskKey(bytes(range(32)))


def item(status: str = "", **more: Any) -> dict[str, Any]:
    return {"id": {"S": "o-1"}, **({"status": {"S": status}} if status else {}), **more}


def told(result: Result) -> list[tuple[str, str, str | None]]:
    """Return of each message the sink, the op, and where the item has moved to."""
    found = []
    for message in result.messages:
        said = {name: value.decode() for name, value in message.headers}
        found.append((message.sink, said["op"], said.get("moved_to")))
    return found


def made(
    new: Any, old: Any = None, means: CompileContext | None = None, **settings: Any
) -> list[tuple[str, str, str | None]]:
    results = run(flow(means=means, **{"to": TO, **settings}), record(new, old))
    assert [result.error for result in results] == [None] * len(results)
    return [one for result in results for one in told(result)]


# -- which sinks ------------------------------------------------------------------------------------------------------


def test_the_former_sink_learns_first_that_the_item_has_moved_and_where_to() -> None:
    assert made(item("paid")) == [("settled", "c", None)]
    assert made(item("open"), item("paid")) == [("settled", "d", "other"), ("other", "u", None)]
    assert made(item("paid"), item("open")) == [("other", "d", "settled"), ("settled", "u", None)]
    assert made(item("paid", n={"N": "1"}), item("paid")) == [("settled", "u", None)]


def test_a_deletion_goes_where_the_item_was_and_is_not_a_move() -> None:
    assert made(None, item("paid")) == [("settled", "d", None)]
    assert made(None, item("open")) == [("other", "d", None)]
    rest: dict[str, Any] = {"to": TO[:1], "otherwise": "rest"}
    assert made(None, item("paid"), **rest) == [("settled", "d", None)]
    assert made(None, item("open"), **rest) == [("rest", "d", None)]


def test_the_routes_of_the_page_send_the_tombstone_of_a_settled_order_to_its_sink(tmp_path: Path) -> None:
    where = {"dynamodb": {"NewImage": {"status": {"S": ["paid", "shipped"]}}}}
    to = [{"sink": "orders-settled", "where": where}, {"sink": "orders-other"}]
    settings = Settings.model_validate({"flows": [{"name": "orders", "envelope": "plain", "to": to}]})
    event = {
        "eventID": "e-1",
        "eventName": "REMOVE",
        "tableName": "orders",
        "dynamodb": {
            "Keys": {"order_id": {"S": "o-1"}},
            "OldImage": {"order_id": {"S": "o-1"}, "status": {"S": "paid"}},
        },
    }
    golden = tmp_path / "removed.json"
    golden.write_text(json.dumps({"event": event, "expect": [{"sink": "orders-settled", "value": None}]}))
    assert check(golden, settings).differences == []


def test_what_is_ignored_goes_as_before() -> None:
    ignored: dict[str, Any] = {"on_leave": "ignore"}
    assert made(item("open"), item("paid"), **ignored) == [("other", "u", None)]
    assert made(None, item("paid"), **ignored) == [("other", "d", None)]


def test_no_item_leaves_a_sink_for_what_its_change_is_or_does() -> None:
    changed = [{"sink": "log", "where": "op == 'u' && changed('n')"}, {"sink": "items"}]
    assert made(item(n={"N": "2"}), item(n={"N": "1"}), to=changed) == [("log", "u", None)], "it is in items, too"
    created = [{"sink": "created", "where": {"eventName": ["INSERT"]}}, {"sink": "rest"}]
    assert made(item("a"), to=created) == [("created", "c", None)]
    assert made(item("b"), item("a"), to=created) == [("rest", "u", None)]
    assert made(item("b"), item("a"), to=TO, where={"eventName": ["INSERT", "REMOVE"]}) == []


def test_deletions_with_a_sink_of_their_own_go_there_and_the_item_leaves_its_sink() -> None:
    to = [{"sink": "deleted", "where": "op == 'd'"}, *TO]
    assert made(None, item("paid"), to=to) == [("deleted", "d", None), ("settled", "d", None)]
    only: dict[str, Any] = {"to": TO, "where": {"eventName": ["REMOVE"]}}
    assert made(None, item("paid"), **only) == [("other", "d", None)], "a flow of deletions holds no items"


def test_a_deletion_goes_to_no_sink_only_because_the_rule_that_had_the_item_does_not_see_it() -> None:
    paid = "(op == 'd' ? before : after).status == 'paid'"
    to = [*TO[:1], {"sink": "hidden", "where": paid}, {"sink": "deleted", "where": "op == 'd'"}]
    assert made(item("paid"), to=to) == [("settled", "c", None)]
    assert made(None, item("paid"), to=to) == [("settled", "d", None), ("deleted", "d", None)]


def test_the_where_of_the_flow_counts() -> None:
    vip: dict[str, Any] = {"where": "op != 'd' && has(after.vip)", "to": TO}
    assert made(item("paid"), item("paid", vip={"BOOL": True}), **vip) == [("settled", "d", "")]
    assert made(None, item("open", vip={"BOOL": True}), **vip) == [("other", "d", None)]
    assert made(item("open", vip={"BOOL": True}), item("paid"), **vip) == [("other", "u", None)]
    assert made(item("open"), item("paid"), **vip) == []


def test_a_flow_with_one_sink_tells_it_when_it_is_asked_to() -> None:
    one: dict[str, Any] = {"to": "s", "where": PAID}
    assert made(item("open"), item("paid"), **one) == []
    assert made(None, item("paid"), **one) == []
    assert made(item("open"), item("paid"), **one, on_leave="delete") == [("s", "d", "")]
    assert made(None, item("paid"), **one, on_leave="delete") == [("s", "d", None)]
    assert made(None, item("open"), **one, on_leave="delete") == []


def test_an_item_in_several_sinks_leaves_those_that_no_longer_match() -> None:
    to = [{"sink": "settled", "where": PAID}, {"sink": "vip", "where": "op != 'd' && has(after.vip)"}, "all"]
    every: dict[str, Any] = {"to": to, "match": "all"}
    vip = {"vip": {"BOOL": True}}
    assert made(item("open"), item("paid", **vip), **every) == [
        ("settled", "d", "all"),
        ("vip", "d", "all"),
        ("all", "u", None),
    ]
    assert made(None, item("paid", **vip), **every) == [("settled", "d", None), ("vip", "d", None), ("all", "d", None)]


def test_a_sink_that_is_named_by_the_kind_of_a_change_holds_no_items() -> None:
    to = [{"sink": "{table}-{op}", "where": PAID}, {"sink": "rest"}]
    assert made(item("open"), item("paid"), to=to) == [("rest", "u", None)]
    assert made(item("paid"), item("open"), to=to) == [("rest", "d", "orders-u"), ("orders-u", "u", None)]
    both = [{"sink": "{table}", "where": PAID}, {"sink": "{table}-{op}"}]
    assert made(None, item("open"), to=both) == [("orders-d", "d", None)]
    assert made(None, item("paid"), to=both) == [("orders", "d", None)]


def test_without_an_old_image_nothing_is_known() -> None:
    moved = json.loads(record(item("open"), item("paid")))
    del moved["dynamodb"]["OldImage"]
    removed = json.loads(record(None, item("paid")))
    del removed["dynamodb"]["OldImage"]
    for value, expected in ((moved, "other"), (removed, "other")):
        assert sinks(flow(to=TO), json.dumps(value).encode()) == [expected]


def test_where_the_old_state_is_not_known_all_other_sinks_learn_of_it() -> None:
    to = [{"sink": "big", "where": "op != 'd' && after.n > 1"}, {"sink": "small"}]
    assert made(item(n={"N": "5"}), item(), to=to) == [("small", "d", "big"), ("big", "u", None)]
    assert made(None, item(), to=to) == [("big", "d", None), ("small", "d", None)]


# -- what they are told -----------------------------------------------------------------------------------------------


def leave(envelope: Any, on_leave: str = "delete", **settings: Any) -> list[Message]:
    compiled = flow(to=TO, envelope=envelope, on_leave=on_leave, **settings)
    (result,) = run(compiled, record(item("open"), item("paid")))
    assert result.error is None
    return [message for message in result.messages if message.left]


def test_delete_is_what_the_envelope_writes_for_a_deletion() -> None:
    (plain,) = leave("plain")
    assert plain.value is None
    (kept,) = leave({"kind": "plain", "tombstone": False})
    assert json.loads(kept.value or b"") == {"id": "o-1", "status": "paid"}
    (debezium,) = leave("debezium")
    value = json.loads(debezium.value or b"")
    assert (value["op"], value["before"], value["after"]) == ("d", {"id": "o-1", "status": "paid"}, None)
    event, tombstone = leave({"kind": "debezium", "tombstone": True})
    assert (json.loads(event.value or b"")["op"], tombstone.value) == ("d", None)
    (aws,) = leave("dynamodb")
    change = decode(aws.value or b"")
    assert (change.op, change.after, change.event_id) == ("d", None, "e-1")
    assert json.loads(change.before or b"") == item("paid")
    (cloud,) = leave("cloudevents")
    said = dict(cloud.headers)
    assert (said["ce_type"], said["ce_id"], said["event_id"]) == (b"headwater.change.remove", b"e-1.left", b"e-1")


@pytest.mark.parametrize("envelope", ["plain", "debezium", "dynamodb", "cloudevents"])
def test_tombstone_is_key_and_null_whatever_the_envelope(envelope: str) -> None:
    (message,) = leave(envelope, "tombstone", mask_key="env:K", mask=[{"path": "n", "how": "hash"}], means=MASKED)
    assert (message.key, message.value) == (b"key", None)
    (removed,) = run(flow(to=TO[:1], envelope=envelope, on_leave="tombstone"), record(None, item("paid")))[0].messages
    assert removed.value is None


MASKED = CompileContext(mask_key=lambda uri: KEY)


@pytest.mark.parametrize("kind", ["avro", "protobuf", "json-schema"])
@pytest.mark.parametrize("envelope", [{"kind": "plain", "tombstone": False}, {"kind": "plain"}, {"kind": "debezium"}])
def test_every_format_can_write_it(kind: str, envelope: Any) -> None:
    pytest.importorskip("fastavro")
    (message,) = leave(envelope, format=kind, means=CompileContext(registry=NewRegistry()))
    assert (message.value is None) == (envelope == {"kind": "plain"})
    assert message.value is None or message.value[:5] == b"\0\0\0\0\1"


@pytest.mark.parametrize("on_leave", ["delete", "tombstone"])
def test_its_key_is_the_one_under_which_the_sink_has_the_item(on_leave: str) -> None:
    shape: dict[str, Any] = {
        "mask_key": "env:K",
        "mask": [{"path": "id", "how": "tokenise"}],
        "rename": {"id": "order"},
    }
    compiled = flow(means=MASKED, to=TO, on_leave=on_leave, **shape)
    put, moved, removed = (
        run(compiled, one)
        for one in (
            record(item("paid")),
            record(item("open"), item("paid")),
            record(None, item("paid")),
        )
    )
    keys = {message.key for results in (put, moved, removed) for result in results for message in result.messages}
    assert len(keys) == 1
    assert b"o-1" not in (keys.pop() or b"o-1")


def test_a_masked_attribute_does_not_show_in_it() -> None:
    shape: dict[str, Any] = {"mask_key": "env:K", "mask": [{"path": "status", "how": "redact"}]}
    for envelope in ("dynamodb", "debezium", {"kind": "plain", "tombstone": False}, "cloudevents"):
        (message,) = leave(envelope, means=MASKED, **shape)
        assert b"paid" not in (message.value or b"")
        assert b"***" in (message.value or b"")


def test_through_gets_nothing_of_it() -> None:
    (result,) = run(flow(to=TO, through="way"), record(item("open"), item("paid")))
    assert [message.sink for message in result.messages] == ["settled", "", "other"]


# -- what is rejected, dropped, joined --------------------------------------------------------------------------------


def test_a_rejected_change_tells_nobody() -> None:
    to = [{"sink": "a", "where": "op != 'd' && after.n > 1"}, {"sink": "b"}]
    (result,) = run(flow(to=to), record(item(), item(n={"N": "5"})))
    assert (result.messages, result.stage) == ([], "to")
    shape: dict[str, Any] = {"mask_key": "env:K", "mask": [{"path": "id", "how": "redact"}]}
    for more, stage in (({"to": TO[:1]}, "mask"), ({"to": "s", "where": PAID}, "on_leave, mask")):
        compiled = flow(means=MASKED, on_leave="delete", **shape, **more)
        (result,) = run(compiled, record(item("open"), item("paid")))
        assert (result.messages, result.stage) == ([], stage)
        assert "hash or tokenise it" in str(result.error)


def test_an_old_image_that_the_schema_of_its_sink_refuses_goes_by_its_key() -> None:
    pytest.importorskip("fastavro")
    compiled = flow(to=TO, envelope="debezium", format="avro", means=CompileContext(registry=NewRegistry()))
    first, odd = item("paid", n={"N": "1"}), item("paid", n={"S": "text"})
    (put, rejected, moved) = run(compiled, record(first), record(odd, first), record(item("open"), odd))
    assert (len(put.messages), rejected.messages, rejected.stage) == (1, [], "output")
    assert [(message.sink, message.value is None) for message in moved.messages] == [
        ("settled", True),
        ("other", False),
    ]
    assert moved.error is None


CUSTOMERS = {b'{"S":"c-1"}': b'{"tier":{"S":"gold"}}', b'{"S":"c-2"}': b'{"tier":{"S":"iron"}}'}
JOIN = {"kind": "join", "table": "customers", "on": "customer", "into": "customer"}
GOLD = [{"sink": "gold", "where": "enriched.customer != null && enriched.customer.tier == 'gold'"}, {"sink": "rest"}]


def of(customer: str, **more: Any) -> dict[str, Any]:
    return item(customer={"S": customer}, **more)


def joined(new: Any, old: Any = None, unsure: bool = False, **settings: Any) -> Result:
    compiled = flow({"customers": CUSTOMERS.get}, **{"to": GOLD, "enrich": [JOIN], **settings})
    value = record(new, old)
    (result,) = compiled.run([Given(0, b"key", value, decode(value), 0.0, unsure=unsure)])
    return result


def test_where_a_rule_names_what_was_added_the_old_state_is_joined_too() -> None:
    assert told(joined(of("c-2"), of("c-1"))) == [("gold", "d", "rest"), ("rest", "u", None)]
    assert told(joined(of("c-1", n={"N": "1"}), of("c-1"))) == [("gold", "u", None)]
    assert told(joined(None, of("c-1"))) == [("gold", "d", None)]


def test_the_old_state_waits_for_no_reference_and_has_nothing_sent_again() -> None:
    join = {**JOIN, "hold": 60, "on_reference_change": "re-emit"}
    result = joined(of("c-1"), of("unknown"), enrich=[join])
    assert told(result) == [("rest", "d", "gold"), ("gold", "u", None)]
    assert [key for _, key, _ in result.references] == [b'{"S":"c-1"}']


def test_what_a_step_leaves_out_leaves_its_sink_and_what_it_left_out_was_in_none() -> None:
    inner = [{**JOIN, "missing": "drop"}]
    assert told(joined(of("unknown"), of("c-1"), enrich=inner)) == [("gold", "d", "")]
    assert told(joined(of("unknown", status="paid"), of("c-1", status="paid"), enrich=inner, to=TO)) == [
        ("settled", "d", "")
    ]
    assert told(joined(of("unknown", n={"N": "1"}), of("unknown"), enrich=inner, to=TO)) == []
    assert told(joined(of("c-1", status="paid"), of("unknown"), enrich=inner, to=TO)) == [("settled", "u", None)]


def test_what_is_sent_again_as_a_reference_has_changed_tells_all_other_sinks() -> None:
    assert told(joined(of("c-1"), unsure=True)) == [("rest", "d", "gold"), ("gold", "c", None)]
    inner = [{**JOIN, "missing": "drop"}]
    assert told(joined(of("unknown"), enrich=inner, to=TO, unsure=True)) == [("settled", "d", ""), ("other", "d", "")]
    assert told(joined(of("c-1"), of("c-1"), to=TO, unsure=True)) == [("other", "u", None)], "no rule asks for it"


def test_services_are_asked_for_the_old_state_only_where_it_matters() -> None:
    asked: list[int] = []

    def step(events: Any) -> None:
        asked.extend(len(events) for _ in "a")
        for event in events:
            event.added["answer"] = b'{"BOOL":true}'

    lookup = {"kind": "lookup", "url": "https://service.test/{customer}", "into": "answer"}
    means = CompileContext(lookup=lambda settings: step)
    by_state = flow(means=means, to=TO, enrich=[lookup])
    by_answer = flow(means=means, to=[{"sink": "a", "where": "enriched.answer"}, {"sink": "b"}], enrich=[lookup])
    for compiled, counts in ((by_state, [1]), (by_answer, [1, 1])):
        asked.clear()
        run(compiled, record(of("c-2", status="open"), of("c-1", status="paid")))
        assert asked == counts
    asked.clear()
    run(by_answer, record(of("c-1", status="open"), of("c-1", status="paid")))
    assert asked == [1], "what the answer depends on is the same"


# -- settings and tools -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "leaves"),
    [
        ({"to": "a"}, None),
        ({"to": "a", "where": "op != 'd'"}, None),
        ({"to": "a", "where": "op != 'd'", "on_leave": "tombstone"}, "tombstone"),
        ({"to": TO}, "delete"),
        ({"to": TO, "on_leave": "ignore"}, None),
        ({"to": TO[:1], "otherwise": "rest"}, "delete"),
        ({"to": ["a", "b"], "match": "all"}, None),
        ({"to": ["a", "b"], "match": "all", "where": "op != 'd'"}, "delete"),
        ({"to": [{"sink": "{op}", "where": PAID}, "x-{op}"]}, None),
    ],
)
def test_flows_with_several_sinks_tell_them(settings: dict[str, Any], leaves: str | None) -> None:
    assert FlowSettings.model_validate({"name": "f", **settings}).leaves == leaves
    assert (flow(**settings).leaving is None) == (leaves is None)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"to": "a"}, "nothing ever leaves a: neither the flow nor one of its routes has a `where`"),
        ({"to": ["a", "b"], "match": "all"}, "nothing ever leaves a or b"),
        ({"to": "{table}-{op}", "where": "op != 'd'"}, "names have {op}, so they hold changes of a kind, not items"),
    ],
)
@pytest.mark.parametrize("on_leave", ["delete", "tombstone", "ignore"])
def test_a_setting_that_does_nothing_is_an_error(settings: dict[str, Any], words: str, on_leave: str) -> None:
    with pytest.raises(ValidationError, match="on_leave: nothing ever leaves") as error:
        FlowSettings.model_validate({"name": "f", **settings, "on_leave": on_leave})
    assert words in str(error.value)


def explained(value: bytes, **settings: Any) -> Any:
    flows = (FlowSettings.model_validate({"name": "f", "to": TO, **settings}),)
    (trace,) = explain(flows, value, onlooking(flows))
    return trace


def test_explain_says_which_sinks_the_item_leaves_and_why_a_deletion_goes_where_it_does() -> None:
    moved = explained(record(item("open"), item("paid")))
    steps = {step.step: step for step in moved.steps}
    assert steps["leaves settled"].outcome == "its old image matches what leads there"
    assert [(message.sink, message.headers.get("moved_to")) for message in moved.messages] == [
        ("settled", "other"),
        ("other", None),
    ]
    removed = {step.step: step for step in explained(record(None, item("paid"))).steps}
    assert removed["to.0 settled"].details[-1] == "gets the deletion, as its old image matches"
    assert removed["to.1 other"].outcome == "does not hold"
    left_out = explained(record(item("open"), item("paid")), where=PAID)
    assert (left_out.outcome, [step.step for step in left_out.steps]) == ("sent", ["where", "leaves settled"])


def test_the_picture_of_a_flow_says_what_sinks_get() -> None:
    assert drawn(FlowSettings.model_validate({"name": "f", "to": TO})) == ["on_leave delete"]
    assert drawn(FlowSettings.model_validate({"name": "f", "to": "a"})) == []
