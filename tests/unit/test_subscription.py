"""Parts of enhanced fan-out: messages as botocore reads them, and what a thread hands over."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Generator

import pytest
from botocore.eventstream import ChecksumMismatch, EventStreamBuffer
from waiting import until

from pipeline.errors import TransientError
from pipeline.lab.simulator.event_stream import event, exception
from pipeline.settings import Kinesis
from pipeline.sources.aws import TrimmedError
from pipeline.sources.consumers import Consumers
from pipeline.sources.fan_out import _behind
from pipeline.sources.kinesis_records import Answer, Put
from pipeline.sources.places import ShardOf
from pipeline.sources.subscription import Subscription


def test_messages_are_what_botocore_reads() -> None:
    buffer = EventStreamBuffer()
    buffer.add_data(event("SubscribeToShardEvent", b'{"a":1}') + exception("InternalFailureException", b"{}"))
    first, second = (one.to_response_dict() for one in buffer)
    assert (first["status_code"], first["headers"][":event-type"], first["body"]) == (
        200,
        "SubscribeToShardEvent",
        b'{"a":1}',
    )
    assert (second["status_code"], second["headers"][":exception-type"]) == (400, "InternalFailureException")
    damaged = EventStreamBuffer()
    damaged.add_data(event("SubscribeToShardEvent", b"{}")[:-1] + b"\x00")
    with pytest.raises(ChecksumMismatch):
        next(damaged)


def test_a_subscription_stands_still_until_what_it_holds_is_taken() -> None:
    reached: list[int] = []

    def follow(closed: threading.Event) -> Generator[int | Exception, None, None]:
        for number in range(5):
            reached.append(number)
            yield TransientError("a break") if number == 2 else number

    subscription = Subscription(follow, "test")
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


def test_a_subscription_that_is_closed_ends_although_nobody_takes() -> None:
    ended = threading.Event()

    def follow(closed: threading.Event) -> Generator[int | Exception, None, None]:
        try:
            while True:
                yield 1
        finally:
            ended.set()

    subscription = Subscription(follow, "test")
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
    return Answer([Put("arn", "s", one, "k", 0.0, b"") for one in sequences], "", behind)


def test_the_record_at_the_place_is_left_out_and_its_absence_is_noticed() -> None:
    assert _behind("7", answer("7", "8"), SHARD) == (answer("8"), None)
    assert _behind(None, answer("7"), SHARD) == (answer("7"), None)
    assert _behind("7", answer(behind=True), SHARD) == (answer(behind=True), "7"), "it is still to come"
    assert _behind("7", answer(), SHARD) == (answer(), None), "nothing is there: nothing was missed"
    with pytest.raises(TrimmedError):
        _behind("7", answer("8"), SHARD)


class Registry:
    """Stands for boto3: a consumer that never becomes ACTIVE."""

    def describe_stream_consumer(self, **_: str) -> dict[str, dict[str, str]]:
        return {"ConsumerDescription": {"ConsumerARN": "arn", "ConsumerStatus": "CREATING"}}


def test_a_consumer_that_does_not_become_active_is_an_error_that_says_what_to_type(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("pipeline.sources.consumers.ACTIVE_SECONDS", -1.0)
    consumers = Consumers(Registry(), "mine", sleep=lambda _: None)  # type: ignore[arg-type]
    with pytest.raises(TransientError, match="the consumer mine of S is CREATING") as found:
        consumers.active("S")
    assert found.value.hint == "aws kinesis list-stream-consumers --stream-arn S"


def test_a_consumer_is_a_name_or_the_arn_of_one_of_the_stream() -> None:
    arn = "arn:aws:kinesis:eu-west-1:000000000000:stream/orders/consumer/mine:1767225600"
    assert Kinesis(kind="kinesis", streams=("orders",), consumer=arn).consumer == arn
    for streams, consumer in ((("customers",), arn), (("ord*",), arn), (("orders",), "a/b"), (("orders",), "")):
        with pytest.raises(ValueError, match="consumer"):
            Kinesis(kind="kinesis", streams=streams, consumer=consumer)
