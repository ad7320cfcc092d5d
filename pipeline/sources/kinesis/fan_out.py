"""Enhanced fan-out: Kinesis pushes the records of a shard to a registered consumer, over a subscription of five minutes.

A thread a shard holds the subscription, renews it, and hands its events over to the reader, which takes them as it takes
answers of GetRecords: see `shard_reader`. Places, gaps and credits are the same; one way of reading can follow the other.
"""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections.abc import Generator, Iterator
from contextlib import closing
from datetime import UTC, datetime
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, cast

import msgspec
from botocore.eventstream import ParserError
from botocore.exceptions import ClientError
from botocore.parsers import ResponseParserError
from urllib3.exceptions import HTTPError

from pipeline.errors import HeadwaterError, TransientError
from pipeline.limits import MESSAGE_MAX
from pipeline.services.aws import ERRORS, ExpiredIteratorError, NothingYetError, TrimmedError, VanishedError, client
from pipeline.settings.sources import KinesisSettings
from pipeline.sources.base import Cut, ShardStart, Stream
from pipeline.sources.kinesis.api import KinesisStreams, behind, refused_stream
from pipeline.sources.kinesis.consumers import Consumers
from pipeline.sources.kinesis.pushed import Connection, take_stream
from pipeline.sources.kinesis.records import Answer, plain_json, read_event, table_name
from pipeline.sources.kinesis.subscription import Subscription
from pipeline.sources.shard_positions import ShardOf

if TYPE_CHECKING:
    from mypy_boto3_kinesis import KinesisClient

log = logging.getLogger(__name__)
IN_USE = "ResourceInUseException"
SUBSCRIBE_AGAIN_S = 5.2
"""Seconds after which a shard may be subscribed to again: before 5 s, Kinesis says ResourceInUseException."""
FAN_OUT_SLOWEST_S = 10.0
"""Seconds of the longest pause between two calls that fail; the shortest is 1 s, as Kinesis wants it."""
FAN_OUT_SILENCE_S = 35.0
"""Seconds without an event (an idle shard gives one in a few seconds) after which the connection is given up."""
FORGETFUL_S = 3_600.0
"""Seconds after which what a subscription left off at may have been trimmed, so that its place is looked at again."""
CONNECTIONS = 64
"""Connections that are kept for the next call."""


class TakenOverError(TransientError):
    """Somebody else has subscribed to the shard with the same consumer."""


class FanOutStreams(KinesisStreams):
    """The calls that the source needs (see `sources.base.StreamApi`): records come by subscriptions."""

    def __init__(self, settings: KinesisSettings, most: int = MESSAGE_MAX) -> None:
        super().__init__(settings, most)
        self._consumers: dict[str, str] = {}
        """The consumer's ARN, by the stream's."""
        self._subscriptions: dict[ShardOf, tuple[str, Subscription[Answer]]] = {}
        """With what the reader calls it."""
        self._numbers = itertools.count()
        self._subscribed: dict[ShardOf, float] = {}
        """When a shard was subscribed to last."""
        self._disputed: set[str] = set()
        """Streams of which it was said that another reader has the same consumer."""

    @cached_property
    def _subscriber(self) -> KinesisClient:
        found: KinesisClient = client("kinesis", self._settings.region, CONNECTIONS, read_timeout=FAN_OUT_SILENCE_S)
        found.meta.events.register("before-parse.kinesis.SubscribeToShard", take_stream)
        return found

    @cached_property
    def _registry(self) -> Consumers:
        return Consumers(self._streams, self._settings.consumer)

    def stream_of(self, table: str) -> Stream:
        """Return the stream of this name as it is now; its consumer is there then, and ACTIVE."""
        stream = super().stream_of(table)
        self._register(plain_json(stream.arn))
        return stream

    def _register(self, stream_arn: str) -> str:
        self._consumers[stream_arn] = self._registry.active(stream_arn)
        return self._consumers[stream_arn]

    def iterator(self, arn: str, shard_id: str, start: ShardStart) -> str:
        """Return a name for a subscription that begins there; that its place is trimmed comes later, from `records`."""
        self._require_newest(arn)
        shard = ShardOf(table_name(arn), arn, shard_id)
        name = f"{shard_id}#{next(self._numbers)}"
        self._close(shard)
        self._subscriptions[shard] = name, Subscription(partial(self._follow, shard, start), f"fan-out {shard_id}")
        return self._windowed(name)

    def records(self, iterator: str, shard: ShardOf) -> Cut:
        """Return the next event, cut into changes. Does not block."""
        name, subscription = self._subscriptions.get(shard, ("", None))
        if subscription is None or name != iterator:
            raise ExpiredIteratorError(f"{shard}: the subscription was closed")
        try:
            answer = subscription.take()
        except TakenOverError as error:
            self._warn_of_another(shard, error)
            raise
        if answer is None:
            if subscription.ended:
                raise ExpiredIteratorError(f"{shard}: the subscription has ended")
            raise NothingYetError(f"{shard}: no event has arrived yet")
        return self._cut(answer if answer.next_iterator is None else answer._replace(next_iterator=name), iterator)

    def _warn_of_another(self, shard: ShardOf, error: TakenOverError) -> None:
        if shard.arn not in self._disputed:
            self._disputed.add(shard.arn)
            log.warning(
                "%s. Once, after this worker was idle, this is harmless. If it repeats, another deployment uses the same "
                "consumer. Try: another name in the setting consumer",
                error,
            )

    async def pause(self, shard: ShardOf, seconds: float) -> None:
        """Wait for the next event, or error, of the subscription; where there is none, so long."""
        _, subscription = self._subscriptions.get(shard, ("", None))
        await (super().pause(shard, seconds) if subscription is None else subscription.wait())

    def left(self, shard: ShardOf) -> None:
        """End the subscription. Its connection is closed with the next event; whoever subscribes next takes it over."""
        self._close(shard)
        self._subscribed.pop(shard, None)

    def _close(self, shard: ShardOf) -> None:
        _, subscription = self._subscriptions.pop(shard, ("", None))
        if subscription is not None:
            subscription.close()

    # -- in the thread of a subscription ------------------------------------------------------------------------------

    def _follow(
        self, shard: ShardOf, start: ShardStart, closed: threading.Event
    ) -> Generator[Answer | Exception, None, None]:
        """Yield the events of a shard, and errors; subscribe again when a subscription ends, from where it ended."""
        where, expected, failed = _where(start), start.after, 0
        heard = time.monotonic()
        while not closed.wait(self._until_next(shard, failed)):
            try:
                for event, reached in self._events(shard, where):
                    failed, heard = 0, time.monotonic()
                    answer, expected = behind(expected, event._replace(asked=heard, heard=heard), shard)
                    yield answer
                    if answer.next_iterator is None:
                        return
                    if expected is None and reached is not None:
                        where = _at("AFTER_SEQUENCE_NUMBER", reached)
            except (TrimmedError, VanishedError) as error:
                yield error
                return
            except HeadwaterError as error:
                failed += 1
                yield error
            if time.monotonic() - heard > FORGETFUL_S:
                yield ExpiredIteratorError(f"{shard}: nothing has arrived for a long time")
                return

    def _until_next(self, shard: ShardOf, failed: int) -> float:
        """Return the seconds until the shard may be subscribed to."""
        since = time.monotonic() - self._subscribed.get(shard, float("-inf"))
        return max(SUBSCRIBE_AGAIN_S - since, min(FAN_OUT_SLOWEST_S, 2.0 ** (failed - 1)) if failed else 0.0)

    def _events(self, shard: ShardOf, where: dict[str, Any]) -> Iterator[tuple[Answer, str | None]]:
        self._require_newest(shard.arn)
        arn = plain_json(shard.arn)
        consumer = self._consumers.get(arn) or self._register(arn)
        connected = False
        try:
            found: Any = self._subscriber.subscribe_to_shard(
                ConsumerARN=consumer, ShardId=shard.shard_id, StartingPosition=cast("Any", where)
            )
            self._subscribed[shard], connected = time.monotonic(), True
            connection: Connection = found["Connection"]
            with closing(connection):
                for payload in connection.payloads():
                    yield read_event(payload, arn, shard.shard_id)
        except ERRORS as error:
            explained = refused_stream(error, str(shard), "SequenceNumber" in where)
            if isinstance(explained, VanishedError):
                self._require_gone(shard, consumer)
            if connected and isinstance(error, ClientError) and error.response["Error"]["Code"] == IN_USE:
                raise TakenOverError(f"{shard}: another reader has subscribed as {consumer}") from error
            raise explained from error
        except (HTTPError, ParserError, ResponseParserError, msgspec.DecodeError) as error:
            raise TransientError(f"{shard}: the subscription broke off: {error}") from error

    def _require_gone(self, shard: ShardOf, consumer: str) -> None:
        """Raise TransientError when it is the consumer that is gone, and not the shard: Kinesis gives one error for both."""
        self.stream_of(shard.table)
        listed = {one.shard_id for one in self.shards_of(shard.arn)}
        if self._consumers[plain_json(shard.arn)] != consumer or shard.shard_id in listed:
            raise TransientError(f"{shard}: the consumer {consumer} is gone; it is registered again")


def _where(start: ShardStart) -> dict[str, Any]:
    if start.after is not None:
        # The record itself, which must come first: so it is noticed when it is gone, and what follows with it.
        return _at("AT_SEQUENCE_NUMBER", start.after)
    if start.since is not None:
        return {"Type": "AT_TIMESTAMP", "Timestamp": datetime.fromtimestamp(start.since, UTC)}
    return {"Type": "TRIM_HORIZON"}


def _at(kind: str, sequence: str) -> dict[str, Any]:
    return {"Type": kind, "SequenceNumber": sequence}
