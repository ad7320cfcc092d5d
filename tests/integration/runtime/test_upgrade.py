"""A worker of the version before is stopped or killed, the new one starts on what it has left, and goes on exactly once."""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Self

import pyarrow.parquet as pq
import pytest
from confluent_kafka import Message, Producer
from confluent_kafka.admin import AdminClient
from conftest import Headwater
from faust.types import TP
from support.earlier_deployment import BAD, MORE, PARTITIONS, PREFIXES, READ, RENAMED, change, customer, settings
from support.fleet import Fleet, log_of
from support.restored_deployment import offsets_of, restore
from support.waiting import until

from headwater.lab.recorder import Recorder, lag
from headwater.lab.stack import Endpoints
from pipeline.sinks.lake.objects import Objects
from pipeline.sinks.lake.verify import verify_lake
from pipeline.transport.committed import committed
from pipeline.transport.logs import logs_of

pytestmark = pytest.mark.kafka
KNOWN = READ + MORE
NEW = range(KNOWN, KNOWN + 22)
AGAIN = (3, 8, 21, 44, 59, 61, 70, 79)
"""Changes that come once more: the version before has seen the first five and has left the last three unread."""
LATE = {NEW.stop: "c4", NEW.stop + 1: "c2"}
"""The customer that orders have waited for, and another name of one that orders were joined with, come last."""
MORE_NEW = range(NEW.stop + len(LATE), NEW.stop + len(LATE) + 8)
"""What comes after a restart."""


def written(number: int) -> tuple[bytes, bytes]:
    """Return a change as it stands on ingest."""
    return customer(number, LATE[number]) if number in LATE else change(number)


class Upgraded:
    """The deployment of the version before, on this version's code."""

    def __init__(self, stack: Endpoints, directory: Path, variant: str) -> None:
        self.lake, prefix = directory / "lake", PREFIXES[variant]
        self.lake.mkdir()
        conf = {"bootstrap.servers": stack.bootstrap_servers}
        restore(conf, variant, directory / "worker-1.state", self.lake)
        self.fleet = Fleet(stack, directory, settings(prefix, self.lake), partitions=PARTITIONS, prefix=prefix)
        names = ("raw", "sink.orders", "sink.joined", "sink.strict", "dead-letter", "gaps", "ingest")
        self.topics = {name: Recorder(self.fleet.conf, f"{prefix}.{name}") for name in names}

    def __enter__(self) -> Self:
        for recorder in self.topics.values():
            recorder.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        for recorder in self.topics.values():
            recorder.__exit__()

    def write(self, changes: Iterable[tuple[bytes, bytes]]) -> None:
        """Write changes to ingest."""
        producer = Producer({**self.fleet.conf, "partitioner": "murmur2_random"})
        for key, value in changes:
            producer.produce(self.fleet.topics.ingest, value, key)
        assert producer.flush(20) == 0

    def is_through(self) -> bool:
        """Say whether all is read: what the agents read of ingest, raw and the sinks, up to the ends."""
        orders, raw = f"{self.fleet.prefix}.sink.orders", self.fleet.topics.raw
        ends = {
            topic: self.topics[name].ends
            for topic, name in ((self.fleet.topics.ingest, "ingest"), (raw, "raw"), (orders, "sink.orders"))
        }
        return lag(self.fleet.conf, self.fleet.prefix, ends) == 0

    def rows(self) -> Counter[int]:
        """How often each change is in the lake."""
        objects = Objects(f"file://{self.lake}")
        files = [objects.read(path) for path in objects.paths() if path.endswith(".parquet")]
        tables = [pq.read_table(io.BytesIO(file), columns=["_event_id"]) for file in files]
        return Counter(int(one, 16) for table in tables for one in table.column("_event_id").to_pylist())


def number(record: Message) -> int:
    return int(json.loads(record.value() or b"{}")["eventID"], 16)


def firsts(recorder: Recorder) -> list[int]:
    """The changes on a sink, but those that are sent again because a reference has changed."""
    return [number(one) for one in recorder if "re_emitted" not in dict(one.headers() or [])]


def again(recorder: Recorder, customer: str) -> list[int]:
    """The changes that are sent again and are joined with this customer."""
    marked = [json.loads(one.value() or b"") for one in recorder if "re_emitted" in dict(one.headers() or [])]
    mine = [one for one in marked if one["dynamodb"]["NewImage"]["customer"] == {"S": customer}]
    return [int(one["eventID"], 16) for one in mine]


def orders(end: int) -> list[int]:
    """The changes of orders before this one."""
    return [one for one in range(8, end) if one != RENAMED and one not in LATE]


def require_each_once(found: list[int], wanted: Iterable[int], *, but: Iterable[int] = ()) -> None:
    """Nothing is lost, nothing is doubled, and the changes of each item stand in their order."""
    counts, left = Counter(found), set(but)
    assert [one for one, count in counts.items() if count > 1] == [], "doubled"
    assert set(wanted) - set(counts) - left == set(), "lost"
    assert set(counts) - set(wanted) == set(), "of nobody"
    last: dict[bytes, int] = {}
    for one in found:
        key = written(one)[0]
        assert last.get(key, -1) < one, "out of order"
        last[key] = one


def held(end: int) -> set[int]:
    """The orders that wait for the customer c4, with those that wait behind them."""
    waiting: set[bytes] = set()
    found = set()
    for order in orders(end):
        key, value = change(order)
        if json.loads(value)["dynamodb"]["NewImage"]["customer"] == {"S": "c4"}:
            waiting.add(key)
        if key in waiting:
            found.add(order)
    return found


@pytest.mark.parametrize("variant", PREFIXES)
def test_the_new_version_continues_where_the_version_before_was(
    variant: str, stack: Endpoints, tmp_path: Path, headwater: Headwater
) -> None:
    with Upgraded(stack, tmp_path, variant) as upgraded:
        topics, fleet = upgraded.topics, upgraded.fleet
        bad = {BAD, BAD + 1, BAD + 2}
        with fleet.running() as workers:
            until(lambda: len(topics["raw"]) >= KNOWN, "what was left unread")
            until(lambda: upgraded.rows().total() >= len(orders(KNOWN)) and upgraded.is_through(), "the lake")
            require_each_once([number(topic) for topic in topics["raw"]], range(KNOWN))
            require_each_once(firsts(topics["sink.orders"]), orders(KNOWN))
            require_each_once(firsts(topics["sink.strict"]), orders(KNOWN), but=bad)
            require_each_once(firsts(topics["sink.joined"]), orders(KNOWN), but=held(KNOWN))
            require_each_once(sorted(upgraded.rows()), orders(KNOWN))
            assert upgraded.rows().total() == len(orders(KNOWN)), "doubled"

            upgraded.write(map(change, [*AGAIN, *NEW, *AGAIN[:2], NEW[0]]))
            until(lambda: len(topics["raw"]) >= NEW.stop, "more changes")
            upgraded.write([written(NEW.stop)])
            until(lambda: set(firsts(topics["sink.joined"])) >= set(orders(NEW.stop)), "the orders that have waited")
            before = again(topics["sink.joined"], "c2")
            upgraded.write([written(NEW.stop + 1)])
            sent = last_of("c2", NEW.stop)
            until(lambda: set(again(topics["sink.joined"], "c2")[len(before) :]) >= sent, "what is sent again")
            (letter,) = map(json.loads, headwater("dlq", "list", **fleet.environment).stdout.splitlines())
            assert headwater("dlq", "skip", letter["id"], **fleet.environment).returncode == 0
            until(lambda: set(firsts(topics["sink.strict"])) >= bad - {BAD}, "what has waited behind the letter")
            require_all(upgraded, MORE_NEW.start)
            assert sorted(again(topics["sink.joined"], "c2")[len(before) :]) == sorted(sent)
            require_logs(fleet, variant)
            taken_over = f"{fleet.prefix}.sink.orders[0] up to 34 is in files already"
            assert (taken_over in log_of(workers.all[0])) == (variant == "killed")
            assert workers.all[0].starts == 1
        shown = headwater("positions", "--json", **fleet.environment)
        assert shown.returncode == 0, shown.stdout

        with fleet.running() as workers:
            upgraded.write(map(change, [*AGAIN, *MORE_NEW, NEW[0]]))
            until(lambda: len(topics["raw"]) >= MORE_NEW.stop, "changes after a restart")
            until(lambda: set(firsts(topics["sink.joined"])) >= set(MORE_NEW), "the orders after a restart")
            require_all(upgraded, MORE_NEW.stop)
            for trouble in ("CRITICAL", "ERROR", "Traceback"):
                assert trouble not in log_of(workers.all[0])
        assert len(topics["gaps"]) == 0
        assert len(topics["dead-letter"]) == 1, "the one that there was"


def require_all(upgraded: Upgraded, end: int) -> None:
    """All changes up to this one are everywhere, once."""
    wanted = orders(end)
    until(lambda: upgraded.rows().total() >= len(wanted) and upgraded.is_through(), "the lake")
    require_each_once([number(topic) for topic in upgraded.topics["raw"]], range(end))
    require_each_once(firsts(upgraded.topics["sink.orders"]), wanted)
    require_each_once(firsts(upgraded.topics["sink.joined"]), wanted)
    require_each_once(firsts(upgraded.topics["sink.strict"]), wanted, but={BAD})
    assert upgraded.rows() == Counter(wanted)
    checked = verify_lake(Objects(f"file://{upgraded.lake}"))
    assert (checked.problems, checked.rows) == ((), len(wanted))


def require_logs(fleet: Fleet, variant: str) -> None:
    """What the group has committed carries the log that it is of."""
    client = AdminClient(fleet.conf)
    tps = [TP(topic, int(p)) for topic, parts in offsets_of(variant)[fleet.prefix].items() for p in parts]
    logs = logs_of(client, {tp.topic for tp in tps})
    found = {tp: one.log for tp, one in committed(client, fleet.prefix, tps).items()}
    assert found == {tp: logs[tp.topic] for tp in tps}
    assert all(log.topic_id for log in found.values())


def last_of(customer: str, end: int) -> set[int]:
    """The newest change of each order, of those that are of this customer."""
    newest = {change(order)[0]: order for order in orders(end)}
    return {one for one in newest.values() if customer in change(one)[1].decode().partition("NewImage")[2]}
