"""Runs a sink beside the slices: what is committed is added and flushed in the sink's threads, and offsets follow.

Neither a slow destination nor one that is down holds up a transaction: its partitions are held when too much has gathered,
everything else in the worker continues, and the reason is on the topic <p>.sink-states.

Who calls what: the agent calls `gather` in the slice. After the commit `committed` calls `_carry_on`, which submits
`_work`. That runs in the sink's thread: `Sink.open`, `Writer.add`, `Writer.flush`. `finish` of the next slice calls `_collect`,
which takes over what is done, and moves the offset.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, NamedTuple, cast

from confluent_kafka import Message
from faust.types import TP

from pipeline.errors import FatalError, HeadwaterError, TransientError
from pipeline.metrics.worker_metrics import Metrics
from pipeline.sinks.base import NOTHING, Flushed, Rejected, Sink, Writer
from pipeline.sinks.memory import Freed
from pipeline.transport import Batch, Participant, Slice
from pipeline.transport.committed import Committed
from pipeline.transport.logs import UNKNOWN, Log

log = logging.getLogger(__name__)
LONGEST_FLUSH_PAUSE_S = 30.0
"""Seconds of the longest pause before something is tried again."""
AHEAD = 64 << 20
"""Bytes of records that wait to be added in all partitions together, before all are held: each may bring a batch at once."""


class SinkStart(NamedTuple):
    """Where the reading of a partition begins."""

    offset: int
    log: Log = UNKNOWN
    committed: Committed = NOTHING
    """What the group has committed, of whatever log."""


@dataclass(slots=True)
class _Done:
    """What a task has done."""

    added: bool = False
    """Whether the writer has taken the records."""
    rejected: list[Rejected] = field(default_factory=list)
    flushed: Flushed | None = None
    error: HeadwaterError | None = None


Submit = Callable[..., Future[_Done]]


@dataclass(slots=True)
class _Part:
    """A partition on its way."""

    writer: Writer | None = None
    fresh: list[Message] = field(default_factory=list)
    """Of the slice under way."""
    fresh_end: int = 0
    sure: list[Message] = field(default_factory=list)
    """Committed, and to be added."""
    waiting: int = 0
    """Bytes of them."""
    end: int = 0
    """The offset after the last record that was read for sure."""
    read: int = 0
    """The same, whatever was found at the destination."""
    there: int = 0
    """The offset up to which everything is at its destination."""
    taken: int = 0
    """The offset up to which the writer has everything."""
    task: Future[_Done] | None = None
    given: int = 0
    """How many of the sure ones the task has; and how many bytes."""
    given_bytes: int = 0
    rejected: list[Rejected] = field(default_factory=list)
    """To be dead letters in the transaction that moves the offset beyond them."""
    recording: int | None = None
    """The offset in the slice under way, when it is one to which a flush has moved."""
    counts: dict[str, int] = field(default_factory=dict)
    not_before: float = 0.0
    failures: int = 0
    failing: str = ""
    """Why it is stuck, as status shows it."""
    said: str | None = None
    """The same, as it is on the topic; None: a former owner may have said something."""
    recorded: int = 0
    """The offset that the group has."""

    @property
    def waits(self) -> bool:
        """Whether something that was read is not at its destination."""
        return self.there < max(self.end, self.fresh_end)


class SinkRunner(Participant):
    """Carries the partitions of the sink topics that this worker owns to one destination."""

    def __init__(
        self,
        sink: Sink,
        metrics: Metrics,
        *,
        submit: Submit,
        hold: Callable[[TP, bool], None],
        reject: Callable[[str, int, Rejected], None],
        state: Callable[[Slice, bytes, bytes | None], None],
        fatal: Callable[[HeadwaterError], None],
        start: Callable[[TP, int], SinkStart] = lambda _tp, first: SinkStart(first),
        topics: Collection[str] = (),
        group: str = "",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Name what the runner needs of its worker.

        `submit` runs a function in a thread; `hold` stops and continues a partition's delivery; `reject` writes a dead
        letter, `state` a record on the topic of states, both into the slice; `fatal` stops the worker. `start` returns
        where the reading of a partition begins, given the offset of its first record. `topics` are the
        sink topics; `group` is the consumer group: two mirrors may have the same partition in hand.
        """
        self.sink, self._metrics, self._clock = sink, metrics, clock
        self._submit, self._hold, self._reject, self._state, self._fatal = submit, hold, reject, state, fatal
        self._group, self._start, self._topics = group or sink.name, start, frozenset(topics)
        self._freed = Freed()
        self._parts: dict[TP, _Part] = {}
        self._held: set[TP] = set()

    # -- in the transaction's thread ----------------------------------------------------------------------------------

    def gather(self, batch: Batch) -> None:
        """Take the records of a batch; they count when their slice has committed."""
        part = self._parts.setdefault(TP(batch.topic, batch.partition), _Part())
        if not part.fresh_end and not part.end:
            part.there = part.taken = part.end = part.recorded = part.read = batch.first_offset
        if batch.first_offset < part.read:
            self._fatal(
                FatalError(
                    f"{batch.topic}[{batch.partition}]: the record at offset {part.read - 1} was read, and now the one at "
                    f"{batch.first_offset} comes: the topic was recreated",
                    hint="start the worker again: it reads the new topic from its beginning",
                )
            )
            return
        part.fresh.extend(batch.records)
        part.fresh_end = batch.last_offset + 1

    def due(self) -> bool:
        """Say whether a task is done, or another is to begin."""
        now, parts, held = self._clock(), list(self._parts.values()), self._held_bytes()
        full = held > self.sink.memory
        if any(part.task.done() if part.task is not None else self._has_work(part, now, full) for part in parts):
            return True
        return held > self.sink.memory * 3 // 4 and all(part.task is None for part in parts)

    def waits(self, tp: TP) -> bool:
        """Say whether something of a partition is not at its destination, or is there and not recorded yet."""
        part = self._parts.get(tp)
        return part is not None and (part.waits or part.task is not None or part.there > part.recorded)

    def finish(self, work: Slice) -> None:
        """Let the offsets follow what is at its destination, and hold back the others."""
        for tp, part in self._parts.items():
            self._collect(tp, part)
            part.recording = None
            if part.there > part.recorded:
                part.recording = part.there
                work.offsets[tp] = part.there
                for rejected in part.rejected:
                    if cast("int", rejected.record.offset()) < part.there:
                        self._reject(tp.topic, tp.partition, rejected)
                for kind, count in part.counts.items():
                    self._metrics.count(self._metrics.delivered, count, self.sink.name, kind)
            elif part.waits:
                work.offsets.pop(tp, None)
            elif tp in work.offsets:  # what comes again of what was found there already
                work.offsets[tp] = max(work.offsets[tp], part.there)
            if part.failing != part.said:
                self._state(work, self._state_key(tp), self._state_value(tp, part))

    def committed(self, work: Slice) -> None:
        """Let go of what is recorded, and carry on with what is sure now."""
        for part in list(self._parts.values()):
            if (recorded := part.recording) is not None:
                part.recorded, part.counts, part.recording = recorded, {}, None
                part.rejected = [one for one in part.rejected if cast("int", one.record.offset()) >= recorded]
            part.said = part.failing
            if part.fresh_end:
                part.sure += part.fresh
                part.waiting += sum(len(record) for record in part.fresh)
                part.end, part.read = max(part.end, part.fresh_end), max(part.read, part.fresh_end)
                part.fresh, part.fresh_end = [], 0
        self._carry_on()

    def aborted(self, work: Slice) -> None:
        """Forget the records of the slice: they will be delivered again."""
        for part in self._parts.values():
            part.fresh, part.fresh_end, part.recording = [], 0, None

    # -- on the event loop, between slices ----------------------------------------------------------------------------

    def assigned(self, partitions: frozenset[TP]) -> None:
        """Take partitions up: they can be held before their first record has come."""
        for tp in partitions:
            if tp.topic in self._topics:
                self._parts.setdefault(tp, _Part())

    def revoked(self, partitions: frozenset[TP]) -> None:
        """Forget partitions: their next owner begins at the committed offset."""
        for tp in partitions:
            part = self._parts.pop(tp, None)
            self._held.discard(tp)
            if part is None:
                continue
            if part.task is not None:
                part.task.add_done_callback(lambda _task, part=part: _close(part))  # type: ignore[misc]
            else:
                _close(part)

    def skipped(self, tp: TP, offset: int) -> None:
        """Begin again behind records that are gone: no file or table says that it holds them."""
        if tp in self._parts:
            self.revoked(frozenset({tp}))
            self.assigned(frozenset({tp}))

    def problems(self) -> dict[str, str]:
        """Return what is stuck, and why, by partition."""
        return {f"{tp.topic}[{tp.partition}]": part.failing for tp, part in list(self._parts.items()) if part.failing}

    # -- tasks --------------------------------------------------------------------------------------------------------

    def _has_work(self, part: _Part, now: float, full: bool) -> bool:
        if now < part.not_before:
            return False
        to_add = bool(part.sure) or part.taken < part.end
        return (to_add and not full) or (part.writer is not None and part.writer.is_due(now))

    def _held_bytes(self) -> int:
        return sum(part.writer.size for part in list(self._parts.values()) if part.writer is not None)

    def _carry_on(self) -> None:
        """Give every partition that has something to do its task; hold those that have too much."""
        now, held = self._clock(), self._held_bytes()
        idle = [part for part in self._parts.values() if part.task is None and part.writer is not None]
        largest = max(idle, key=lambda part: cast("Writer", part.writer).size, default=None)
        crowded, full = held > self.sink.memory * 3 // 4, held > self.sink.memory
        ahead = sum(part.waiting for part in self._parts.values() if not part.failing) > AHEAD
        for tp, part in self._parts.items():
            stuck = bool(part.failing) and part.waiting > 0
            self._hold_or_release(tp, ahead or stuck or (full and part.waits))
            forced = crowded and part is largest and part.taken > part.there
            if part.task is None and now >= part.not_before and (forced or self._has_work(part, now, full)):
                part.given, part.given_bytes = len(part.sure), part.waiting
                part.task = self._submit(self._work, part, tp, tuple(part.sure), part.end, forced)

    def _work(self, part: _Part, tp: TP, records: Sequence[Message], end: int, forced: bool) -> _Done:
        """Add records and flush if it is time; in a thread of the sink."""
        done = _Done()
        try:
            if part.writer is None:
                part.writer = self.sink.open(tp, *self._start(tp, part.there))
                if part.writer.position > part.there:
                    done.flushed = Flushed(part.writer.position)
            begin = max(part.writer.position, part.taken)
            if end > begin:
                done.rejected += part.writer.add(_from(records, begin), end)
            part.taken, done.added = max(begin, end), True
            if forced or part.writer.is_due(self._clock()):
                before = part.writer.size
                done.flushed = part.writer.flush()
                self._freed.add(before - part.writer.size)
        except HeadwaterError as error:
            done.error = error
        except Exception as error:
            log.exception("%s: %s", self.sink.name, tp)
            done.error = HeadwaterError(f"{self.sink.name}, {tp.topic}[{tp.partition}]: {error!r}")
        return done

    def _collect(self, tp: TP, part: _Part) -> None:
        """Take over what a task has done."""
        if part.task is None or not part.task.done():
            return
        done, part.task = part.task.result(), None
        if done.added:
            part.sure, part.waiting = part.sure[part.given :], part.waiting - part.given_bytes
        part.rejected += done.rejected
        if (flushed := done.flushed) is not None:
            part.rejected += flushed.rejected
            part.there = max(part.there, flushed.end)
            part.taken, part.end = max(part.taken, flushed.end), max(part.end, flushed.end)
            for kind, count in flushed.counts.items():
                part.counts[kind] = part.counts.get(kind, 0) + count
        if done.error is None:
            part.failures, part.failing, part.not_before = 0, "", 0.0
            return
        part.failures += 1
        part.not_before = self._clock() + min(LONGEST_FLUSH_PAUSE_S, 0.5 * 2.0 ** min(part.failures, 10))
        part.failing = done.error.message
        if isinstance(done.error, TransientError):
            log.warning("%s: %s[%d] is tried again: %s", self.sink.name, tp.topic, tp.partition, done.error)
        else:
            self._fatal(done.error)

    def _hold_or_release(self, tp: TP, too_much: bool) -> None:
        if too_much != (tp in self._held):
            (self._held.add if too_much else self._held.discard)(tp)
            self._hold(tp, too_much)

    def _state_key(self, tp: TP) -> bytes:
        return f"{self._group}|{tp.topic}|{tp.partition}".encode()

    def _state_value(self, tp: TP, part: _Part) -> bytes | None:
        """Return what is said of a partition on the topic of states; nothing while all is well."""
        if not part.failing:
            return None
        said: dict[str, Any] = {
            "sink": self.sink.name,
            "topic": tp.topic,
            "partition": tp.partition,
            "offset": part.there,
            "reason": part.failing,
            "at": round(time.time(), 3),
        }
        return json.dumps(said).encode()


def _from(records: Sequence[Message], offset: int) -> Sequence[Message]:
    """Return the records from an offset on."""
    if not records or cast("int", records[0].offset()) >= offset:
        return records
    return [record for record in records if cast("int", record.offset()) >= offset]


def _close(part: _Part) -> None:
    if part.writer is not None:
        part.writer.close()
