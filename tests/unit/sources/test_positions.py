"""What one answer of AWS does not prove: that a position of Kinesis was not trimmed, that a table or a consumer is gone."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Callable
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any, cast

import pytest
from botocore.exceptions import ClientError

from pipeline.errors import FatalError
from pipeline.services.aws import TrimmedError, VanishedError
from pipeline.settings.sources import KinesisSettings
from pipeline.sources.base import ShardStart
from pipeline.sources.kinesis.api import KinesisStreams
from pipeline.sources.kinesis.consumers import Consumers
from pipeline.sources.shard_positions import ShardOf
from pipeline.sources.snapshots import snapshotter as snapshots
from pipeline.sources.snapshots.snapshotter import SnapshotHost, Snapshotter

ARN = "arn:aws:kinesis:eu-west-1:1:stream/clicks"
SHARD = "shardId-000000000000"


class Stream:
    """A Kinesis stream that gives these answers, one after the other: sequence numbers, and milliseconds behind."""

    def __init__(self, *answers: tuple[tuple[int, ...], int]) -> None:
        self.answers, self.asked = list(answers), list[dict[str, Any]]()

    def describe_stream_summary(self, **_: str) -> dict[str, Any]:
        created = datetime(2026, 1, 1, tzinfo=UTC)
        return {"StreamDescriptionSummary": {"StreamARN": ARN, "StreamCreationTimestamp": created}}

    def get_shard_iterator(self, **where: Any) -> dict[str, str]:
        self.asked.append(where)
        return {"ShardIterator": "i"}

    def get_records(self, **_: Any) -> dict[str, Any]:
        numbers, behind = self.answers.pop(0)
        records = [
            {"SequenceNumber": f"{n}", "PartitionKey": "p", "Data": base64.b64encode(b'{"n":1}').decode()}
            for n in numbers
        ]
        body = {"Records": records, "NextShardIterator": "j", "MillisBehindLatest": behind}
        return {"Body": json.dumps(body).encode(), "Checksum": None}


def reading(stream: Stream, **settings: Any) -> Callable[[], list[str]]:
    """Read after the sequence number 100; return a function that gives the numbers of the next answer."""
    api = KinesisStreams(KinesisSettings(kind="kinesis", streams=("clicks",), **{"codec": "json", **settings}))
    api.__dict__["_streams"] = stream
    arn = api.stream_of("clicks").arn
    iterator = api.iterator(arn, SHARD, ShardStart(after="100"))

    def following() -> list[str]:
        nonlocal iterator
        found = api.records(iterator, ShardOf("clicks", arn, SHARD))
        iterator = cast("str", found.next_iterator)
        return [json.loads(record["value"])["dynamodb"]["SequenceNumber"] for record in found.records]

    return following


@pytest.mark.parametrize("empty", [0, 1, 2, 7, 50])
@pytest.mark.parametrize("settings", [{}, {"codec": "dynamodb", "resequence": 5}])
def test_a_position_that_was_trimmed_is_noticed_behind_any_number_of_empty_answers(
    empty: int, settings: dict[str, Any]
) -> None:
    stream = Stream(*[((), 86_000_000)] * empty, ((500, 501), 0))
    following = reading(stream, **settings)
    for _ in range(empty):
        assert following() == []
    with pytest.raises(TrimmedError):
        following()
    assert [where["ShardIteratorType"] for where in stream.asked] == ["AT_SEQUENCE_NUMBER"]


def test_the_record_at_the_position_is_left_out_and_what_follows_is_read() -> None:
    following = reading(Stream(((), 5), ((100,), 5), ((101,), 5), ((), 5), ((102, 103), 0)))
    assert [following() for _ in range(5)] == [[], [], ["101"], [], ["102", "103"]]


def test_where_nothing_is_there_nothing_was_missed() -> None:
    following = reading(Stream(((), 0), ((500,), 0)))
    assert [following() for _ in range(2)] == [[], ["500"]]


def not_found() -> ClientError:
    return ClientError({"Error": {"Code": "ResourceNotFoundException", "Message": "no"}}, "DescribeStreamConsumer")


class Registered:
    """A stream's consumers: the errors to raise one after the other, then the consumer."""

    def __init__(self, *errors: Exception) -> None:
        self.errors, self.registered = list(errors), 0

    def describe_stream_consumer(self, **_: str) -> dict[str, Any]:
        if self.errors:
            raise self.errors.pop(0)
        return {"ConsumerDescription": {"ConsumerARN": f"{ARN}/consumer/app:1", "ConsumerStatus": "ACTIVE"}}

    def register_stream_consumer(self, **_: str) -> None:
        self.registered += 1


def test_a_consumer_that_is_named_by_its_arn_is_missed_when_two_answers_lack_it() -> None:
    arn = f"{ARN}/consumer/app:1"
    found = Consumers(cast("Any", Registered(not_found())), arn, sleep=lambda _: None)
    assert found.active(ARN) == arn
    with pytest.raises(FatalError, match="there is no consumer"):
        Consumers(cast("Any", Registered(not_found(), not_found())), arn, sleep=lambda _: None).active(ARN)


def test_a_consumer_that_one_answer_lacks_is_registered_which_changes_nothing_where_it_is() -> None:
    streams = Registered(not_found())
    assert Consumers(cast("Any", streams), "app", sleep=lambda _: None).active(ARN) == f"{ARN}/consumer/app:1"
    assert streams.registered == 1


def test_a_table_of_a_snapshot_is_gone_when_two_answers_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshots, "ASKED_AGAIN_S", 0.0)
    gone = VanishedError("the table orders does not exist")

    def asking(*errors: Exception | None) -> str:
        answers = list(errors)

        async def call(function: Callable[[], str]) -> str:
            error = answers.pop(0)
            if error is not None:
                raise error
            return function()

        snapshotter = Snapshotter(cast("Any", None), cast("Any", None), cast("Any", None), lambda _: True)
        host = cast("SnapshotHost", SimpleNamespace(call=call))
        return asyncio.run(snapshotter._patiently(host, lambda: "facts"))

    assert asking(gone, None) == "facts"
    with pytest.raises(VanishedError):
        asking(gone, gone, None)
