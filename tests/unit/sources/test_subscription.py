"""Parts of enhanced fan-out: messages as botocore reads them, and what a thread hands over."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Generator, Iterator
from typing import Any

import pytest
from botocore.eventstream import ChecksumMismatch, EventStream
from botocore.exceptions import ClientError
from support.waiting import until

from headwater.lab.simulator.event_stream import event, exception
from pipeline.errors import TransientError
from pipeline.services.aws import TrimmedError
from pipeline.settings.sources import KinesisSettings
from pipeline.sources.kinesis.api import behind as expect
from pipeline.sources.kinesis.consumers import Consumers
from pipeline.sources.kinesis.pushed import EVENT, Connection
from pipeline.sources.kinesis.records import Answer, Put, read_event
from pipeline.sources.kinesis.subscription import Subscription
from pipeline.sources.shard_positions import ShardOf


class Raw:
    """What a connection gives, in pieces of a few bytes."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def stream(self) -> Iterator[bytes]:
        yield from (self._data[at : at + 7] for at in range(0, len(self._data), 7))


OPENING = event("initial-response", b"{}")


def test_botocore_reads_the_first_message_of_a_connection_and_all_events_are_given() -> None:
    data = OPENING + event(EVENT, b'{"a":1}') + event("SomethingNew", b"{}") + event(EVENT, b'{"a":2}')
    connection = Connection(Raw(data))
    nothing: Any = None
    events: Any = EventStream(connection, nothing, nothing, "SubscribeToShard")
    first: Any = events.get_initial_response()
    assert first.payload == b"{}"
    assert list(connection.payloads()) == [b'{"a":1}', b'{"a":2}']


def test_an_error_among_the_events_has_its_code_and_a_damaged_one_is_noticed() -> None:
    failing = Connection(Raw(event(EVENT, b"{}") + exception("InternalFailureException", b'{"message":"no"}')))
    payloads = failing.payloads()
    assert next(payloads) == b"{}"
    with pytest.raises(ClientError, match=r"InternalFailureException.*: no"):
        next(payloads)
    with pytest.raises(ChecksumMismatch):
        list(Connection(Raw(event(EVENT, b"{}")[:-1] + b"\x00")).payloads())


def test_an_event_is_read_as_an_answer_and_the_children_are_in_the_last() -> None:
    record = b'{"Data":"YQ==","PartitionKey":"k","SequenceNumber":"7","ApproximateArrivalTimestamp":1.5}'
    payload = b'{"Records":[%s],"MillisBehindLatest":5,"ContinuationSequenceNumber":"8","ChildShards":null}' % record
    assert read_event(payload, "arn", "s") == (Answer([Put("arn", "s", "7", "k", 1.5, b"a")], "", True), "8")
    last, reached = read_event(b'{"Records":[],"MillisBehindLatest":0,"ChildShards":[{"ShardId":"t"}]}', "arn", "s")
    assert (last, reached) == (Answer([], None), None)


def test_a_subscription_waits_until_what_it_holds_is_taken() -> None:
    reached: list[int] = []

    def follow(closed: threading.Event) -> Generator[int | Exception, None, None]:
        for number in range(5):
            reached.append(number)
            yield TransientError("a break") if number == 2 else number

    subscription = Subscription(follow, "test")
    assert subscription.take() is None
    until(lambda: reached == [0, 1], "one held, one in hand")
    taken: list[int | str] = []

    async def take_all() -> None:
        while True:
            await subscription.wait()
            try:
                found = subscription.take()
            except TransientError as error:
                taken.append(str(error))
            else:
                if found is None:
                    return
                taken.append(found)

    asyncio.run(take_all())
    assert taken == [0, 1, "a break", 3, 4]
    assert subscription.ended


def test_nothing_is_followed_before_somebody_listens() -> None:
    before = threading.active_count()
    subscription = Subscription(lambda closed: (one for one in [1]), "test")
    assert threading.active_count() == before
    assert asyncio.run(asyncio.wait_for(subscription.wait(), 10)) is None
    assert subscription.take() == 1


def test_a_subscription_that_is_closed_ends_although_nobody_takes() -> None:
    ended = threading.Event()

    def follow(closed: threading.Event) -> Generator[int | Exception, None, None]:
        try:
            while True:
                yield 1
        finally:
            ended.set()

    subscription = Subscription(follow, "test")
    subscription.take()
    until(lambda: subscription._held is not None, "something to take")
    subscription.close()
    assert ended.wait(10)


def test_what_the_thread_raises_is_raised_where_it_is_taken() -> None:
    def follow(closed: threading.Event) -> Generator[int | Exception, None, None]:
        yield from (1 // number for number in [0])

    subscription = Subscription(follow, "test")
    asyncio.run(subscription.wait())
    with pytest.raises(ZeroDivisionError):
        subscription.take()


SHARD = ShardOf("t", "arn:aws:kinesis:eu-west-1:1:stream/t/1", "s")


def answer(*sequences: str, behind: bool = False) -> Answer:
    return Answer([Put("arn", "s", sequence, "k", 0.0, b"") for sequence in sequences], "", behind)


def test_the_record_at_the_place_is_left_out_and_its_absence_is_noticed() -> None:
    assert expect("7", answer("7", "8"), SHARD) == (answer("8"), None)
    assert expect(None, answer("7"), SHARD) == (answer("7"), None)
    assert expect("7", answer(behind=True), SHARD) == (answer(behind=True), "7"), "it is still to come"
    assert expect("7", answer(), SHARD) == (answer(), None), "nothing is there: nothing was missed"
    with pytest.raises(TrimmedError):
        expect("7", answer("8"), SHARD)


class Registry:
    """Stands for boto3: a consumer that never becomes ACTIVE."""

    def describe_stream_consumer(self, **_: str) -> dict[str, dict[str, str]]:
        return {"ConsumerDescription": {"ConsumerARN": "arn", "ConsumerStatus": "CREATING"}}


def test_a_consumer_that_does_not_become_active_is_an_error_that_says_what_to_type(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("pipeline.sources.kinesis.consumers.ACTIVE_SECONDS", -1.0)
    consumers = Consumers(Registry(), "mine", sleep=lambda _: None)  # type: ignore[arg-type]
    with pytest.raises(TransientError, match="the consumer mine of S is CREATING") as found:
        consumers.active("S")
    assert found.value.hint == "aws kinesis list-stream-consumers --stream-arn S"


def test_a_consumer_is_a_name_or_the_arn_of_one_of_the_stream() -> None:
    arn = "arn:aws:kinesis:eu-west-1:000000000000:stream/orders/consumer/mine:1767225600"
    assert KinesisSettings(kind="kinesis", streams=("orders",), consumer=arn).consumer == arn
    for streams, consumer in ((("customers",), arn), (("ord*",), arn), (("orders",), "a/b"), (("orders",), "")):
        with pytest.raises(ValueError, match="consumer"):
            KinesisSettings(kind="kinesis", streams=streams, consumer=consumer)
