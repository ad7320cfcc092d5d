"""Attaches a sink to a worker: what the runner needs of it, and the sink's threads."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import cast

from faust.types import TP

from models.dead_letter import DeadLetter
from pipeline.app import Worker
from pipeline.errors import HeadwaterError
from pipeline.sinks.base import Rejected, Sink
from pipeline.sinks.running import SinkRunner
from pipeline.transport import Batch, Slice
from pipeline.transport.consumer import Consumer
from pipeline.transport.fatal import stop_process


class Carrier:
    """A sink at work in a worker."""

    def __init__(self, worker: Worker, sink: Sink) -> None:
        self._worker, self.sink = worker, sink
        self.runner = SinkRunner(
            sink,
            worker.metrics,
            submit=ThreadPoolExecutor(sink.threads, sink.name).submit,
            hold=self._hold,
            reject=self._reject,
            state=self._state,
            fatal=self._fatal,
        )
        worker.transport.join(self.runner)
        worker.standing.append(self.runner.problems)

    def gather(self, batch: Batch) -> None:
        """Take a batch; in the transaction's thread."""
        self.runner.gather(batch)
        self._worker.metrics.count(self._worker.metrics.changes, len(batch), self.sink.name)

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
                cast("list[tuple[str, bytes]]", record.headers() or []),
            )
        )

    def _state(self, work: Slice, key: bytes, value: bytes | None) -> None:
        self._worker.produce(self._worker.topics.sink_states, key, value, 0)

    def _fatal(self, error: HeadwaterError) -> None:
        stop_process(error.message, hint=error.hint)
