"""The faults of the chaos that are done to topics and to the flow's step, and what they leave to be checked."""

from __future__ import annotations

import random
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from confluent_kafka import TopicPartition
from confluent_kafka.admin import (  # type: ignore[attr-defined]  # the stub forgets
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    ResourceType,
)
from faust.types import TP

from headwater.lab.chaos_ledger import Ledger, change_in
from headwater.lab.chaos_load import Load, Special
from headwater.lab.recorder import Recorder
from headwater.lab.workers import WorkerProcess, Workers
from pipeline.topics.admin import admin, ensure
from pipeline.topics.names import MAX_BYTES, Topics
from pipeline.transport.committed import committed

Over = Callable[[], bool]
"""Says whether a fault is over, and puts back what was changed for it."""

MISSED = (200, 2_000)
"""Changes of a partition that are written before some of them are deleted unread."""
SMALL, LARGE = 100_000, 400_000
"""Bytes that the sink topic takes for a while, and those of a change that is larger."""
SLEEP_MS = 6_500
"""What a step sleeps at a marked change: longer than `TRANSACTION_MS`."""
TRANSACTION_MS = 6_000
"""transaction.timeout.ms of the workers."""
SLOW = 0.01
"""Seconds that each change takes while the step is slow."""
SLOW_CHANGES = 5_000
"""Changes that are written meanwhile."""
TIMEOUT = 20.0


@dataclass
class Sinks:
    """The sink topic, each log of it with a ledger of its own."""

    conf: dict[str, Any]
    topic: str
    ledgers: list[Ledger] = field(default_factory=list)

    def begin(self) -> None:
        """Follow the topic as it is now."""
        self.ledgers.append(Ledger(self.conf, self.topic))
        self.ledgers[-1].__enter__()

    def end(self) -> None:
        """Stop following it."""
        self.ledgers[-1].__exit__()

    def __len__(self) -> int:
        return sum(map(len, self.ledgers))

    @property
    def counts(self) -> dict[int, int]:
        """The number of records, by partition."""
        found: dict[int, int] = {}
        for ledger in self.ledgers:
            for partition, count in ledger.counts.items():
                found[partition] = found.get(partition, 0) + count
        return found


@dataclass
class Scene:
    """What the faults need to know of the run."""

    conf: dict[str, Any]
    topics: Topics
    group: str
    load: Load
    ingest: Ledger
    letters: Recorder
    sinks: Sinks
    slow_file: Path
    through: Over
    """Says whether all that was written has come through."""
    until: Callable[[Over, str], None]
    """Waits, and wakes what was frozen long enough."""
    until_watched: Callable[[Over, str], None]
    """Waits, and starts again what has ended."""
    trimmed: dict[int, int] = field(default_factory=dict)
    """The first offset of ingest that was not deleted, by partition."""


class TopicFaults:
    """Does them, with victims chosen by `chance`."""

    def __init__(
        self, scene: Scene, workers: Workers, choose: Callable[[], WorkerProcess], chance: random.Random
    ) -> None:
        self._scene, self._workers, self._choose, self._chance = scene, workers, choose, chance
        self._admin = admin(scene.conf)

    def trim_while_stopped(self) -> None:
        """Delete what stopped workers have not read, as retention does."""
        scene = self._scene
        for worker in self._workers.all:
            worker.signal(signal.SIGCONT)
            worker.signal(self._chance.choice((signal.SIGTERM, signal.SIGKILL)))
        scene.until(lambda: not any(worker.alive() for worker in self._workers.all), "the end of all workers")
        partitions = self._chance.sample(sorted(scene.ingest.ends), 2)
        begun: dict[int, int] = {}

        def decided() -> bool:
            """Nothing is read any more, so it stays as it is; before that a transaction may still be under way."""
            tps = [TP(scene.topics.ingest, partition) for partition in partitions]
            found = committed(self._admin, scene.group, tps)
            begun.update({tp.partition: one.offset for tp, one in found.items() if one.is_stable and one.offset})
            return len(begun) == len(partitions)

        scene.until(decided, "the offsets of the stopped workers")
        missed = self._chance.randint(*MISSED)
        self._until_written(begun, missed)
        self._trim({partition: offset + self._chance.randint(1, missed) for partition, offset in begun.items()})

    def trim_while_frozen(self) -> None:
        """Delete all that was written, as retention does, while a worker is frozen."""
        scene, worker = self._scene, self._choose()
        worker.signal(signal.SIGSTOP)
        begun = scene.ingest.ends
        self._until_written(begun, self._chance.randint(*MISSED))
        self._trim(
            {partition: min(scene.ingest.reached[partition], scene.ingest.ends[partition]) for partition in begun}
        )
        worker.signal(signal.SIGCONT)

    def recreate_sink(self) -> Over:
        """Delete the sink topic under workers that run; make it again when they have tried to write to it."""
        scene = self._scene
        scene.load.pause()
        scene.until_watched(scene.through, "the end of all that was written")
        scene.sinks.end()
        self._admin.delete_topics([scene.sinks.topic], operation_timeout=TIMEOUT)[scene.sinks.topic].result(TIMEOUT)
        written = scene.load.written
        scene.load.resume()
        away = self._chance.choice((0, self._chance.randint(*MISSED)))
        scene.until(lambda: scene.load.written >= written + away, "changes for the topic that is gone")
        wanted = [topic for topic in scene.topics.all() if topic.name == scene.sinks.topic]

        def is_there() -> bool:  # its deletion may still be under way
            ensure(self._admin, wanted, 1)
            found = self._admin.list_topics(timeout=TIMEOUT).topics.get(scene.sinks.topic)
            return found is not None and bool(found.partitions)

        scene.until_watched(is_there, "the recreated sink topic")
        scene.sinks.begin()
        return lambda: len(scene.sinks.ledgers[-1]) > 0

    def refuse(self) -> Over:
        """Have the sink topic take small records only, and write a change that is larger."""
        scene = self._scene
        self._limit(SMALL)
        change = scene.load.put(Special(size=LARGE))

        def over() -> bool:
            if not self._is_rejected(change):
                return False
            self._limit(None)
            return True

        return over

    def sleep(self) -> Over:
        """Have the step sleep at one change for longer than a transaction may last."""
        change = self._scene.load.put(Special(sleep_ms=SLEEP_MS))
        return lambda: self._is_rejected(change)

    def slow_down(self) -> None:
        """Have the step be slow at every change, for a while."""
        scene, written = self._scene, self._scene.load.written
        scene.slow_file.write_text(str(SLOW))
        try:
            scene.until(lambda: scene.load.written >= written + SLOW_CHANGES, "changes for the slow step")
        finally:
            scene.slow_file.unlink()

    def _is_rejected(self, change: int) -> bool:
        return any(letter.value() and change_in(letter) == change for letter in list(self._scene.letters))

    def _until_written(self, begun: dict[int, int], more: int) -> None:
        self._scene.until(
            lambda: all(self._scene.ingest.ends.get(p, 0) >= offset + more for p, offset in begun.items()),
            "changes that nobody reads",
        )

    def _trim(self, before: dict[int, int]) -> None:
        scene, topic = self._scene, self._scene.topics.ingest
        asked = self._admin.delete_records([TopicPartition(topic, p, offset) for p, offset in before.items()])
        for tp, future in asked.items():
            low = cast("int", future.result(TIMEOUT).low_watermark)
            scene.trimmed[tp.partition] = max(low, scene.trimmed.get(tp.partition, 0))

    def _limit(self, most: int | None) -> None:
        topic = self._scene.sinks.topic
        value = most or next(one.config[MAX_BYTES] for one in self._scene.topics.all() if one.name == topic)
        entry = ConfigEntry(MAX_BYTES, str(value), incremental_operation=AlterConfigOpType.SET)
        resource = ConfigResource(ResourceType.TOPIC, topic, incremental_configs=[entry])
        self._admin.incremental_alter_configs([resource])[resource].result(TIMEOUT)
