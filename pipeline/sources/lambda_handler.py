"""The Lambda as a source: the handler of an event source mapping of a DynamoDB stream or of a Kinesis stream.

Set it as `pipeline.sources.lambda_handler.handler`, with ReportBatchItemFailures. It writes what the readers would write:
the same records and keys, to the same ingest topic. A batch is one transaction: all of it is there, or nothing. Lambda
repeats a batch that failed, and one whose outcome it could not learn, so a change may come twice; deduplicate drops it.
"""

from __future__ import annotations

import logging
import time
import uuid
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from pipeline.errors import RejectedError, TransientError, UsageError
from pipeline.limits import HEADROOM, NEVER_TAKEN
from pipeline.settings.load import load
from pipeline.settings.root import Settings
from pipeline.sources.base import Unreadable
from pipeline.sources.dynamodb.records import refused_record
from pipeline.sources.members import Item, item
from pipeline.topics.names import Topics
from pipeline.transport import clients

if TYPE_CHECKING:
    from pipeline.transport.batch import Record

log = logging.getLogger(__name__)
INVOCATION_MARGIN_S = 3.0
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


class Deadline:
    """The time that is left of an invocation, without the margin."""

    def __init__(self, context: Context) -> None:
        self._end = time.monotonic() + context.get_remaining_time_in_millis() / 1000 - INVOCATION_MARGIN_S

    def left(self) -> float:
        """Return the seconds that are left; raise OutOfTimeError when none are."""
        left = self._end - time.monotonic()
        if left <= 0:
            raise OutOfTimeError("the batch is not done and the time-out of the Lambda is near")
        return left


class IngestWriter:
    """Writes batches, each in a transaction. The producer is made at the first batch and kept until something fails."""

    def __init__(self, settings: Settings) -> None:
        self._settings, self._topics = settings, Topics(settings)
        self._name = f"{settings.prefix}-lambda-{uuid.uuid4().hex[:12]}"
        """The transactional ID: one an execution environment, which handles one batch at a time."""
        self._producer: Producer | None = None
        self._failure: KafkaError | None = None
        self._refused: dict[int, KafkaError] = {}
        """What the broker has refused of the batch under way, by its place in it."""

    def handle(self, event: dict[str, Any], context: Context) -> Answer:
        """Write a batch; what cannot be read becomes dead letters, in the same transaction.

        Returns its first sequence number as failed when the time is out; raises TransientError for what Kafka refuses: then
        Lambda repeats it.
        """
        clock = Deadline(context)
        found = [item(record, self._settings) for record in event["Records"]]
        if not found:
            return {"batchItemFailures": []}
        try:
            self._write(found, clock)
        except OutOfTimeError as error:
            first = next((one.sequence for one in found if one.sequence), "")  # '' makes Lambda repeat all of it
            log.error("%s: everything from %s on will be delivered again", error, first)
            return {"batchItemFailures": [{"itemIdentifier": first}]}
        return {"batchItemFailures": []}

    def _write(self, batch: list[Item], clock: Deadline) -> None:
        """Write a batch. What the broker refuses for its content becomes a dead letter; the others continue."""
        refused: dict[int, KafkaError] = {}
        careful = False
        while not self._transact(batch, clock, refused, careful=careful):
            careful = True

    def _transact(self, batch: list[Item], clock: Deadline, refused: dict[int, KafkaError], *, careful: bool) -> bool:
        """Write a batch in a transaction; False: the broker has refused some of it, which is in `refused` if `careful`."""
        if self._producer is None:
            self._producer = self._make(clock, careful=careful)
        producer, self._failure = self._producer, None
        self._refused = refused if careful else {}
        known, done = len(refused), False
        parts = ((one, part) for one in batch for part in one.parts)
        try:
            producer.begin_transaction()
            for number, (one, part) in enumerate(parts):
                self._produce(producer, number, one, _left_out(part, refused.get(number)), clock)
            while producer.flush(min(0.5, clock.left())):
                self._raise_failure()
            self._raise_failure()
            producer.commit_transaction(clock.left())
            done = not careful  # else the next batch has an ordinary one
        except KafkaException as error:
            if error.args[0].code() in NEVER_TAKEN and (not careful or len(refused) > known):
                log.warning("a record is refused, and left out: %s", error.args[0].str())
                return False
            raise _explain(error, "the batch was not written", "headwater topics --create") from error
        finally:
            if not done:
                self._give_up(producer)
        return True

    def _make(self, clock: Deadline, *, careful: bool) -> Producer:
        kafka = self._settings.kafka
        tuned = {
            **clients.TUNED,
            "message.max.bytes": kafka.max_message_bytes + HEADROOM,
            "transaction.timeout.ms": TRANSACTION_MS,
            "bootstrap.servers": kafka.bootstrap_servers,
        }
        one_by_one = {"batch.num.messages": 1} if careful else {}  # a broker refuses whole batches
        try:
            conf = {**tuned, **kafka.properties, **one_by_one}
            return clients.transactional(conf, self._name, clock.left(), logger=log)
        except KafkaException as error:
            hint = "HEADWATER_KAFKA__BOOTSTRAP_SERVERS, HEADWATER_KAFKA__PROPERTIES; can the Lambda's network reach it?"
            raise _explain(error, "no transactional producer", hint) from error

    def _produce(self, producer: Producer, number: int, one: Item, part: Record | Unreadable, clock: Deadline) -> None:
        extra: dict[str, Any] = {"on_delivery": partial(self._delivered, number)}
        if isinstance(part, Unreadable):
            arn, _, shard_id = one.place.rpartition("/") if part.origin.shard else (one.place, "", "")
            letter = part.letter(arn, shard_id, "")
            topic, key, value = self._topics.dead_letter, part.key, part.value
            extra["headers"] = letter.headers
        else:
            topic, key, value = self._topics.ingest, part["key"], part["value"]
        try:
            write = partial(producer.produce, topic, value, key, **extra)
            clients.with_room(write, lambda seconds: producer.poll(min(seconds, clock.left())))
        except KafkaException as error:
            self._refused[number] = error.args[0]
            raise
        clock.left()

    def _delivered(self, number: int, error: KafkaError | None, _message: Message) -> None:
        if error is None:
            return
        if error.code() in NEVER_TAKEN:
            self._refused[number] = error
        if self._failure is None or error.code() in NEVER_TAKEN:
            self._failure = error

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise KafkaException(self._failure)

    def _give_up(self, producer: Producer) -> None:
        """Abort, as far as the margin lets us. The next batch gets a new producer, which aborts what may be open."""
        self._producer = None
        try:
            producer.abort_transaction(INVOCATION_MARGIN_S / 2)
        except KafkaException as error:
            log.warning("the transaction is left to the next producer, or to its time-out: %s", error.args[0].str())
        producer.purge()
        producer.poll(0)


def _left_out(part: Record | Unreadable, error: KafkaError | None) -> Record | Unreadable:
    """Return a part of a batch; as a dead letter, if the broker has refused it."""
    if error is None or isinstance(part, Unreadable):
        return part
    return refused_record(
        part, RejectedError(f"the ingest topic does not take it: {error.str()}", hint="headwater check")
    )


def _explain(error: KafkaException, what: str, hint: str) -> TransientError:
    failure = error.args[0]
    late = failure.code() == KafkaError._TIMED_OUT  # noqa: SLF001 - the documented name of the code
    return (OutOfTimeError if late else TransientError)(f"{what}: {failure.str()}", hint=hint)


_writers: list[IngestWriter] = []
"""One, from the first batch on: the environment of a Lambda is kept between invocations."""


def handler(event: dict[str, Any], context: Context) -> Answer:
    """Write a batch into the ingest topic. Settings come from the environment, as a worker's do."""
    if not isinstance(event.get("Records"), list):
        raise UsageError("the event has no Records: the trigger must be a DynamoDB or Kinesis event source mapping")
    if not _writers:
        _writers.append(IngestWriter(load()))
    return _writers[0].handle(event, context)
