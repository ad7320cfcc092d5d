"""Pub/Sub by Google's own client, against a server that speaks its protocol: order of each item, refusals, outages."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import grpc  # type: ignore[import-untyped]
import pytest
from confluent_kafka import Message
from support.pubsub_server import Server, serve
from support.sink_worker import PARTITION, Owner

from pipeline.errors import FatalError
from pipeline.settings.sinks import PubSubSettings
from pipeline.sinks.pubsub import KEY_BYTES, MESSAGE_BYTES, PubSub, message_attributes, ordering_key


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    with serve() as (found, address):
        monkeypatch.setenv("PUBSUB_EMULATOR_HOST", address)
        yield found


def record(offset: int, key: str, value: bytes | None) -> Message:
    headers: Any = [("event_id", b"e%d" % offset), ("op", b"u")]
    return Message(*PARTITION, offset=offset, key=key.encode(), value=value, headers=headers, timestamp=(1, offset))


def sink() -> PubSub:
    return PubSub(PubSubSettings(project="p"), {"s": PARTITION.topic})


def carried(records: dict[int, Message], slices: int = 12) -> tuple[Owner, int]:
    owner, committed = Owner(lambda _clock: sink(), records, 0), 0
    for _ in range(slices):
        committed = owner.slice(5) or committed
        owner.work()
        owner.clock.now += 100
    return owner, committed


def by_item(server: Server) -> dict[str, list[bytes]]:
    found: dict[str, list[bytes]] = {}
    for message in server.published:
        found.setdefault(message.ordering_key, []).append(message.data)
    return found


RECORDS = {n: record(n, f"k{n % 3}", b"%d" % n) for n in range(20)}


def test_messages_of_an_item_keep_their_order(server: Server) -> None:
    owner, committed = carried(RECORDS)
    assert committed == 20
    assert by_item(server) == {f"k{k}": [b"%d" % n for n in range(20) if n % 3 == k] for k in range(3)}
    assert dict(server.published[0].attributes) == {"event_id": server.published[0].attributes["event_id"], "op": "u"}
    assert not owner.rejected


def test_what_is_refused_permanently_becomes_a_dead_letter_and_nothing_else(server: Server) -> None:
    records = {**RECORDS, 7: record(7, "k1", b"bad")}
    owner, committed = carried(records)
    assert committed == 20
    assert [offset for offset, _ in owner.rejected] == [7]
    assert by_item(server)["k1"] == [b"%d" % n for n in range(20) if n % 3 == 1 and n != 7]


def test_an_outage_is_waited_for_and_the_reason_is_seen(server: Server) -> None:
    server.refuse = [grpc.StatusCode.FAILED_PRECONDITION] * 6  # the client itself tries UNAVAILABLE again, for a minute
    owner, committed = carried(RECORDS)
    assert committed == 20
    assert {data for found in by_item(server).values() for data in found} == {b"%d" % n for n in range(20)}
    assert any(state is not None and b"refused" in state for state in owner.states)
    assert owner.states[-1] is None


def test_a_topic_that_is_not_there_is_said_at_the_start(server: Server) -> None:
    server.topics.clear()
    with pytest.raises(FatalError, match="there is no topic") as error:
        sink().prepare()
    assert error.value.hint == "gcloud pubsub topics create p.sink.s --project p"


def test_a_tombstone_says_so_and_a_long_key_is_hashed() -> None:
    assert message_attributes(record(0, "k", None))["tombstone"] == "true"
    assert ordering_key(b"k" * KEY_BYTES) == "k" * KEY_BYTES
    assert len(ordering_key(b"k" * (KEY_BYTES + 1))) == 64


def odd(offset: int, key: bytes, value: bytes | None, headers: list[tuple[str, Any]]) -> Message:
    return Message(*PARTITION, offset=offset, key=key, value=value, headers=headers, timestamp=(1, offset))


REFUSED: dict[str, Message] = {
    "more than ten million bytes": odd(1, b"k", b"x" * MESSAGE_BYTES, []),
    "more than a hundred attributes": odd(1, b"k", b"x", [(f"h{n}", b"v") for n in range(101)]),
    "an attribute with a name that is too long": odd(1, b"k", b"x", [("h" * 257, b"v")]),
    "an attribute without a name": odd(1, b"k", b"x", [("", b"v")]),
    "an attribute of a name that is Google's": odd(1, b"k", b"x", [("goog-x", b"v")]),
    "an attribute of a name that the client takes": odd(1, b"k", b"x", [("topic", b"v")]),
    "nothing at all": odd(1, b"k", b"", []),
}


@pytest.mark.parametrize("why", REFUSED)
def test_a_message_that_pubsub_can_never_take_is_a_dead_letter_and_the_others_of_its_item_continue(
    server: Server, why: str
) -> None:
    owner, committed = carried({0: record(0, "k", b"first"), 1: REFUSED[why], 2: record(2, "k", b"last")})
    assert committed == 3
    assert [message.data for message in server.published] == [b"first", b"last"]
    assert [offset for offset, _ in owner.rejected] == [1]
    assert not owner.fatal


def test_a_key_that_is_not_text_and_headers_that_are_none_are_published(server: Server) -> None:
    _, committed = carried({0: odd(0, b"\xff\xfe", b"x", [("none", None), ("bytes", b"\xff" * 900)])})
    assert committed == 1
    (message,) = server.published
    assert len(message.ordering_key) == 64
    assert dict(message.attributes) == {"none": ""}  # as text it is longer than 1,024 bytes
