"""The producer of a worker: one Kafka transaction a slice, or, at least once, one flush and then the offsets.

The transactional ID belongs to the state directory, whose lock keeps a second worker out: a restart immediately aborts what
its predecessor left open. For the same reason a producer that the broker has fenced off is recreated: with the lock held
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
from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import IO, Any, TypeVar, cast

from confluent_kafka import KafkaError, KafkaException, Message, TopicPartition
from confluent_kafka import Producer as RdProducer

from pipeline.errors import FatalError, RejectedError, TransientError
from pipeline.files.private import private_directory
from pipeline.limits import MESSAGE_MAX, NEVER_TAKEN
from pipeline.retry import times
from pipeline.transport import clients
from pipeline.transport.batch import Batch, Headers, Record
from pipeline.transport.committed import committed
from pipeline.transport.fatal import ends_process_after, stop_process
from pipeline.transport.logs import UNKNOWN, Log, Pinned
from pipeline.transport.participant import Participant, Slice

log = logging.getLogger(__name__)
T = TypeVar("T")

TIMEOUT_MS = 15_000
"""transaction.timeout.ms, where the properties say nothing: how long readers wait for a dead worker's open transaction."""
WORK_SHARE = 2 / 3
"""The part of that time which the agents' work may take; the rest is for delivery and commit."""
RENEWALS, RENEWALS_WITHIN = 3, 60.0
"""Producers that are recreated within so many seconds at most: more often, somebody else has our transactional ID."""
TRANSACTION_TIMEOUT_S = 30.0
"""Seconds that one call to the broker may take."""
ABORT_TIMEOUT_S = 5.0
"""Seconds for what is in flight, and then for the abort; after them the producer is replaced."""
TRANSACTION_STUCK_S = 5.0
"""Seconds over the transaction's time-out after which sending the offsets is taken for a call that never returns (see
docs/decisions/0010)."""
INIT_TIMEOUT_S = 10.0
"""Seconds of one attempt to get the transactional ID: after the death of a broker a producer was seen that gets no answer."""
TRANSACTION_CUT_OFF_AFTER_S = 5.0
"""Seconds that a producer is used at least: a broker that stays away must not abort every slice."""
TRANSACTION_ATTEMPTS, TRANSACTION_PAUSE_S = 20, 0.1
LOST = {
    KafkaError._STATE,  # noqa: SLF001 - documented names of the codes
    KafkaError._FATAL,  # noqa: SLF001
    KafkaError._FENCED,  # noqa: SLF001
    KafkaError.INVALID_PRODUCER_EPOCH,
    KafkaError.PRODUCER_FENCED,
    KafkaError.INVALID_TXN_STATE,
    KafkaError.INVALID_PRODUCER_ID_MAPPING,
    KafkaError.UNKNOWN_PRODUCER_ID,
    KafkaError.OUT_OF_ORDER_SEQUENCE_NUMBER,
    KafkaError.TRANSACTION_COORDINATOR_FENCED,
}
"""What says that a transaction, or its producer, is of no use any more. librdkafka wraps some in `_FATAL`, and that one says
`fatal() == False`."""
TRANSACTION_LOOK_S = 0.2
"""Seconds between two looks whether a transaction has failed."""
REPORTED_S = 2.0
"""Seconds that the reports of a transaction may take that has failed."""
CAREFUL = 500
"""Records of a slice at most while the one is looked for that the broker refuses."""


class Refusals(dict[Hashable, RejectedError]):
    """What the broker has refused, by `origin`. It is known until a slice is committed that has left it out.

    Slices of other partitions come between: they say nothing of it.
    """

    def __init__(self, known: Mapping[Hashable, RejectedError] | None = None) -> None:
        super().__init__(known or {})
        self._left_out: set[Hashable] = set()

    def of(self, origin: Hashable) -> RejectedError | None:
        """Return why what is written of an origin is left out; None: nothing is known against it."""
        found = self.get(origin) if self else None
        if found is not None:
            self._left_out.add(origin)
        return found

    def committed(self) -> None:
        """Forget what the slice has left out."""
        for origin in self._left_out:
            self.pop(origin, None)
        self._left_out.clear()

    def aborted(self) -> None:
        """Know it still: it comes again."""
        self._left_out.clear()


class Transaction:
    """`begin` may be called from any thread; `start`, `commit` and `abort` block and run in `executor`'s one thread."""

    def __init__(
        self,
        conf: Mapping[str, Any],
        directory: Path,
        group: str,
        *,
        exactly_once: bool = True,
        log_of: Callable[[str], Log] = lambda _topic: UNKNOWN,
        message_max: int = MESSAGE_MAX,
    ) -> None:
        """`log_of` names the log that a topic was when the worker began: offsets are committed with it, and in no other."""
        self.executor = ThreadPoolExecutor(1, "transaction")
        self.participants: list[Participant] = []
        self.open = False
        self.spoiled: str | None = None
        """Why the slice under way must not commit, or None."""
        self.idle = asyncio.Event()
        """Clear while a commit or an abort is under way: nothing may be produced from elsewhere."""
        self.idle.set()
        self.last_abort = ""
        self.timeout = int(conf.get("transaction.timeout.ms", TIMEOUT_MS)) / 1000
        """Seconds after which the broker gives a transaction up that is not committed."""
        self.patience = self.timeout * WORK_SHARE
        """Seconds of work in a slice at most."""
        self.careful = 0
        """Records to be done with a report for each, because the broker has refused one among them; 0: as usual."""
        self.refused = Refusals()
        """What the broker has refused: whoever writes it leaves it out, and says so."""
        self.record_max = message_max
        """Bytes of the value of a record in `produce_many` at most; what is written otherwise may have more beside it."""
        self.in_hand: Batch | None = None
        """What the agents' step under way works on: what is written without an origin is made of that."""
        self.blame: Callable[[Batch, RejectedError], bool] = lambda _batch, _error: False
        """Told of a batch of which a record was made that is refused; False: it cannot be left out, the worker stops."""
        self._culprits: list[tuple[Batch | None, RejectedError]] = []
        self.commit_offsets: Callable[[Sequence[TopicPartition]], None] | None = None
        """Commits offsets through the consumer, when there are no transactions: raises KafkaException when refused."""
        self._conf, self._directory, self._group = dict(conf), directory, group
        self._exactly_once, self._message_max = exactly_once, message_max
        self._log_of, self._pinned = log_of, Pinned(self._conf, log_of)
        self._lock = threading.Lock()
        self._lock_file: IO[str] | None = None
        self._name = ""
        self._producer: RdProducer | None = None
        self._renewed_at: list[float] = []
        self._cut_off: KafkaError | None = None
        """The last connection that the producer in use has lost, or None."""
        self._made_at = self._begun_at = 0.0
        self._mark = ""
        """Given with the offsets of a slice, and of no other."""
        self._undelivered_for: KafkaError | None = None
        """Why a record was not delivered, where there are no transactions."""

    @property
    def producer(self) -> RdProducer:
        """The producer of librdkafka; only after `start`."""
        if self._producer is None:
            raise FatalError("the transactional producer has not been started")
        return self._producer

    @property
    def is_started(self) -> bool:
        """Whether there is a producer: not in a process that only sends outside of events."""
        return self._producer is not None

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
            "message.max.bytes": self._message_max,
            "queue.buffering.max.messages": 1_000_000,
            **({"transaction.timeout.ms": TIMEOUT_MS} if self._exactly_once else {}),
            **({"batch.num.messages": 1} if self.careful else {}),  # a batch is refused whole
        }
        # A transaction fails with a record that cannot be delivered; plain producing says so in a callback.
        plain = {"enable.idempotence": True, "on_delivery": self._undelivered}
        owned = {"transactional.id": self._name} if self._exactly_once else plain
        # As Java clients do: equal keys of all writers must meet.
        conf = {**tuned, **self._conf, **owned, "partitioner": "murmur2_random", "error_cb": self._on_error}
        producer = RdProducer(conf, logger=clients.log)
        if self._exactly_once:
            producer = self._initiated(producer, conf)
        _serve(producer)  # what went wrong until now is over
        self._cut_off, self._made_at = None, time.monotonic()
        return producer

    def _initiated(self, producer: RdProducer, conf: Mapping[str, Any]) -> RdProducer:
        """Return a producer that has its transactional ID; one that gets no answer is replaced by another."""
        for last in (False, False, False, True):
            try:
                self._retry(producer.init_transactions, INIT_TIMEOUT_S, attempts=TRANSACTION_ATTEMPTS if last else 1)
            except KafkaException as error:
                if last or not error.args[0].retriable():
                    raise
                log.info("another producer is tried: %s", error.args[0])
                producer = RdProducer(dict(conf), logger=clients.log)
            else:
                break
        return producer

    def _on_error(self, error: KafkaError) -> None:
        """Note that a connection was lost: librdkafka may no longer know the group's coordinator, and wait for it forever."""
        if self._exactly_once and error.code() in {KafkaError._TRANSPORT, KafkaError._ALL_BROKERS_DOWN}:  # noqa: SLF001
            self._cut_off = error

    def _lost_connection(self) -> KafkaError | None:
        """Return why the producer must not be used for another commit, None if it may."""
        return self._cut_off if time.monotonic() > self._made_at + TRANSACTION_CUT_OFF_AFTER_S else None

    def _renew_fenced(self, failure: KafkaError) -> None:
        now = time.monotonic()
        if (
            now - self._begun_at > self.timeout
        ):  # the coordinator has given the transaction up: nobody else is needed for that
            self._renew(failure)
            return
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
        log.warning("the producer is recreated: %s", failure.str())
        self._replace()

    def _replace(self) -> None:
        self.producer.purge()  # it is past saving, or has nothing in hand; who waits for a report gets one
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
                self._begun_at = time.monotonic()
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
        origin: Hashable | None = None,
    ) -> None:
        """Write one record into the transaction; in a thread, it waits while librdkafka's queue is full.

        Where the transaction can only be aborted any more, the slice is spoilt and the record dropped: it comes again.
        `origin` says what the record is made of: raises RejectedError when the broker has refused that before, or when it
        is known at once that the record can never be written.
        """
        if (refused := self.refused.of(origin)) is not None:
            raise refused
        producer = self.begin()
        # The binding takes no headers=None.
        extra: dict[str, Any] = {"headers": headers} if headers else {}
        if self.careful:
            extra["on_delivery"] = self._reporting(origin, on_delivery)
        elif on_delivery is not None:
            extra["on_delivery"] = on_delivery
        try:
            clients.with_room(
                partial(producer.produce, topic, value, key, partition, **extra), partial(_serve, producer)
            )
        except KafkaException as error:
            if error.args[0].code() in NEVER_TAKEN:
                raise too_bad(error.args[0], topic, key, value) from error
            self.spoil_or_raise(error)

    def produce_many(
        self,
        records: Sequence[tuple[str, bytes | None, bytes | None, int, Headers]],
        origins: Sequence[Hashable],
    ) -> None:
        """Write records with headers, in their order: topic, key, value, partition (-1: by the key), headers. See `produce`.

        One that can never be written has the slice done again, and its origin, by the same place, is in `refused` then.
        """
        produce, usual, most = self.begin().produce, not self.careful, self.record_max
        for place, (topic, key, value, partition, headers) in enumerate(records):
            if value is not None and len(value) > most:
                why = f"a record of {len(value):,} bytes for the topic {topic}; a record may have {most:,}"
                hint = "kafka.max_message_bytes, and max.message.bytes of the topic: headwater check"
                self._refuse(origins[place], None, RejectedError(why, hint=hint))
                continue
            try:
                if usual:
                    produce(topic, value, key, partition, headers=cast("Any", headers))
                else:
                    self.produce(topic, key, value, partition, headers, origin=origins[place])
            except BufferError:
                self.produce(topic, key, value, partition, headers, origin=origins[place])
            except KafkaException as error:
                if error.args[0].code() not in NEVER_TAKEN:
                    self.spoil_or_raise(error)
                    return
                self._refuse(origins[place], None, too_bad(error.args[0], topic, key, value))
            except RejectedError as error:
                self._refuse(origins[place], None, error)

    def spoil_or_raise(self, error: KafkaException) -> None:
        """Spoil the slice where the transaction, or the whole producer, is of no use any more; else raise the error."""
        failure = error.args[0]
        if not (self._exactly_once and is_lost(failure)):
            raise error
        self.spoil(f"the transaction must be aborted: {failure}")

    # -- records that the broker refuses ------------------------------------------------------------------------------

    def _look_for_refused(self, records: int, cause: KafkaError) -> None:
        """Do the next records one by one, with a report for each: it was the content of one that failed the transaction."""
        if self.careful:
            with suppress(KafkaException), raising_kafka_errors():
                self._flushed(REPORTED_S)  # the reports say which one it was
        else:
            log.warning("the broker refuses a record: %s; the worker finds it, the others continue", cause.str())
        self.careful = max(self.careful, records, 1)
        self._replace()

    def _cause(self) -> KafkaError | None:
        """Return why the transaction under way can only be aborted, if so: beginning another says it, and does nothing."""
        if not self._exactly_once:
            return self._undelivered_for
        with raising_kafka_errors():
            try:
                self.producer.begin_transaction()
            except KafkaException as error:
                if error.args[0].code() != KafkaError._STATE:  # noqa: SLF001 - that it is under way is well
                    return cast("KafkaError", error.args[0])
        return None

    def _reporting(
        self, origin: Hashable | None, also: Callable[[KafkaError | None, Message], None] | None
    ) -> Callable[[KafkaError | None, Message], None]:
        """Return what takes note of a record that was refused, when there is a report for each."""
        batch = self.in_hand

        def report(error: KafkaError | None, message: Message) -> None:
            if error is not None and error.code() in NEVER_TAKEN:
                self._refuse(origin, batch, too_bad(error, message.topic(), message.key(), message.value()))
            if also is not None:
                also(error, message)

        return report

    def reports(self) -> Callable[[KafkaError | None, Message], None] | None:
        """Return what is to hear of a record that is written beside this class, while there is a report for each."""
        return self._reporting(None, None) if self.careful else None

    def refuse(self, origin: Hashable, error: RejectedError) -> None:
        """Have the slice done again without what can never be written: its origin is in `refused` then."""
        self._refuse(origin, None, error)

    def _refuse(self, origin: Hashable | None, batch: Batch | None, error: RejectedError) -> None:
        """Have the slice done again without what this record is made of."""
        if origin is None:
            self._culprits.append((batch, error))
        else:
            self.refused[origin] = error
        self.spoil(error.message)

    def _settle_blame(self) -> None:
        """Say whose the refused records are; stop where that is not known. After the abort."""
        culprits, self._culprits = self._culprits, []
        for batch, error in culprits:
            if batch is None or not self.blame(batch, error):
                stop_process(error.message, hint=error.hint)

    def _flush(self) -> str | None:
        """Wait until everything is delivered; return why it is not."""
        left, deadline = 1, time.monotonic() + TRANSACTION_TIMEOUT_S
        while left and time.monotonic() < deadline:
            left = self._flushed(TRANSACTION_LOOK_S)
            # What is left of a transaction that has failed is never sent.
            if left and (cause := self._cause()) is not None and is_lost(cause):
                return self.spoiled or f"a record was not delivered: {cause.str()}"
        if left:
            return f"{left} records could not be delivered in {TRANSACTION_TIMEOUT_S:.0f} s"
        return self.spoiled

    def _flushed(self, seconds: float) -> int:
        """Serve reports until all is delivered or so many seconds are over; return how many records are left.

        A report that is called while the binding has a fatal error set meets that as an error of any class, at any line of its
        own (an AttributeError, seen): what is raised is what has become of the transaction.
        """
        try:
            with raising_kafka_errors():
                return self.producer.flush(seconds)
        except KafkaException:
            raise
        except Exception as error:
            if (cause := self._cause()) is None:
                raise
            raise KafkaException(cause) from error

    def _undelivered(self, error: KafkaError | None, message: Message) -> None:
        if error is not None:
            self._undelivered_for = error
            self.spoil(f"a record for {message.topic()} was not delivered: {error}")

    def produce_batch(
        self,
        topic: str,
        records: list[Record],
        partition: int = -1,
        *,
        origin: Callable[[int], Hashable] | None = None,
    ) -> None:
        """Write records to one partition, or each to that of its key; in a thread, it waits while librdkafka's queue is full.

        The binding knows `key` and `value` here, no headers. The records stay as they are: they can be written again.
        `origin` gives that of a record by its place: one that can never be written has the slice done again, and its origin is
        in `refused` then. Without it, RejectedError is raised.
        """
        if self.careful:
            for place, record in enumerate(records):
                mine = None if origin is None else origin(place)
                self.produce(topic, record["key"], record["value"], partition, origin=mine)
            return
        producer, left = self.begin(), records
        while producer.produce_batch(topic, left, partition) < len(left):
            # What did not fit carries `_error`; it comes without an exception, and order asks for the rest as well.
            left = [record for record in left if "_error" in record]
            errors = [cast("KafkaError", record.pop("_error")) for record in left]
            if errors[0].code() in NEVER_TAKEN:
                why = too_bad(errors[0], topic, left[0]["key"], left[0]["value"])
                if origin is None:
                    raise why
                place = next(place for place, record in enumerate(records) if record is left[0])
                self._refuse(origin(place), None, why)
                return
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
        return await asyncio.get_running_loop().run_in_executor(self.executor, _run, function, args)

    def commit(self, work: Slice, membership: bytes | None) -> bool:
        """End the slice: commit its outputs, changelogs and offsets together. False: it was aborted instead."""
        if self.spoiled is not None or membership is None:
            self.abort(work, self.spoiled or "the worker is not a member of the group")
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
            changed = self._pinned.ask({tp.topic for tp in work.offsets})  # answered while the records are delivered
            step = "flush"
            # With records in flight an abort would skip sequence numbers: everything is delivered first.
            if (undelivered := self._flush()) is not None:
                self.abort(work, undelivered)
                return False
            if (lost := self._lost_connection()) is not None:
                self.abort(work, f"a connection was lost: {lost.str()}")
                return False
            step = "logs"
            if why := changed():
                self.abort(work, why)
                stop_process(why, hint="start the worker again: it continues, or says what to do")
            step = "offsets"
            self._mark = f"{self._name[-12:]}.{time.monotonic_ns():x}"
            at = [
                TopicPartition(tp.topic, tp.partition, offset, f"{self._log_of(tp.topic)} {self._mark}")
                for tp, offset in work.offsets.items()
            ]
            if not self._exactly_once:
                self._commit_without_transaction(at)
            else:
                if at:
                    with ends_process_after(
                        self.timeout + TRANSACTION_STUCK_S, "the offsets could not be sent: the call never returned"
                    ):
                        self.producer.send_offsets_to_transaction(at, membership, self.timeout)
                step = "commit"
                self._retry(self.producer.commit_transaction, TRANSACTION_TIMEOUT_S)
        except (TransientError, concurrent.futures.TimeoutError) as error:
            self.abort(work, str(error) or f"no answer at its {step}")
            return False
        except KafkaException as error:
            failure = error.args[0]
            if step == "commit" and not failure.txn_requires_abort():
                if self._outcome(work, failure):
                    self._committed(work)
                    return True
                self.open = False  # the broker has aborted it already
            if failure.fatal() and not self._exactly_once:
                stop_process(f"the producer failed permanently: {failure}")
            self.abort(work, f"refused at its {step}: {failure}")
            return False
        self._committed(work)
        return True

    def _committed(self, work: Slice) -> None:
        self.open = False
        self._undelivered_for = None
        self.refused.committed()
        if self.careful:
            self._careful_done(work.records)
        for participant in self.participants:
            participant.committed(work)

    def _outcome(self, work: Slice, failure: KafkaError) -> bool:
        """Say whether a commit that has failed was done anyway, as the group's offsets tell; stop where they do not.

        The new producer waits until the coordinator has ended what the old one had open.
        """
        why = f"the transaction failed at its commit, with unknown outcome: {failure}"
        if not work.offsets or not is_lost(failure):
            stop_process(why)
        self._renew_fenced(failure)
        try:
            found = committed(clients.admin(self._conf), self._group, list(work.offsets))
        except KafkaException as error:
            stop_process(f"{why}; and the offsets cannot be asked for: {error.args[0]}")
        if any(one.mark == self._mark for one in found.values()):
            log.warning("the transaction was committed, though its commit failed: %s", failure)
            return True
        if any((found[tp].offset or 0) > offset for tp, offset in work.offsets.items()):  # others were there since
            stop_process(why)
        return False

    def _careful_done(self, records: int) -> None:
        """Continue as usual when the records are done among which one was refused."""
        self.careful = max(0, self.careful - max(records, 1))
        if not self.careful:
            log.info("the broker accepts all records again")
            self._replace()

    def _commit_without_transaction(self, at: Sequence[TopicPartition]) -> None:
        """Commit the offsets of what was flushed: a crash before that does the slice again, so nothing is lost."""
        if at and self.commit_offsets is not None:
            self._retry(self.commit_offsets, at)

    def abort(self, work: Slice, reason: str) -> None:
        """Give the slice up. Never purge first: that breaks the producer's sequence numbers."""
        log.warning("slice aborted, its records will be processed again: %s", reason)
        self.last_abort = reason
        if self.open:
            cause = self._cause()
            try:
                if cause is not None and cause.code() in NEVER_TAKEN:
                    self._look_for_refused(work.records, cause)
                elif self._exactly_once:
                    self._abort()
            except KafkaException as error:
                stop_process(f"the transaction could not be aborted: {error.args[0]}")
        self.open = False
        self.spoiled = None
        self._undelivered_for = None
        self.refused.aborted()
        self._settle_blame()
        for participant in self.participants:
            participant.aborted(work)

    def _abort(self) -> None:
        """Abort the transaction; a producer that cannot is replaced, and that aborts it too.

        No commit was sent: one whose outcome is unknown has ended the process. After a restart of the broker librdkafka can
        wait for a coordinator for as long as it is let.
        """
        _serve(self.producer)  # whether a connection was lost
        if (lost := self._lost_connection()) is not None:
            self._renew(lost)
            return
        try:
            if self._flushed(ABORT_TIMEOUT_S):  # an abort with records in flight would skip sequence numbers
                self._renew(KafkaError(KafkaError._TIMED_OUT))  # noqa: SLF001 - its name
                return
            with raising_kafka_errors():
                self.producer.abort_transaction(ABORT_TIMEOUT_S)
        except KafkaException as error:
            failure = error.args[0]
            if failure.retriable():
                self._renew(failure)
            elif is_lost(failure):
                self._renew_fenced(failure)
            else:
                raise

    def _retry(self, call: Callable[..., Any], *args: Any, attempts: int = TRANSACTION_ATTEMPTS) -> None:
        def passes(error: BaseException) -> bool:
            if not isinstance(error, KafkaException) or not error.args[0].retriable():
                return False
            log.info("%s may be tried again: %s", call.__name__, error.args[0])
            return True

        times(attempts, passes, pause_s=TRANSACTION_PAUSE_S)(call, *args)


def is_lost(failure: KafkaError) -> bool:
    """Say whether an error is the end of a transaction, or of its producer: whichever code librdkafka wraps it in."""
    return bool(failure.code() in LOST or failure.txn_requires_abort() or failure.fatal())


def too_bad(error: KafkaError, topic: str | None, key: bytes | None, value: bytes | None) -> RejectedError:
    """Return the error for a record that the broker, or its client, refuses for its content."""
    size = len(key or b"") + len(value or b"")
    too_large = error.code() in {KafkaError.MSG_SIZE_TOO_LARGE, KafkaError.RECORD_LIST_TOO_LARGE}
    return RejectedError(
        f"the topic {topic} does not take a record of {size:,} bytes: {error.str()}",
        hint=f"compare max.message.bytes of {topic} with kafka.max_message_bytes: headwater check"
        if too_large
        else f"kafka-topics.sh --describe --topic {topic}",
    )


class raising_kafka_errors:  # noqa: N801 - used as a function
    """Raises what librdkafka meant, as a KafkaException.

    The binding raises a fatal error in any call during which it hears of it, as a KafkaError, which is not an exception at
    all: no `except` with a class catches it. Together with a delivery report it makes it a SystemError.
    """

    def __enter__(self) -> None:
        """Begin the block."""

    def __exit__(self, kind: object, error: object, traceback: object) -> None:
        """Raise the error in its own form."""
        meant = error.__cause__ if isinstance(error, SystemError) else error
        if kind is KafkaError or isinstance(meant, KafkaError):
            raise KafkaException(meant) from None
        if isinstance(meant, KafkaException) and meant is not error:
            raise meant from None


def _run(function: Callable[..., T], args: tuple[Any, ...]) -> T:
    """Run a function so that whatever the binding raises is an exception: else the thread would die of it."""
    with raising_kafka_errors():
        return function(*args)


def _serve(producer: RdProducer, seconds: float = 0) -> None:
    """Serve delivery reports and errors. With an error callback a fatal one is raised here; the next call has it again.

    A report that is called then meets it as an error of any class.
    """
    with suppress(Exception):
        producer.poll(seconds)


def next_offsets(messages: Sequence[Any]) -> dict[Any, int]:
    """Return for each partition the offset after the last message."""
    return {message.tp: message.offset + 1 for message in messages}
