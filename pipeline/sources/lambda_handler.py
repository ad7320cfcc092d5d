"""The Lambda as a source: the handler of an event source mapping of a DynamoDB stream or of a Kinesis stream.

Set it as `pipeline.sources.lambda_handler.handler`, with ReportBatchItemFailures. It writes what the readers would write:
the same records and keys, to the same ingest topic. A batch is one transaction: all of it is there, or nothing. Lambda
repeats a batch that failed, and one whose outcome it could not learn, so a change may come twice; deduplicate drops it.
"""

from __future__ import annotations

import logging
import time
import uuid
from typing import Any, Protocol

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from pipeline.errors import TransientError, UsageError
from pipeline.limits import MESSAGE_MAX
from pipeline.settings import Settings, load
from pipeline.sources.members import Item, item
from pipeline.sources.records import Unreadable
from pipeline.topics import Topics

log = logging.getLogger(__name__)
MARGIN = 3.0
"""Seconds before Lambda's time-out in which nothing is begun any more: they are for the abort and the answer."""
TRANSACTION_MS = 15_000
"""transaction.timeout.ms: how long readers wait for the open transaction of an environment that Lambda has ended."""
Answer = dict[str, list[dict[str, str]]]


class Context(Protocol):
    """What is used of Lambda's context."""

    def get_remaining_time_in_millis(self) -> int:
        """Return the time until Lambda ends the invocation."""


class OutOfTimeError(TransientError):
    """Lambda would end the invocation before the batch is through."""


class Clock:
    """The time that is left of an invocation, without the margin."""

    def __init__(self, context: Context) -> None:
        self._end = time.monotonic() + context.get_remaining_time_in_millis() / 1000 - MARGIN

    def left(self) -> float:
        """Return the seconds that are left; raise OutOfTimeError when none are."""
        left = self._end - time.monotonic()
        if left <= 0:
            raise OutOfTimeError("the batch is not through and the time-out of the Lambda is near")
        return left


class Writer:
    """Writes batches, each in a transaction. The producer is made at the first batch and kept until something fails."""

    def __init__(self, settings: Settings) -> None:
        self._settings, self._topics = settings, Topics(settings)
        self._name = f"{settings.prefix}-lambda-{uuid.uuid4().hex[:12]}"
        """The transactional ID: one an execution environment, which handles one batch at a time."""
        self._producer: Producer | None = None
        self._failure: KafkaError | None = None

    def handle(self, event: dict[str, Any], context: Context) -> Answer:
        """Write a batch; what cannot be read becomes dead letters, in the same transaction.

        Returns its first sequence number as failed when the time is out; raises TransientError for what Kafka refuses: then
        Lambda repeats it.
        """
        clock = Clock(context)
        found = [item(record, self._settings) for record in event["Records"]]
        if not found:
            return {"batchItemFailures": []}
        try:
            self._write(found, clock)
        except OutOfTimeError as error:
            first = next((one.sequence for one in found if one.sequence), "")  # '' makes Lambda repeat all of it
            log.error("%s: all of it is to come again, from %s on", error, first)
            return {"batchItemFailures": [{"itemIdentifier": first}]}
        return {"batchItemFailures": []}

    def _write(self, batch: list[Item], clock: Clock) -> None:
        if self._producer is None:
            self._producer = self._make(clock)
        producer, self._failure = self._producer, None
        done = False
        try:
            producer.begin_transaction()
            for one in batch:
                self._produce(producer, one, clock)
            while producer.flush(min(0.5, clock.left())):
                self._raise_failure()
            self._raise_failure()
            producer.commit_transaction(clock.left())
            done = True
        except KafkaException as error:
            raise _explain(error, "the batch was not written", "headwater topics --create") from error
        finally:
            if not done:
                self._give_up(producer)

    def _make(self, clock: Clock) -> Producer:
        kafka = self._settings.kafka
        tuned = {
            "linger.ms": 2,
            "batch.size": 1_000_000,
            "compression.type": "zstd",
            "message.max.bytes": MESSAGE_MAX,
            "transaction.timeout.ms": TRANSACTION_MS,
            "bootstrap.servers": kafka.bootstrap_servers,
        }
        owned = {"transactional.id": self._name, "partitioner": "murmur2_random", "on_delivery": self._delivered}
        try:
            producer = Producer({**tuned, **kafka.properties, **owned}, logger=log)
            producer.init_transactions(clock.left())
        except KafkaException as error:
            hint = "HEADWATER_KAFKA__BOOTSTRAP_SERVERS, HEADWATER_KAFKA__PROPERTIES; can the Lambda's network reach it?"
            raise _explain(error, "no transactional producer", hint) from error
        return producer

    def _produce(self, producer: Producer, one: Item, clock: Clock) -> None:
        for part in one.parts:
            if isinstance(part, Unreadable):
                arn, _, shard_id = one.place.rpartition("/") if part.origin.shard else (one.place, "", "")
                letter = part.letter(arn, shard_id, "")
                topic, key, value = self._topics.dead_letter, part.key, part.value
                extra = {"headers": letter.headers}
            else:
                topic, key, value, extra = self._topics.ingest, part["key"], part["value"], {}
            while True:
                try:
                    producer.produce(topic, value, key, **extra)  # type: ignore[arg-type]
                except BufferError:
                    producer.poll(min(0.1, clock.left()))
                else:
                    break
        clock.left()

    def _delivered(self, error: KafkaError | None, message: Message) -> None:
        if error is not None:
            self._failure = error

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise KafkaException(self._failure)

    def _give_up(self, producer: Producer) -> None:
        """Abort, as far as the margin lets us. The next batch gets a new producer, which aborts what may be open."""
        self._producer = None
        try:
            producer.abort_transaction(MARGIN / 2)
        except KafkaException as error:
            log.warning("the transaction is left to the next producer, or to its time-out: %s", error.args[0].str())
        producer.purge()
        producer.poll(0)


def _explain(error: KafkaException, what: str, hint: str) -> TransientError:
    failure = error.args[0]
    late = failure.code() == KafkaError._TIMED_OUT  # noqa: SLF001 - the documented name of the code
    return (OutOfTimeError if late else TransientError)(f"{what}: {failure.str()}", hint=hint)


_writers: list[Writer] = []
"""One, from the first batch on: the environment of a Lambda is kept between invocations."""


def handler(event: dict[str, Any], context: Context) -> Answer:
    """Write a batch into the ingest topic. Settings come from the environment, as a worker's do."""
    if not isinstance(event.get("Records"), list):
        raise UsageError("the event has no Records: the trigger must be a DynamoDB or Kinesis event source mapping")
    if not _writers:
        _writers.append(Writer(load()))
    return _writers[0].handle(event, context)
