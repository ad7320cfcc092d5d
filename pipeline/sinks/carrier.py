"""Attaches a sink to a worker: what the runner needs of it, and the sink's threads."""

from __future__ import annotations

import time
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from threading import Lock
from typing import cast

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient
from faust.types import TP

from models.dead_letter import DeadLetter, Headers
from pipeline.errors import HeadwaterError, TransientError
from pipeline.runtime.worker import Worker
from pipeline.sinks.base import Rejected, Sink, offset_is_of
from pipeline.sinks.runner import SinkRunner, SinkStart
from pipeline.transport import Batch, Slice, clients
from pipeline.transport.committed import Committed, committed
from pipeline.transport.consumer import Consumer
from pipeline.transport.fatal import stop_process
from pipeline.transport.questions import EARLIEST, offsets_of

SINK_TIMEOUT_S = 10.0
"""Seconds of one attempt: after the death of a broker a client was seen that never answers. The next one is another."""
UNDECIDED_FOR_S = 5.0
"""Seconds that a transaction with an offset of the partition is waited for."""
SINK_PAUSE_S = 0.05


class Carrier:
    """A sink at work in a worker."""

    def __init__(self, worker: Worker, sink: Sink, topics: Collection[str]) -> None:
        self._worker, self.sink = worker, sink
        self._pool = ThreadPoolExecutor(sink.threads, sink.name)
        self._asking, self._client = Lock(), cast("AdminClient | None", None)
        self.runner = SinkRunner(
            sink,
            worker.metrics,
            submit=self._pool.submit,
            hold=self._hold,
            reject=self._reject,
            state=self._state,
            fatal=self._fatal,
            start=self._start,
            topics=topics,
            group=worker.settings.group,
        )
        worker.transport.add_participant(self.runner)
        worker.transport.renews.update(topics)  # what the destinations have names the log
        worker.pause_reasons.append(self.runner.problems)
        worker.at_end.append(self._close)

    def gather(self, batch: Batch) -> None:
        """Take a batch; in the transaction's thread."""
        self.runner.gather(batch)
        self._worker.metrics.count(self._worker.metrics.changes, len(batch), self.sink.name)

    def _start(self, tp: TP, first: int) -> SinkStart:
        """Return where the reading begins: at the group's offset if it is of this log, else where the topic begins.

        In a thread of the sink.
        """
        try:
            client = self._admin()
            log, known = self._worker.transport.log_of(tp.topic), self._committed(client, tp)
            if known.offset is not None and offset_is_of(log, known, first) != "other":
                return SinkStart(min(first, known.offset), log, known)
            low = offsets_of(client, [tp], EARLIEST, SINK_TIMEOUT_S)[tp]
            return SinkStart(min(first, max(0, low)), log, known)
        except KafkaException as error:
            with self._asking:
                self._client = None
            raise TransientError(f"the offset of {tp.topic}[{tp.partition}]: {error.args[0].str()}") from error

    def _admin(self) -> AdminClient:
        with self._asking:
            if self._client is None:
                self._client = clients.admin(self._worker.transport.client_conf())
            return self._client

    def _committed(self, client: AdminClient, tp: TP) -> Committed:
        deadline = time.monotonic() + UNDECIDED_FOR_S
        while not (found := self._asked(client, tp)).is_stable:
            if time.monotonic() > deadline:
                raise TransientError(f"the offset of {tp.topic}[{tp.partition}]: a transaction is not decided yet")
            time.sleep(SINK_PAUSE_S)
        return found

    def _asked(self, client: AdminClient, tp: TP) -> Committed:
        return committed(client, self._worker.settings.group, [tp], timeout=SINK_TIMEOUT_S, patience=SINK_TIMEOUT_S)[tp]

    def _close(self) -> None:
        """Begin nothing more; what is under way is processed again by the next owner if the process ends before it."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        self.sink.close()

    def _hold(self, tp: TP, held: bool) -> None:
        consumer = cast("Consumer", self._worker.app.consumer)
        change = consumer.hold if held else consumer.release
        self._worker.app.loop.call_soon_threadsafe(change, {tp}, self.sink.name)

    def _reject(self, topic: str, partition: int, rejected: Rejected) -> None:
        record = rejected.record
        self._worker.write_dead_letter(
            DeadLetter(
                topic,
                partition,
                cast("int", record.offset()),
                self.sink.name,
                rejected.error,
                record.key(),
                record.value(),
                cast("Headers", record.headers() or []),
            )
        )

    def _state(self, work: Slice, key: bytes, value: bytes | None) -> None:
        self._worker.produce(self._worker.topics.sink_states, key, value, 0)

    def _fatal(self, error: HeadwaterError) -> None:
        stop_process(error.message, hint=error.hint)
