"""The producer of a worker: one Kafka transaction a slice, or, at least once, one flush and then the offsets.

The transactional ID belongs to the state directory, whose lock keeps a second worker out: a restart at once aborts what
its predecessor left open. For the same reason a producer that the broker has fenced off is made anew: with the lock held
it was the coordinator itself that ended a transaction which had been open for too long.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import fcntl
import logging
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, TypeVar, cast

from confluent_kafka import KafkaError, KafkaException, Message, TopicPartition
from confluent_kafka import Producer as RdProducer
from faust.types import TP

from pipeline.errors import FatalError, TransientError
from pipeline.limits import MESSAGE_MAX
from pipeline.private import private_directory
from pipeline.transport.batch import Headers, Record
from pipeline.transport.fatal import ends_process_after, stop_process
from pipeline.transport.participant import Participant, Slice

log = logging.getLogger(__name__)
T = TypeVar("T")

TIMEOUT_MS = 15_000
"""transaction.timeout.ms: how long readers wait for a dead worker's open transaction."""
RENEWALS, RENEWALS_WITHIN = 3, 60.0
"""Producers that are made anew within so many seconds at most: more often, somebody else has our transactional ID."""
TIMEOUT = 30.0
"""Seconds that one call to the broker may take."""
SEND_TIMEOUT = TIMEOUT_MS / 1000
"""The same for sending the offsets: after that the transaction is over anyway."""
STUCK = SEND_TIMEOUT + 5
"""Seconds after which sending the offsets is taken for a call that never returns (see docs/decisions/0010)."""
CUT_OFF_AFTER = 5.0
"""Seconds that a producer is used at least: a broker that stays away must not abort every slice."""
ATTEMPTS, PAUSE = 20, 0.1


class Transaction:
    """`begin` may be called from any thread; `start`, `commit` and `abort` block and run in `executor`'s one thread."""

    def __init__(self, conf: Mapping[str, Any], directory: Path, group: str, *, exactly_once: bool = True) -> None:
        self.executor = ThreadPoolExecutor(1, "transaction")
        self.participants: list[Participant] = []
        self.open = False
        self.spoiled: str | None = None
        """Why the slice under way must not commit, or None."""
        self.idle = asyncio.Event()
        """Clear while a commit or an abort is under way: nothing may be produced from elsewhere."""
        self.idle.set()
        self.last_abort = ""
        self.commit_offsets: Callable[[Mapping[TP, int]], None] | None = None
        """Commits offsets through the consumer, when there are no transactions: raises KafkaException when refused."""
        self._conf, self._directory, self._group = dict(conf), directory, group
        self._exactly_once = exactly_once
        self._lock = threading.Lock()
        self._lock_file: IO[str] | None = None
        self._name = ""
        self._producer: RdProducer | None = None
        self._renewed_at: list[float] = []
        self._cut_off: KafkaError | None = None
        """The last connection that the producer in use has lost, or None."""
        self._made_at = 0.0

    @property
    def producer(self) -> RdProducer:
        """The producer of librdkafka; only after `start`."""
        if self._producer is None:
            raise FatalError("the transactional producer has not been started")
        return self._producer

    @property
    def name(self) -> str:
        """The transactional ID, which is the state directory's own; only after `start`."""
        return self._name

    def start(self) -> None:
        """Lock the state directory and fence off whoever used its transactional ID before."""
        try:
            self._name = self._claim_id()
        except OSError as error:
            raise FatalError(
                f"the state directory {self._directory}: {error.strerror}", hint=f"df -h {self._directory}"
            ) from error
        self._producer = self._make()

    def _make(self) -> RdProducer:
        tuned = {
            "linger.ms": 10,  # with 2 its thread spins (docs/decisions/0030); the flush at a slice's end waits for none of it
            "batch.size": 1_000_000,
            "compression.type": "zstd",
            "message.max.bytes": MESSAGE_MAX,
            "queue.buffering.max.messages": 1_000_000,
            **({"transaction.timeout.ms": TIMEOUT_MS} if self._exactly_once else {}),
        }
        # A transaction fails with a record that cannot be delivered; plain producing must be told.
        plain = {"enable.idempotence": True, "on_delivery": self._undelivered}
        owned = {"transactional.id": self._name} if self._exactly_once else plain
        # As Java clients do: equal keys of all writers must meet.
        conf = {**tuned, **self._conf, **owned, "partitioner": "murmur2_random", "error_cb": self._on_error}
        producer = RdProducer(conf, logger=log)
        if self._exactly_once:
            self._retry(producer.init_transactions, TIMEOUT)
        _serve(producer)  # what went wrong until now is over
        self._cut_off, self._made_at = None, time.monotonic()
        return producer

    def _on_error(self, error: KafkaError) -> None:
        """Note that a connection was lost: librdkafka may know the group's coordinator no more, and wait for it for ever."""
        if self._exactly_once and error.code() in {KafkaError._TRANSPORT, KafkaError._ALL_BROKERS_DOWN}:  # noqa: SLF001
            self._cut_off = error

    def _lost_connection(self) -> KafkaError | None:
        """Return why the producer must not be used for another commit, None if it may."""
        return self._cut_off if time.monotonic() > self._made_at + CUT_OFF_AFTER else None

    def _renew_fenced(self, failure: KafkaError) -> None:
        now = time.monotonic()
        self._renewed_at = [at for at in self._renewed_at if now - at < RENEWALS_WITHIN] + [now]
        if len(self._renewed_at) > RENEWALS:
            stop_process(
                f"the producer was fenced off {len(self._renewed_at)} times in a minute, although {self._directory} is "
                f"locked: somebody else uses its transactional ID {self._name} ({failure})",
                hint=f"was the directory copied? Remove {self._directory / 'transactional-id'} from the copy",
            )
        self._renew(failure)

    def _renew(self, failure: KafkaError) -> None:
        """Replace the producer that is of no use any more. What it had open is aborted by that, if it was not before."""
        log.warning("the producer is made anew: %s", failure.str())
        self.producer.purge()  # it is past saving; who waits for a report gets one
        _serve(self.producer)
        self._producer = self._make()

    def close(self) -> None:
        """Give the state directory back. A worker's end does the same."""
        self.executor.shutdown()
        if self._lock_file is not None:
            self._lock_file.close()

    def _claim_id(self) -> str:
        private_directory(self._directory)
        file = (self._directory / "transactional-id").open("a+")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.close()
            raise FatalError(
                f"the state directory {self._directory} is in use by another worker",
                hint="give each worker its own: HEADWATER_STATE_DIR=.headwater/state-2",
            ) from None
        self._lock_file = file  # closed with the process: so long it is ours
        file.seek(0)
        name = file.read().strip()
        if not name:
            name = f"{self._group}-{uuid.uuid4().hex[:12]}"
            file.write(name)
            file.flush()
        return name

    def begin(self) -> RdProducer:
        """Open the transaction if none is open; return the producer to write with."""
        with self._lock:
            if not self.open:
                if self._exactly_once:
                    self._begin()
                self.open = True
        return self.producer

    def _begin(self) -> None:
        try:
            self.producer.begin_transaction()
        except KafkaException as error:
            self.spoil_or_raise(error)

    def produce(
        self,
        topic: str,
        key: bytes | None,
        value: bytes | None,
        partition: int = -1,
        headers: list[tuple[str, bytes]] | None = None,
        on_delivery: Callable[[KafkaError | None, Message], None] | None = None,
    ) -> None:
        """Write one record into the transaction; in a thread, it waits while librdkafka's queue is full.

        Where the transaction can only be aborted any more, the slice is spoilt and the record dropped: it comes again.
        """
        producer = self.begin()
        # The binding takes no headers=None.
        extra: dict[str, Any] = {"headers": headers} if headers else {}
        if on_delivery is not None:
            extra["on_delivery"] = on_delivery
        while True:
            try:
                producer.produce(topic, value, key, partition, **extra)
            except BufferError:
                _serve(producer, 0.05)
            except KafkaException as error:
                self.spoil_or_raise(error)
                return
            else:
                return

    def produce_many(self, records: Iterable[tuple[str, bytes | None, bytes | None, int, Headers]]) -> None:
        """Write records with headers, in their order: topic, key, value, partition (-1: by the key), headers. See `produce`."""
        produce = self.begin().produce
        for topic, key, value, partition, headers in records:
            try:
                produce(topic, value, key, partition, headers=cast("Any", headers))
            except BufferError:
                self.produce(topic, key, value, partition, headers)
            except KafkaException as error:
                self.spoil_or_raise(error)
                return

    def spoil_or_raise(self, error: KafkaException) -> None:
        """Spoil the slice where the transaction, or the whole producer, is of no use any more; else raise the error."""
        failure = error.args[0]
        lost = failure.code() == KafkaError._STATE or failure.txn_requires_abort() or failure.fatal()  # noqa: SLF001
        if not (lost and self._exactly_once):
            raise error
        self.spoil(f"the transaction must be aborted: {failure}")

    def _flush(self) -> str | None:
        """Wait until everything is delivered; return why it is not."""
        if left := self.producer.flush(TIMEOUT):
            return f"{left} records could not be delivered in {TIMEOUT:.0f} s"
        return self.spoiled

    def _undelivered(self, error: KafkaError | None, message: Message) -> None:
        if error is not None:
            self.spoil(f"a record for {message.topic()} was not delivered: {error}")

    def produce_batch(self, topic: str, records: list[Record], partition: int = -1) -> None:
        """Write records to one partition, or each to that of its key; in a thread, it waits while librdkafka's queue is full.

        The binding knows `key` and `value` here, no headers. The records stay as they are: they can be written again.
        """
        producer = self.begin()
        while producer.produce_batch(topic, records, partition) < len(records):
            # What did not fit carries `_error`; it comes without an exception, and order asks for the rest as well.
            records = [record for record in records if "_error" in record]
            errors = [cast("KafkaError", record.pop("_error")) for record in records]
            if errors[0].code() != KafkaError._QUEUE_FULL:  # noqa: SLF001 - the documented name of the code
                self.spoil_or_raise(KafkaException(errors[0]))
                return
            _serve(producer, 0.05)

    def serve(self) -> None:
        """Serve delivery reports."""
        _serve(self.producer)

    def spoil(self, reason: str) -> None:
        """Say that the slice under way must not commit: its records will be delivered again."""
        self.spoiled = self.spoiled or reason

    async def run(self, function: Callable[..., T], *args: Any) -> T:
        """Run a blocking function in the transaction's thread."""
        return await asyncio.get_running_loop().run_in_executor(self.executor, function, *args)

    def commit(self, work: Slice, membership: bytes | None) -> bool:
        """End the slice: commit its outputs, changelogs and offsets together. False: it was aborted instead."""
        if self.spoiled is not None or membership is None:
            self.abort(work, self.spoiled or "the worker is no member of the group")
            return False
        step = "finish"
        try:
            self.begin()
            if not self._exactly_once:  # a position, or an ID as seen, must not be there before what it speaks of
                step = "first flush"
                if (undelivered := self._flush()) is not None:
                    self.abort(work, undelivered)
                    return False
                step = "finish"
            for participant in self.participants:
                participant.finish(work)
            step = "flush"
            # With records in flight an abort would skip sequence numbers: everything is delivered first.
            if (undelivered := self._flush()) is not None:
                self.abort(work, undelivered)
                return False
            if (lost := self._lost_connection()) is not None:
                self.abort(work, f"a connection was lost: {lost.str()}")
                return False
            step = "offsets"
            if not self._exactly_once:
                self._commit_without_transaction(work)
            else:
                if work.offsets:
                    at = [TopicPartition(tp.topic, tp.partition, offset) for tp, offset in work.offsets.items()]
                    with ends_process_after(STUCK, "the offsets could not be sent: the call never returned"):
                        self.producer.send_offsets_to_transaction(at, membership, SEND_TIMEOUT)
                step = "commit"
                self._retry(self.producer.commit_transaction, TIMEOUT)
        except (TransientError, concurrent.futures.TimeoutError) as error:
            self.abort(work, str(error) or f"no answer at its {step}")
            return False
        except KafkaException as error:
            failure = error.args[0]
            if step == "commit" and not failure.txn_requires_abort():
                stop_process(f"the transaction failed at its commit, with unknown outcome: {failure}")
            if failure.fatal() and not self._exactly_once:
                stop_process(f"the producer failed for good: {failure}")
            self.abort(work, f"refused at its {step}: {failure}")
            return False
        self.open = False
        for participant in self.participants:
            participant.committed(work)
        return True

    def _commit_without_transaction(self, work: Slice) -> None:
        """Commit the offsets of what was flushed: a crash before that does the slice again, so nothing is lost."""
        if work.offsets and self.commit_offsets is not None:
            self._retry(self.commit_offsets, work.offsets)

    def abort(self, work: Slice, reason: str) -> None:
        """Give the slice up. Never purge first: that breaks the producer's sequence numbers."""
        log.warning("slice aborted, its records will be done again: %s", reason)
        self.last_abort = reason
        if self.open and self._exactly_once:
            try:
                self._abort()
            except KafkaException as error:
                stop_process(f"the transaction could not be aborted: {error.args[0]}")
        self.open = False
        self.spoiled = None
        for participant in self.participants:
            participant.aborted(work)

    def _abort(self) -> None:
        if (lost := self._lost_connection()) is not None:
            self._renew(lost)
            return
        try:
            self.producer.flush(TIMEOUT)
            self._retry(self.producer.abort_transaction, TIMEOUT)
        except KafkaException as error:
            if not error.args[0].fatal():
                raise
            # No commit was sent: one whose outcome is unknown has ended the process.
            self._renew_fenced(error.args[0])

    def _retry(self, call: Callable[..., Any], *args: Any) -> None:
        for attempt in range(ATTEMPTS):
            try:
                call(*args)
            except KafkaException as error:
                if not error.args[0].retriable() or attempt == ATTEMPTS - 1:
                    raise
                log.info("%s is tried again: %s", call.__name__, error.args[0])
                time.sleep(PAUSE)
            else:
                return


def _serve(producer: RdProducer, seconds: float = 0) -> None:
    """Serve delivery reports and errors. With an error callback a fatal one is raised here; the next call has it again."""
    with suppress(KafkaException):
        producer.poll(seconds)


def next_offsets(messages: Sequence[Any]) -> dict[Any, int]:
    """Return for each partition the offset after the last message."""
    return {message.tp: message.offset + 1 for message in messages}
