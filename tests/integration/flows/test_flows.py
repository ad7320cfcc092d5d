"""Flows on Apache Kafka: applied while they run, in order behind a rejected change, waiting for references, stopped."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
import uuid
from pathlib import Path

import pytest
from confluent_kafka import Producer
from conftest import Headwater
from support.fleet import log_of
from support.http_service import Service
from support.transform_workers import Flowing
from support.waiting import until

from headwater.lab.recorder import Recorder
from headwater.lab.stack import Endpoints
from headwater.lab.workers import Workers
from pipeline.topics.admin import admin, ensure
from pipeline.topics.names import Topic

pytestmark = pytest.mark.kafka


def events(records: Recorder) -> list[str]:
    """The event IDs on a topic, in the order of each partition."""
    return [json.loads(record.value() or b"")["eventID"] for record in records]


def ready(workers: Workers) -> tuple[int, str]:
    process = workers.all[0].process
    assert process is not None
    try:
        with urllib.request.urlopen(f"{process.address}/readyz", timeout=5) as answer:  # noqa: S310 - our own worker
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def test_flows_are_applied_without_a_restart(kafka_stack: Endpoints, tmp_path: Path, headwater: Headwater) -> None:
    flowing = Flowing(kafka_stack, tmp_path, [{"name": "f", "to": "a"}])
    later = [{"name": "f", "to": "b", "where": {"tableName": ["orders"]}, "through": "way"}]
    with (
        flowing.recorded(flowing.topics.sink("a")) as first,
        flowing.fleet.running() as workers,
    ):
        flowing.change("k", {"n": 1})
        until(lambda: len(first) == 1, "a change by the flows of the settings")
        bad = headwater("flows", "apply", **flowing.environment([{"name": "f", "to": "b", "where": {"a": 1}}]))
        assert bad.returncode == 2
        assert "flow f, where: a: expected a list" in bad.stderr
        done = headwater("flows", "apply", "--json", **flowing.environment(later))
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["version"] == 1
        with (
            flowing.recorded(flowing.topics.sink("b")) as second,
            flowing.recorded(flowing.topics.enriched("way")) as way,
        ):
            flowing.change("k", {"n": 2})
            until(lambda: len(second) == 1 and len(way) == 1, "a change by the version that was applied")
        with flowing.recorded(flowing.topics.raw) as raw:
            until(lambda: len(raw) == 2, "both changes on raw")
            place = next(iter(raw))
        at = ["--partition", str(place.partition()), "--offset", str(place.offset())]
        (explained,) = json.loads(headwater("explain", "--json", *at, **flowing.environment(later)).stdout)
        assert (explained["outcome"], explained["reason"]) == ("sent", "")
        nothing = headwater("explain", "--partition", "0", "--offset", "999999", **flowing.environment(later))
        assert (nothing.returncode, "there is no record 999999" in nothing.stderr) == (2, True)
        sunk = next(iter(second))
        at = ["--partition", str(sunk.partition()), "--offset", str(sunk.offset())]
        for name in ("sink.b", flowing.topics.sink("b")):
            done_there = headwater("explain", "--json", "--topic", name, *at, **flowing.environment(later))
            assert json.loads(done_there.stdout)[0]["outcome"] == "sent", name
        for wrong, why in (
            (["--topic", "sink.c", *at], "there is no topic"),
            (["--partition", "99", *at[2:]], "partitions"),
        ):
            refused = headwater("explain", *wrong, **flowing.environment(later))
            assert (refused.returncode, why in refused.stderr) == (2, True)
        again = headwater("flows", "apply", "--json", **flowing.environment(later))
        assert json.loads(again.stdout) == {**json.loads(done.stdout), "new": False}
        (worker,) = json.loads(headwater("status", "--json", **flowing.environment()).stdout)["flows"]
        assert (worker["version"], worker["applied"], worker["stopped"]) == (1, 1, {})
        assert workers.all[0].starts == 1
        assert len(first) == 1
    with flowing.fleet.running() as workers, flowing.recorded(flowing.topics.sink("b")) as second:
        flowing.change("k", {"n": 3})
        until(lambda: len(second) == 2, "a change after a restart, by the version still")
        assert "Version 1 of the flows runs, not the one in the settings" in log_of(workers.all[0])


STRICT = {"name": "f", "to": "a", "where": "after.n > 0", "order": "strict", "reject_limit": 1.0}


def test_in_strict_order_later_changes_of_an_item_wait_behind_a_rejected_one(
    kafka_stack: Endpoints, tmp_path: Path, headwater: Headwater
) -> None:
    flowing = Flowing(kafka_stack, tmp_path, [STRICT])
    with (
        flowing.recorded(flowing.topics.sink("a")) as sink,
        flowing.recorded(flowing.topics.dead_letter) as dead,
    ):
        with flowing.fleet.running():
            flowing.change("x", {"n": 1})  # e1
            flowing.change("x", {"m": 1}, headers={"late": b"7"})  # e2 cannot be told
            flowing.change("x", {"n": 3})  # e3 waits
            flowing.change("y", {"n": 4})  # e4 goes on
            until(lambda: len(dead) == 1 and len(sink) == 2, "what is before, and what is beside")
        (tmp_path / "worker-1.state").rename(tmp_path / "lost.state")  # what waits is in Kafka, not on this disk
        with flowing.fleet.running():
            flowing.change("x", {"n": 5})  # e5 waits as well
            flowing.change("y", {"n": 6})  # e6
            until(lambda: len(sink) == 3, "what is beside")
            listed = headwater("dlq", "list", **flowing.environment())
            assert listed.returncode == 1
            (letter,) = map(json.loads, listed.stdout.splitlines())
            assert (letter["flow"], letter["stage"], letter["state"]) == ("f", "transform", "open")
            assert "there is no 'n': ask has() first" in letter["reason"]
            again = headwater("dlq", "retry", letter["id"], **flowing.environment())
            assert again.returncode == 0, again.stderr
            until(lambda: len(dead) == 2, "that it fails once more")
            first, second = map(
                json.loads, headwater("dlq", "list", "--all", **flowing.environment()).stdout.splitlines()
            )
            assert [first["state"], second["state"]] == ["retried", "open"]
            assert second["offset"] == letter["offset"]
            (whole,) = map(
                json.loads, headwater("dlq", "show", second["id"], **flowing.environment()).stdout.splitlines()
            )
            assert whole["headers"] == {"late": "7"}, "as it was on raw"
            whole["value"]["dynamodb"]["NewImage"]["n"] = {"N": "2"}
            (tmp_path / "other.json").write_text(
                json.dumps(whole["value"]).replace('{"id": {"S": "x"}}', '{"id": {"S": "y"}}')
            )
            other = headwater("dlq", "edit", second["id"], str(tmp_path / "other.json"), **flowing.environment())
            assert "is about the item" in other.stderr
            (tmp_path / "new.json").write_text(json.dumps(whole["value"]))
            edited = headwater("dlq", "edit", second["id"], str(tmp_path / "new.json"), **flowing.environment())
            assert edited.returncode == 0, edited.stderr
            until(lambda: len(sink) == 6, "all changes")
            flowing.change("x", {"n": 7})  # e7 waits no more
            until(lambda: len(sink) == 7, "the next one")
        assert headwater("dlq", "list", **flowing.environment()).returncode == 0
        of_x = [event for event in events(sink) if event not in {"e4", "e6"}]
        assert of_x == ["e1", "e2", "e3", "e5", "e7"]


def test_what_is_skipped_lets_go_what_waits_behind_it(
    kafka_stack: Endpoints, tmp_path: Path, headwater: Headwater
) -> None:
    flowing = Flowing(kafka_stack, tmp_path, [STRICT])
    with (
        flowing.recorded(flowing.topics.sink("a")) as sink,
        flowing.recorded(flowing.topics.dead_letter) as dead,
        flowing.fleet.running(),
    ):
        for item in ({"m": 1}, {"n": 2}, {"m": 3}, {"n": 4}):
            flowing.change("x", item)
        until(lambda: len(dead) == 1, "the first dead letter")
        assert headwater("dlq", "skip", "--flow", "f", "--yes", **flowing.environment()).returncode == 0
        until(lambda: len(dead) == 2 and len(sink) == 1, "the next change, and the next dead letter")
        assert headwater("dlq", "skip", "--flow", "f", "--yes", **flowing.environment()).returncode == 0
        until(lambda: len(sink) == 2, "the last change")
        assert events(sink) == ["e2", "e4"]


def test_a_join_waits_for_a_late_reference_and_the_changes_of_its_item_behind_it(
    kafka_stack: Endpoints, tmp_path: Path
) -> None:
    join = {"kind": "join", "table": "customers", "on": "customer", "into": "c", "hold": 600}
    flowing = Flowing(kafka_stack, tmp_path, [{"name": "f", "from": ["orders"], "enrich": [join], "to": "a"}])
    with flowing.recorded(flowing.topics.sink("a")) as sink:
        with flowing.fleet.running():
            flowing.change("o1", {"customer": "late", "n": 1})
            flowing.change("o1", {"n": 2})  # points to nobody, and waits behind it
            flowing.change("o2", {"n": 3})
            until(lambda: len(sink) == 1, "what need not wait")
        with flowing.fleet.running():
            flowing.change("late", {"name": "Ada"}, table="customers")
            until(lambda: len(sink) == 3, "what has waited")
        assert [event for event in events(sink) if event != "e3"] == ["e1", "e2"]
        joined = [json.loads(record.value() or b"")["enriched"]["c"] for record in sink]
        assert joined.count({"NULL": True}) == 2
        assert {"M": {"id": {"S": "late"}, "name": {"S": "Ada"}}} in joined


def test_a_join_waits_no_longer_than_it_is_set_to(kafka_stack: Endpoints, tmp_path: Path) -> None:
    join = {"kind": "join", "table": "customers", "on": "customer", "into": "c", "hold": 1.5}
    flowing = Flowing(kafka_stack, tmp_path, [{"name": "f", "from": ["orders"], "enrich": [join], "to": "a"}])
    with flowing.recorded(flowing.topics.sink("a")) as sink, flowing.fleet.running():
        flowing.change("o1", {"customer": "never", "n": 1})
        until(lambda: len(sink) == 1, "the change without its reference")
        (record,) = sink
        value = json.loads(record.value() or b"")
        assert value["enriched"]["c"] == {"NULL": True}


def test_a_flow_that_rejects_too_much_is_paused_until_another_version_is_applied(
    kafka_stack: Endpoints, tmp_path: Path, headwater: Headwater
) -> None:
    flowing = Flowing(kafka_stack, tmp_path, [{"name": "f", "to": "a", "where": "after.n > 0"}])
    with (
        flowing.recorded(flowing.topics.sink("a")) as sink,
        flowing.recorded(flowing.topics.dead_letter) as dead,
        flowing.fleet.running() as workers,
    ):
        for number in range(300):
            flowing.change(f"k{number}", {"m": 1})
        until(lambda: ready(workers)[0] == 503 and "rejects more than 50%" in ready(workers)[1], "that it stands")
        stands = json.loads(headwater("status", "--json", **flowing.environment()).stdout)["flows"][0]["stopped"]
        assert "headwater flows apply" in stands["f"]
        assert len(dead) <= 200, "it did not fill the dead letters"
        done = headwater("flows", "apply", **flowing.environment([{"name": "f", "to": "a"}]))
        assert done.returncode == 0, done.stderr
        until(lambda: len(sink) + len(dead) == 300, "all of them")
        until(lambda: ready(workers)[0] == 200, "readiness")
        assert workers.all[0].starts == 1


def test_what_is_masked_is_nowhere_in_plain_text_and_a_sealed_dead_letter_can_be_tried_again(
    kafka_stack: Endpoints, tmp_path: Path, headwater: Headwater
) -> None:
    headwater("flows", "new-key", str(tmp_path / "mask.key"))
    masks = [{"path": "id", "how": "hash"}, {"path": "email", "how": "tokenise"}]
    flow = {
        "name": "f",
        "to": "{table}-{op}",
        "where": "after.n > 0",
        "mask": masks,
        "mask_key": f"file:{tmp_path / 'mask.key'}",
        "through": "way",
        "reject_limit": 1.0,
    }
    flowing = Flowing(kafka_stack, tmp_path, [flow])
    ensure(admin(flowing.fleet.conf), [flowing.topics.late(flowing.topics.sink("orders-u"))], 1)
    with (
        flowing.recorded(flowing.topics.sink("orders-u")) as sink,
        flowing.recorded(flowing.topics.enriched("way")) as way,
        flowing.recorded(flowing.topics.dead_letter) as dead,
        flowing.fleet.running() as workers,
    ):
        flowing.change("lovelace", {"n": 1, "email": "ada@example.com"})
        flowing.change("lovelace", {"m": 1, "email": "ada@example.com"})
        until(lambda: len(sink) == 1 and len(way) == 1 and len(dead) == 1, "one change, and one dead letter")
        shown = [part for record in (*sink, *way, *dead) for part in (record.key(), record.value(), record.headers())]
        assert "lovelace" not in repr(shown)  # no hexadecimal hash holds it by chance, as it may "ada"
        assert "ada@example.com" not in log_of(workers.all[0])
        (listed,) = map(json.loads, headwater("dlq", "list", **flowing.environment()).stdout.splitlines())
        assert "lovelace" not in json.dumps(listed)
        (whole,) = map(json.loads, headwater("dlq", "show", listed["id"], **flowing.environment()).stdout.splitlines())
        assert whole["value"]["dynamodb"]["NewImage"]["email"] == {"S": "ada@example.com"}
        assert "there is no 'n'" in whole["reason"]
        whole["value"]["dynamodb"]["NewImage"]["n"] = {"N": "2"}
        (tmp_path / "new.json").write_text(json.dumps(whole["value"]))
        edited = headwater("dlq", "edit", listed["id"], str(tmp_path / "new.json"), **flowing.environment())
        assert edited.returncode == 0, edited.stderr
        until(lambda: len(sink) == 2, "the letter, mended")
        first, second = sink
        assert first.key() == second.key()
        assert first.partition() == second.partition()


def test_a_dead_letter_of_a_masking_flow_that_is_gone_is_let_go_without_its_key(
    kafka_stack: Endpoints, tmp_path: Path, headwater: Headwater
) -> None:
    headwater("flows", "new-key", str(tmp_path / "mask.key"))
    masks = {"mask": [{"path": "email", "how": "hash"}], "mask_key": f"file:{tmp_path / 'mask.key'}"}
    flowing = Flowing(kafka_stack, tmp_path, [{**STRICT, **masks}])
    others = flowing.environment([{"name": "g", "to": "b"}])
    with flowing.recorded(flowing.topics.dead_letter) as dead, flowing.fleet.running():
        flowing.change("lovelace", {"m": 1, "email": "ada@example.com"})
        flowing.change("lovelace", {"n": 1, "email": "ada@example.com"}, headers={"late": b"7"})  # waits behind it
        until(lambda: len(dead) == 1, "the first letter")  # listed before the other, then
        flowing.change("marked", {"m": 1}, table="orders")
        until(lambda: len(dead) == 2, "the letters")
        assert headwater("flows", "apply", **others).returncode == 0
        first, second = map(json.loads, headwater("dlq", "list", **others).stdout.splitlines())
        shown = headwater("dlq", "show", first["id"], **others)
        assert "which no flow of the settings has as mask_key" in shown.stderr
        assert headwater("dlq", "skip", first["id"], **others).returncode == 0
        until(lambda: len(dead) == 3, "what waited behind it")
        assert headwater("dlq", "retry", second["id"], **others).returncode == 0
        until(lambda: len(dead) == 4, "that it cannot be tried again")
        found = [json.loads(line) for line in headwater("dlq", "list", **others).stdout.splitlines()]
        assert [(one["flow"], one["offset"]) for one in found] == [("f", first["offset"] + 1), ("f", second["offset"])]
        waited = list(dead)[2]
        assert dict(waited.headers() or [])["late"] == b"7"
        assert "ada@example.com" not in repr([record.value() for record in dead])
        assert headwater("dlq", "show", found[0]["id"], **flowing.environment()).returncode == 0


def test_a_flow_that_joins_a_table_with_a_sort_key_is_paused(kafka_stack: Endpoints, tmp_path: Path) -> None:
    join = {"kind": "join", "table": "customers", "on": "customer", "into": "c"}
    flowing = Flowing(kafka_stack, tmp_path, [{"name": "f", "from": ["orders"], "enrich": [join], "to": "a"}])
    with flowing.recorded(flowing.topics.dead_letter) as dead, flowing.fleet.running() as workers:
        flowing.change({"id": "c", "n": 1}, {"name": "Ada"}, table="customers")
        until(lambda: ready(workers)[0] == 503 and "has a sort key" in ready(workers)[1], "that it stands")
        assert len(dead) == 0, "the change is wrong for nobody"


def test_a_lookup_that_fails_is_tried_again_until_there_is_an_answer(kafka_stack: Endpoints, tmp_path: Path) -> None:
    service = Service()
    service.status = 503
    with service.running() as address:
        step = {"kind": "lookup", "url": f"{address}/{{name}}", "into": "found"}
        flowing = Flowing(kafka_stack, tmp_path, [{"name": "f", "to": "a", "enrich": [step]}])
        with (
            flowing.recorded(flowing.topics.sink("a")) as sink,
            flowing.recorded(flowing.topics.dead_letter) as dead,
            flowing.fleet.running() as workers,
        ):
            for number in range(20):
                flowing.change(f"k{number}", {"name": f"n{number % 3}"})
            until(lambda: "is tried again" in log_of(workers.all[0]), "a failure")
            assert len(sink) == 0
            service.status = 200
            until(lambda: len(sink) == 20, "all changes")
            assert len(dead) == 0
            assert workers.all[0].starts == 1
            value = json.loads(next(iter(sink)).value() or b"")
            assert value["enriched"]["found"]["M"]["tier"] == {"S": "gold"}


def test_a_change_of_a_reference_sends_what_it_was_joined_with_again(kafka_stack: Endpoints, tmp_path: Path) -> None:
    join = {"kind": "join", "table": "customers", "on": "customer", "into": "c", "on_reference_change": "re-emit"}
    flow = {"name": "f", "from": ["orders"], "where": "after.n > 0", "enrich": [join], "to": "a"}
    flowing = Flowing(kafka_stack, tmp_path, [flow])

    def sent(sink: Recorder) -> list[tuple[str, str]]:
        """Event IDs, and the name that the change was joined with."""
        values = [json.loads(record.value() or b"") for record in sink]
        return [(v["eventID"], v["enriched"]["c"].get("M", {}).get("name", {}).get("S", "")) for v in values]

    with flowing.recorded(flowing.topics.sink("a")) as sink:
        with flowing.fleet.running():
            flowing.change("ada", {"name": "Ada"}, table="customers")  # e1
            flowing.change("bob", {"name": "Bob"}, table="customers")  # e2
            until(lambda: flowing.references() == 2, "both customers")
            flowing.change("o1", {"customer": "ada", "n": 1})  # e3
            flowing.change("o2", {"customer": "ada", "n": 1})  # e4
            flowing.change("o3", {"customer": "bob", "n": 1})  # e5
            flowing.change("o2", {"customer": "bob", "n": 2})  # e6: points to another one now
            flowing.change("o4", {"customer": "ada", "n": 1})  # e7
            flowing.change("o4", {"customer": "ada", "n": 0})  # e8: left out, so nothing of it is sent again
            until(lambda: len(sink) == 5, "five changes")
            flowing.change("ada", {"name": "Ada Lovelace"}, table="customers")  # e9
            until(lambda: len(sink) == 6, "the one of Ada's that is hers still")
        assert sorted(sent(sink))[:6] == [
            ("e3", "Ada"),
            ("e3", "Ada Lovelace"),
            ("e4", "Ada"),
            ("e5", "Bob"),
            ("e6", "Bob"),
            ("e7", "Ada"),
        ]
        marked = [dict(record.headers() or []).get("re_emitted") for record in sink]
        assert marked.count(b"customers") == 1
        (tmp_path / "worker-1.state").rename(tmp_path / "lost.state")
        with flowing.fleet.running():
            flowing.change("bob", {"name": "Robert"}, table="customers")  # e10
            until(lambda: len(sink) == 8, "both of Bob's")
            flowing.change("o5", {"customer": "ada", "n": 1})  # e11
            until(lambda: len(sink) == 9, "a change after all that is sent again")
        assert {one for one in sent(sink) if one[1] == "Robert"} == {("e5", "Robert"), ("e6", "Robert")}


def test_a_topic_of_others_is_joined(kafka_stack: Endpoints, tmp_path: Path, headwater: Headwater) -> None:
    topic = f"crm.{uuid.uuid4().hex[:8]}"
    conf = {"bootstrap.servers": kafka_stack.bootstrap_servers}
    join = {"kind": "join", "topic": topic, "on": "customer", "into": "c", "on_reference_change": "re-emit"}
    flowing = Flowing(kafka_stack, tmp_path, [{"name": "f", "enrich": [join], "to": "a"}])
    checked = headwater("check", "--json", **flowing.environment())
    assert f"joins the topic {topic}, which is not there" in checked.stdout
    ensure(admin(conf), [Topic(topic, 3, "customers of others")], 1)
    producer = Producer(conf)
    producer.produce(topic, b'{"name": "Ada", "score": 0.1234567890123456789, "tags": ["x"]}', b"c-1")
    producer.produce(topic, b"no JSON", b"c-2")
    assert producer.flush(20) == 0
    with flowing.recorded(flowing.topics.sink("a")) as sink, flowing.fleet.running() as workers:
        flowing.change("o1", {"customer": "c-1"})
        flowing.change("o2", {"customer": "c-2"})
        until(lambda: len(sink) == 2, "two changes")
        assert "is not a JSON object; treated as missing" in log_of(workers.all[0])
        producer.produce(topic, b'{"name": "Bob"}', b"c-2")
        assert producer.flush(20) == 0
        until(lambda: len(sink) == 3, "the one that has its customer now")
        joined = [json.loads(record.value() or b"")["enriched"]["c"] for record in sink]
    ada = {"name": {"S": "Ada"}, "score": {"N": "0.1234567890123456789"}, "tags": {"L": [{"S": "x"}]}}
    assert sorted(joined, key=json.dumps) == [{"M": ada}, {"M": {"name": {"S": "Bob"}}}, {"NULL": True}]
