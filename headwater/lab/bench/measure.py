"""How a run is measured, from outside and for every system alike: the group's progress, the process's CPU and memory."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self

from confluent_kafka import Consumer, ConsumerGroupState, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient

from headwater.lab import processes
from headwater.lab.bench.load import PARTITIONS
from headwater.lab.processes import Process
from pipeline.errors import HeadwaterError

POLL = 0.05
START_SECONDS = 90.0
STILL_SECONDS = 90.0
"""Seconds without progress after which a run has failed."""
SETTLE = 0.5
"""Seconds that an idle program is watched after it is ready."""
TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Usage:
    """What a process and its children have used."""

    cpu: float
    """Seconds, user and system."""
    peak_mib: float
    """The largest resident set of any of them."""


@dataclass(frozen=True)
class MeasuredPace:
    """How fast a run was, its start-up excluded."""

    records: int
    seconds: float

    @property
    def per_second(self) -> float:
        """Records a second."""
        return self.records / self.seconds if self.seconds else 0.0


class MeasuredProgress:
    """Looks at a group's committed offsets, without being a member."""

    def __init__(self, servers: str, group: str, topic: str) -> None:
        self._admin = AdminClient({"bootstrap.servers": servers, "log_level": 0})
        self._group, self._topic = group, topic
        self._consumer = Consumer(
            {"bootstrap.servers": servers, "group.id": group, "enable.auto.commit": False, "log_level": 0}
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._consumer.close()

    def committed(self) -> int:
        """Return how many records of the topic were committed."""
        asked = [TopicPartition(self._topic, partition) for partition in range(PARTITIONS)]
        try:
            return sum(max(0, at.offset) for at in self._consumer.committed(asked, timeout=10))
        except KafkaException:
            return 0  # the coordinator is not there yet

    def is_assigned(self) -> bool:
        """Tell whether the group is stable and its members have all partitions of the topic."""
        try:
            group = self._admin.describe_consumer_groups([self._group])[self._group].result(10)
        except (KafkaException, TimeoutError):
            return False
        shared = [tp for member in group.members for tp in member.assignment.topic_partitions]
        return bool(
            group.state == ConsumerGroupState.STABLE and sum(tp.topic == self._topic for tp in shared) == PARTITIONS
        )

    def wait_for_assignment(self, process: Process) -> None:
        """Wait until the program could begin to work."""
        processes.wait_until_ready(process, self.is_assigned, seconds=START_SECONDS)

    def follow(
        self, process: Process, end: int, begin: int = 0, on_first: Callable[[int], None] = lambda done: None
    ) -> MeasuredPace:
        """Wait until `end` records were committed; measure from the first progress beyond `begin` that is seen."""
        first: tuple[int, float] | None = None
        last, moved = begin, time.monotonic()
        while True:
            done, now = self.committed(), time.monotonic()
            if done > last:
                last, moved = done, now
                if first is None:
                    first = (done, now)
                    on_first(done)
            if done >= end and first is not None:
                if first[0] >= end:  # all of it in one step: too little to measure
                    return MeasuredPace(0, 0.0)
                return MeasuredPace(end - first[0], now - first[1])
            if not process.alive() or now - moved > STILL_SECONDS:
                why = "ended" if not process.alive() else f"makes no progress for {STILL_SECONDS:.0f} s"
                raise HeadwaterError(f"{process.name} {why} at {done} of {end} records", hint=f"less {process.log}")
            time.sleep(POLL)


def usage(pid: int) -> Usage:
    """Return what a session has used: the process that leads it and whatever it has started."""
    cpu, peak = 0.0, 0.0
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal():
            continue
        with suppress(OSError):
            fields = (entry / "stat").read_text(errors="replace").rpartition(")")[2].split()
            if int(fields[3]) == pid:
                cpu += cpu_seconds(fields)
                peak = max(peak, peak_mib((entry / "status").read_text(errors="replace")))
    return Usage(cpu, peak)


def cpu_seconds(fields: list[str]) -> float:
    """Return user and system time, also of children that ended, from /proc/PID/stat after the name."""
    return sum(int(field) for field in fields[11:15]) / TICKS


def peak_mib(status: str) -> float:
    """Return VmHWM of /proc/PID/status."""
    for line in status.splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    return 0.0


def seconds_to_ready(process: Process, started: float) -> float:
    """Return the seconds from `started` (monotonic) until the worker's /readyz answers 200."""
    processes.wait_until_ready(process, partial(processes.is_ready, process), seconds=START_SECONDS)
    return time.monotonic() - started


def percentile(values: list[float], share: float) -> float:
    """Return the value below which this share of them lies."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


Starter = Callable[[], Process]
Environment = Mapping[str, str]
