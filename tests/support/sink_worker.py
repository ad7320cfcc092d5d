"""A worker that carries one partition to a sink, slice by slice, with no Kafka: for tests of whatever keeps the contract."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from confluent_kafka import Message, Producer
from faust.types import TP

from pipeline.metrics.worker_metrics import Metrics
from pipeline.sinks.base import Rejected, Sink
from pipeline.sinks.runner import SinkRunner, SinkStart
from pipeline.transport import Batch, Slice
from pipeline.transport.committed import Committed
from pipeline.transport.logs import Log

PARTITION = TP("p.sink.s", 0)
LOG = Log("6LOg2QcVTjaWiUMaXmJpGA", "9zrC-LVLQ_iJHcE8wDcuEw")
OTHER_LOG = LOG._replace(topic_id="Bq2p0XvMR_-nZ1s7tQxY3w")
"""The same topic, recreated."""
NOBODY = Producer({"bootstrap.servers": "127.0.0.1:1", "log_level": 0})


class Killed(BaseException):
    """The process ends here."""


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Owner:
    """A worker: reads the topic from the committed offset on."""

    def __init__(
        self,
        sink: Callable[[Clock], Sink],
        topic: dict[int, Message],
        start: int,
        tp: TP = PARTITION,
        log: Log = LOG,
        committed: Committed | None = None,
    ) -> None:
        """`committed`: what the group has; without it, `start` of this log, or nothing where that is 0."""
        known = committed or Committed(start or None, log)
        self.clock = Clock()
        self.tp = tp
        self.sink = sink(self.clock)
        self.rejected: list[tuple[int, Exception]] = []
        self.states: list[bytes | None] = []
        self.fatal: list[Exception] = []
        self._rejecting: list[tuple[int, Exception]] = []
        self.held = False
        self.runner = SinkRunner(
            self.sink,
            Metrics(),
            submit=self._submit,
            hold=self._hold,
            reject=self._reject,
            state=lambda _work, _key, value: self.states.append(value),
            fatal=self.fatal.append,
            start=lambda _tp, first: SinkStart(min(first, start), log, known),
            clock=self.clock,
        )
        self.topic, self.at = topic, start
        self._again: list[Message] = []
        self._tasks: list[tuple[Future[Any], Callable[..., Any], tuple[Any, ...]]] = []

    def _submit(self, work: Callable[..., Any], *arguments: Any) -> Future[Any]:
        """Take a task on; it happens when `work` is called."""
        future: Future[Any] = Future()
        self._tasks.append((future, work, arguments))
        return future

    def _hold(self, _tp: TP, held: bool) -> None:
        self.held = held

    def _reject(self, _topic: str, _partition: int, rejected: Rejected) -> None:
        self._rejecting.append((rejected.record.offset() or 0, rejected.error))

    def work(self) -> None:
        """Do the tasks of the sink's threads; Killed comes through, in the middle of one."""
        tasks, self._tasks = self._tasks, []
        for future, work, arguments in tasks:
            future.set_result(work(*arguments))

    def slice(self, records: int, *, refused: bool = False) -> int | None:
        """Run one slice; return the offset that it commits, None when it commits none or is refused."""
        fresh = [] if self.held else [self.topic[o] for o in sorted(self.topic) if o >= self.at][:records]
        delivered = self._again + fresh
        work = Slice(NOBODY, (), {self.tp: (delivered[-1].offset() or 0) + 1} if delivered else {})
        if delivered:
            self.runner.gather(Batch(*self.tp, delivered))
            self.at = (delivered[-1].offset() or 0) + 1
        self._rejecting = []
        self.runner.finish(work)
        if refused:
            self.runner.aborted(work)
            self._again = delivered
            return None
        self.rejected += self._rejecting
        self.runner.committed(work)
        self._again = []
        return work.offsets.get(self.tp)


class Killer:
    """Ends the process at the n-th call of a destination, before or after what the call does; or lets it fail."""

    def __init__(self) -> None:
        self.at = -1
        self.after = False
        self.error: BaseException = Killed()

    def plan(self, at: int, *, after: bool, error: BaseException | None = None) -> None:
        """Fail at this call from now on (-1: never)."""
        self.at, self.after, self.error = at, after, error or Killed()

    def wrap(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function, with the plan before and after it."""

        def call(*arguments: Any, **named: Any) -> Any:
            here = self.at == 0
            self.at -= 1
            if here and not self.after:
                raise self.error
            found = function(*arguments, **named)
            if here:
                raise self.error
            return found

        return call
