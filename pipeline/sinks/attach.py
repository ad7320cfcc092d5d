"""Attaches a sink to a worker: what the runner needs of it, and the sink's threads."""

from __future__ import annotations

from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from threading import Lock
from typing import cast

from confluent_kafka import Consumer as RdConsumer
from confluent_kafka import KafkaException, TopicPartition
from faust.types import TP

from models.dead_letter import DeadLetter, Headers
from pipeline.app import Worker
from pipeline.errors import HeadwaterError, TransientError
from pipeline.sinks.base import Rejected, Sink
from pipeline.sinks.running import SinkRunner
from pipeline.transport import Batch, Slice
from pipeline.transport.consumer import Consumer
from pipeline.transport.fatal import stop_process

TIMEOUT = 30.0


class Carrier:
    """A sink at work in a worker."""

    def __init__(self, worker: Worker, sink: Sink, topics: Collection[str]) -> None:
        self._worker, self.sink = worker, sink
        self._pool = ThreadPoolExecutor(sink.threads, sink.name)
        self._asking, self._consumer = Lock(), cast("RdConsumer | None", None)
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
        worker.transport.join(self.runner)
        worker.standing.append(self.runner.problems)
        worker.at_end.append(self._close)

    def gather(self, batch: Batch) -> None:
        """Take a batch; in the transaction's thread."""
        self.runner.gather(batch)
        self._worker.metrics.count(self._worker.metrics.changes, len(batch), self.sink.name)

    def _start(self, tp: TP, first: int) -> int:
        """Return the group's committed offset; where there is none, that of the first record. In a thread of the sink."""
        with self._asking:
            if self._consumer is None:
                conf = self._worker.transport.client_conf()
                self._consumer = RdConsumer(
                    {**conf, "group.id": self._worker.settings.group, "enable.auto.commit": False}
                )
            try:
                (found,) = self._consumer.committed([TopicPartition(*tp)], TIMEOUT)
            except KafkaException as error:
                raise TransientError(f"the offset of {tp.topic}[{tp.partition}]: {error.args[0].str()}") from error
        return min(first, found.offset) if found.offset >= 0 else first

    def _close(self) -> None:
        """Begin nothing more; what is under way is done again by the next owner if the process ends before it."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        self.sink.close()
        if self._consumer is not None:
            self._consumer.close()

    def _hold(self, tp: TP, held: bool) -> None:
        consumer = cast("Consumer", self._worker.app.consumer)
        change = consumer.hold if held else consumer.release
        self._worker.app.loop.call_soon_threadsafe(change, {tp}, self.sink.name)

    def _reject(self, topic: str, partition: int, rejected: Rejected) -> None:
        record = rejected.record
        self._worker.reject_letter(
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
