"""How long partitions are idle when a worker joins and when it leaves: those that stay with the other, those that move.

Measured at the output, by a committed reader: the longest time between two receipts of a partition around the event.
"""

from __future__ import annotations

import signal
import statistics
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from types import TracebackType
from typing import Self, cast

from confluent_kafka import OFFSET_END, Consumer, ConsumerGroupState, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient

from headwater.lab import processes
from headwater.lab.bench import load
from headwater.lab.bench.extras import pace
from headwater.lab.bench.load import PARTITIONS
from headwater.lab.bench.measure import POLL, START_SECONDS, seconds_to_ready
from headwater.lab.bench.systems import SystemPlace, workers_of
from headwater.lab.workers import WorkerProcess, Workers
from pipeline.errors import HeadwaterError

ROUNDS = 3
LOAD_SECONDS = 240.0
"""Longer than it can take: the load ends with the measurement."""
AROUND = 2.0
"""Seconds that are watched before an event and after its end."""
Say = Callable[[str], None]


def standstill(place: SystemPlace, say: Say, rounds: int = ROUNDS) -> dict[str, float]:
    """Return the seconds that partitions are idle at 5,000/s while a second worker joins and leaves by SIGTERM.

    Each is the median over the rounds of the longest standstill of any partition in a round.
    """
    load.make_topics(place.servers, [place.source, place.output, place.changelog])
    workers, over = workers_of(place), threading.Event()
    pacer = threading.Thread(target=pace, args=(place, time.time() + LOAD_SECONDS, over))
    stay, move = [], []
    try:
        workers.start()
        seconds_to_ready(_process(workers.all[0]), time.monotonic())
        with Receipts(place) as receipts:
            pacer.start()
            group = _Group(place, receipts)
            for number in range(rounds):
                for what, event in (("joins", _join), ("leaves", _leave)):
                    stayed, moved = group.around(lambda event=event: event(workers))  # type: ignore[misc]
                    stay.append(stayed)
                    move.append(moved)
                    say(f"round {number + 1}: a worker {what}: stay {stayed:.2f} s, move {moved:.2f} s")
            over.set()
            pacer.join()
    finally:
        over.set()
        workers.stop()
        load.drop_topics(place.servers, place.prefix)
    return {"standstill_stay_s": _typical(stay), "standstill_move_s": _typical(move)}


def _typical(found: Sequence[float]) -> float:
    return round(statistics.median(max(pair) for pair in zip(found[::2], found[1::2], strict=True)), 2)


def _join(workers: Workers) -> int:
    workers.add()
    return 2


def _leave(workers: Workers) -> int:
    workers.all.pop().signal(signal.SIGTERM)
    return 1


def _process(worker: WorkerProcess) -> processes.Process:
    if worker.process is None:
        raise HeadwaterError("the worker was not started")
    return worker.process


class Receipts:
    """When committed records of the output came, by partition."""

    def __init__(self, place: SystemPlace) -> None:
        self.times: list[list[float]] = [[] for _ in range(PARTITIONS)]
        self._consumer = Consumer(
            {"bootstrap.servers": place.servers, "group.id": f"{place.prefix}.standstill", "enable.auto.commit": False}
            | {"isolation.level": "read_committed", "fetch.wait.max.ms": 20}
        )
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(place.output,), daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()

    def _run(self, topic: str) -> None:
        self._consumer.assign([TopicPartition(topic, partition, OFFSET_END) for partition in range(PARTITIONS)])
        while not self._over.is_set():
            first = self._consumer.poll(0.1)
            if first is None:
                continue
            messages, now = [first, *self._consumer.consume(10_000, 0)], time.monotonic()
            for partition in {cast("int", message.partition()) for message in messages if message.error() is None}:
                self.times[partition].append(now)
        self._consumer.close()


def longest(times: Sequence[float], begin: float, end: float) -> float:
    """Return the longest time between two receipts, the last one before `begin` and the first after `end` included."""
    before = [at for at in times if at < begin][-1:] or [begin]
    after = [at for at in times if at > end][:1] or [end]
    between = [at for at in times if begin <= at <= end]
    return max(second - first for first, second in pairwise([*before, *between, *after]))


class _Group:
    """Looks at who has which partition."""

    def __init__(self, place: SystemPlace, receipts: Receipts) -> None:
        self._admin = AdminClient({"bootstrap.servers": place.servers, "log_level": 0})
        self._place, self._receipts = place, receipts

    def around(self, event: Callable[[], int]) -> tuple[float, float]:
        """Let it happen; return the longest standstill of partitions that stay where they are, and of those that move.

        `event` returns how many workers there are in the end.
        """
        self._wait_for(lambda: all(self._receipts.times), "receipts of every partition")
        time.sleep(AROUND)
        before, begin = self._owners(), time.monotonic()
        members = event()
        owners: dict[int, str] = {}

        def shared_out() -> bool:
            owners.clear()
            owners.update(self._owners())
            return len(owners) == PARTITIONS and len(set(owners.values())) == members

        self._wait_for(shared_out, f"{members} workers with partitions")
        settled = time.monotonic()
        self._wait_for(lambda: all(times[-1] > settled for times in self._receipts.times), "receipts after it")
        time.sleep(AROUND)
        end = time.monotonic()
        moved = {partition for partition, owner in owners.items() if before.get(partition) != owner}
        return self._longest(set(owners) - moved, begin, end), self._longest(moved, begin, end)

    def _longest(self, partitions: Iterable[int], begin: float, end: float) -> float:
        return max((longest(self._receipts.times[partition], begin, end) for partition in partitions), default=0.0)

    def _owners(self) -> dict[int, str]:
        """Return the owner of each partition of the input; nothing while partitions are being assigned."""
        try:
            group = self._admin.describe_consumer_groups([self._place.prefix])[self._place.prefix].result(10)
        except (KafkaException, TimeoutError):
            return {}
        if group.state != ConsumerGroupState.STABLE:
            return {}
        return {
            tp.partition: cast("str", member.member_id)
            for member in group.members
            for tp in member.assignment.topic_partitions
            if tp.topic == self._place.source
        }

    def _wait_for(self, condition: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + START_SECONDS
        while not condition():
            if time.monotonic() > deadline:
                raise HeadwaterError(f"not within {START_SECONDS:.0f} s: {what}", hint=f"ls {self._place.directory}")
            time.sleep(POLL)
