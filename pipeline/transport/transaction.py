"""The producer of a worker: one Kafka transaction a slice, or, at least once, one flush and then the offsets.

The transactional ID belongs to the state directory, whose lock keeps a second worker out: a restart at once aborts what
its predecessor left open.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import fcntl
import logging
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any, TypeVar, cast

from confluent_kafka import KafkaError, KafkaException, Message, TopicPartition
from confluent_kafka import Producer as RdProducer
from faust.types import TP

from pipeline.errors import FatalError, TransientError
from pipeline.transport.fatal import stop_process
from pipeline.transport.participant import Participant, Slice

log = logging.getLogger(__name__)
T = TypeVar("T")

TIMEOUT_MS = 15_000
"""transaction.timeout.ms: how long readers wait for a dead worker's open transaction."""
TIMEOUT = 30.0
"""Seconds that one call to the broker may take."""
ATTEMPTS, PAUSE = 20, 0.1
MESSAGE_MAX = 16 << 20
"""Bytes of a record at most: a change with both images can be many times its 400 kB in DynamoDB, as JSON."""


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
        self._producer: RdProducer | None = None

    @property
    def producer(self) -> RdProducer:
        """The producer of librdkafka; only after `start`."""
        if self._producer is None:
            raise FatalError("the transactional producer has not been started")
        return self._producer

    def start(self) -> None:
        """Lock the state directory and fence off whoever used its transactional ID before."""
        try:
            name = self._claim_id()
        except OSError as error:
            raise FatalError(
                f"the state directory {self._directory}: {error.strerror}", hint=f"df -h {self._directory}"
            ) from error
        transactions = {"transactional.id": name, "transaction.timeout.ms": TIMEOUT_MS}
        self._producer = RdProducer(
            {
                **self._conf,
                **(transactions if self._exactly_once else {"enable.idempotence": True}),
                "partitioner": "murmur2_random",  # as Java clients do
                "linger.ms": 2,
                "batch.size": 1_000_000,
                "compression.type": "lz4",
                "message.max.bytes": MESSAGE_MAX,
                # A transaction fails with a record that cannot be delivered; plain producing must be told.
                **({} if self._exactly_once else {"on_delivery": self._undelivered}),
                "queue.buffering.max.messages": 1_000_000,
            },
            logger=log,
        )
        if self._exactly_once:
            self._retry(self._producer.init_transactions, TIMEOUT)

    def close(self) -> None:
        """Give the state directory back. A worker's end does the same."""
        self.executor.shutdown()
        if self._lock_file is not None:
            self._lock_file.close()

    def _claim_id(self) -> str:
        self._directory.mkdir(parents=True, exist_ok=True)
        file = (self._directory / "transactional-id").open("a+")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
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
                    self.producer.begin_transaction()
                self.open = True
        return self.producer

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
                producer.poll(0.05)
            except KafkaException as error:
                self._spoil_or_raise(error)
                return
            else:
                return

    def _spoil_or_raise(self, error: KafkaException) -> None:
        failure = error.args[0]
        if failure.code() != KafkaError._STATE and not failure.txn_requires_abort():  # noqa: SLF001 - its name
            raise error
        self.spoil(f"the transaction must be aborted: {failure}")

    def _spoiled(self) -> str | None:
        return self.spoiled

    def _undelivered(self, error: KafkaError | None, message: Message) -> None:
        if error is not None:
            self.spoil(f"a record for {message.topic()} was not delivered: {error}")

    def produce_batch(self, topic: str, records: Sequence[tuple[bytes | None, bytes]], partition: int) -> None:
        """Write records without headers to one partition; in a thread, it waits while librdkafka's queue is full."""
        producer = self.begin()
        left = [{"key": key, "value": value} for key, value in records]
        while left:
            producer.produce_batch(topic, left, partition)
            # What did not fit carries `_error`; it comes without an exception, and order asks for the rest as well.
            refused = next((index for index, record in enumerate(left) if "_error" in record), None)
            if refused is None:
                return
            error = cast("KafkaError", left[refused]["_error"])
            if error.code() != KafkaError._QUEUE_FULL:  # noqa: SLF001 - the documented name of the code
                self._spoil_or_raise(KafkaException(error))
                return
            left = [{"key": record["key"], "value": record["value"]} for record in left[refused:] if "_error" in record]
            producer.poll(0.05)

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
            for participant in self.participants:
                participant.finish(work)
            step = "flush"
            # With records in flight an abort would skip sequence numbers: everything is delivered first.
            if left := self.producer.flush(TIMEOUT):
                self.abort(work, f"{left} records could not be delivered in {TIMEOUT:.0f} s")
                return False
            if (undelivered := self._spoiled()) is not None:
                self.abort(work, undelivered)
                return False
            step = "offsets"
            if not self._exactly_once:
                self._commit_without_transaction(work)
            else:
                if work.offsets:
                    at = [TopicPartition(tp.topic, tp.partition, offset) for tp, offset in work.offsets.items()]
                    self._retry(self.producer.send_offsets_to_transaction, at, membership, TIMEOUT)
                step = "commit"
                self._retry(self.producer.commit_transaction, TIMEOUT)
        except (TransientError, concurrent.futures.TimeoutError) as error:
            self.abort(work, str(error) or f"no answer at its {step}")
            return False
        except KafkaException as error:
            failure = error.args[0]
            if failure.fatal() or (step == "commit" and not failure.txn_requires_abort()):
                stop_process(f"the transaction failed at its {step}, for good or with unknown outcome: {failure}")
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
                self.producer.flush(TIMEOUT)
                self._retry(self.producer.abort_transaction, TIMEOUT)
            except KafkaException as error:
                stop_process(f"the transaction could not be aborted: {error.args[0]}")
        self.open = False
        self.spoiled = None
        for participant in self.participants:
            participant.aborted(work)

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


def next_offsets(messages: Sequence[Any]) -> dict[Any, int]:
    """Return for each partition the offset after the last message."""
    return {message.tp: message.offset + 1 for message in messages}
