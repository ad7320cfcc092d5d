"""What is measured of Headwater alone, exactly once: latency, recovery, start-up, and how throughput grows old."""

from __future__ import annotations

import re
import shutil
import statistics
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

from confluent_kafka import OFFSET_END, Consumer, Producer, TopicPartition

from headwater.lab import processes
from headwater.lab.bench import load
from headwater.lab.bench.load import PARTITIONS, VALUE_BYTES
from headwater.lab.bench.measure import MeasuredProgress, percentile, seconds_to_ready, usage
from headwater.lab.bench.systems import SystemPlace, headwater, workers_of
from pipeline.errors import HeadwaterError

SYSTEM = "headwater_exactly_once"
RATE = 5_000
TICK = 0.01
STARTS = 3
GROWTH_RECORDS = 300_000
GROWTH_ROUNDS = 3
SMALL, LARGE = 100_000, 10_000_000
RECOVERED = re.compile(r"Seen table of \S+: offset -1 -> (\d+) in ([0-9.]+) s")


@dataclass(frozen=True)
class Growth:
    """Records a second with so many IDs in the table; the memory with ten million."""

    at_100k: float
    at_10m: float
    rss_mib: float


def latency(place: SystemPlace, seconds: float, warm_up: float) -> dict[str, float]:
    """Return p50 and p99 from just before `produce` to a committed reader's receipt, at a fixed rate, in milliseconds."""
    load.make_topics(place.servers, [place.source, place.output, place.changelog])
    process = headwater(place)
    try:
        seconds_to_ready(process, time.monotonic())
        until = time.time() + warm_up + seconds
        reader = Consumer(
            {"bootstrap.servers": place.servers, "group.id": f"{place.prefix}.latency", "enable.auto.commit": False}
            | {"isolation.level": "read_committed", "fetch.wait.max.ms": 100}
        )
        reader.assign([TopicPartition(place.output, partition, OFFSET_END) for partition in range(PARTITIONS)])
        reader.poll(0.5)
        pacer = threading.Thread(target=pace, args=(place, until))
        pacer.start()
        warm, found = time.time() + warm_up, []
        while (now := time.time()) < until + 2:
            for message in [reader.poll(0.1), *reader.consume(10_000, 0)]:
                if message is not None and message.error() is None:
                    sent, now = int(cast("bytes", message.value())[52:71]) / 1e9, time.time()
                    if sent > warm:
                        found.append((now - sent) * 1000)
        pacer.join()
        reader.close()
    finally:
        processes.stop([process])
        load.drop_topics(place.servers, place.prefix)
    if not found:
        raise HeadwaterError(f"nothing came out in {seconds:.0f} s", hint=f"less {process.log}")
    return {"p50_ms": round(statistics.median(found), 1), "p99_ms": round(percentile(found, 0.99), 1)}


def pace(place: SystemPlace, until: float, over: threading.Event | None = None) -> None:
    """Write RATE records a second, all new, each with the time of its writing, until a time or until it is over."""
    producer = Producer({"bootstrap.servers": place.servers, "linger.ms": 0})
    ids = load.changes(round((until - time.time() + 1) * RATE), seed=11, duplicates=0).ids
    each, number, due = round(RATE * TICK), 0, time.monotonic()
    while time.time() < until and number + each <= len(ids) and not (over and over.is_set()):
        for event_id in ids[number : number + each]:
            value = b'{"eventID":"%s","at":"%d","rest":"' % (event_id.encode(), time.time_ns())
            producer.produce(place.source, value.ljust(VALUE_BYTES - 2, b"x") + b'"}', event_id, number % PARTITIONS)
            number += 1
        producer.poll(0)
        due += TICK
        time.sleep(max(0.0, due - time.monotonic()))
    producer.flush(10)


def recovery(place: SystemPlace, ids: int) -> dict[str, float]:
    """Return how fast a worker without its state directory gets it back, and how soon one with it is ready."""
    load.make_topics(place.servers, [place.source])
    _fill(place, 0, ids)
    worker = workers_of(place).all[0]
    try:
        shutil.rmtree(worker.directory / "worker-1.state")
        worker.log.unlink()
        worker.start()
        if worker.process is None:
            raise HeadwaterError("the worker was not started")
        seconds_to_ready(worker.process, time.monotonic())
        seconds = slowest_recovery(worker.log.read_text(errors="replace"))
        found = []
        for _ in range(STARTS):
            processes.stop([worker.process])
            worker.start()
            found.append(seconds_to_ready(worker.process, time.monotonic()))
    finally:
        if worker.process is not None:
            processes.stop([worker.process])
        load.drop_topics(place.servers, place.prefix)
    return {"recovery_ids_per_s": round(ids / seconds), "ready_s": round(statistics.median(found), 2)}


def slowest_recovery(log: str) -> float:
    """Return the seconds of the slowest of the partitions, which recover at the same time, from a worker's log."""
    found = [float(seconds) for _, seconds in RECOVERED.findall(log)]
    if len(found) != PARTITIONS:
        raise HeadwaterError(f"{len(found)} of {PARTITIONS} partitions reported a recovery from nothing")
    return max(found)


def growth(new_place: Callable[[], SystemPlace], say: Callable[[str], None]) -> Growth:
    """Return the throughput with a small table and with a large one, by turns, each the median of some rounds."""
    large, filled = new_place(), LARGE
    load.make_topics(large.servers, [large.source])
    say(f"growth: filling a table with {LARGE:,} IDs")
    for first in range(0, LARGE, 2_000_000):
        _fill(large, first, 2_000_000)
    at_small, at_large, peaks = [], [], []
    for number in range(GROWTH_ROUNDS):
        small = new_place()
        load.make_topics(small.servers, [small.source])
        _fill(small, 0, SMALL)
        at_small.append(_work(small, SMALL, number)[0])
        pace, peak = _work(large, filled, number)
        filled += GROWTH_RECORDS
        at_large.append(pace)
        peaks.append(peak)
        say(f"growth: {at_small[-1]:,.0f}/s with {SMALL:,} IDs, {pace:,.0f}/s with {filled:,}, {peak:.0f} MiB")
        load.drop_topics(small.servers, small.prefix)
    load.drop_topics(large.servers, large.prefix)
    return Growth(statistics.median(at_small), statistics.median(at_large), max(peaks))


def _fill(place: SystemPlace, begin: int, count: int) -> None:
    """Have the worker see `count` new IDs, in records that hold nothing else."""
    load.preload(place.servers, place.source, load.changes(count, seed=begin + 1, duplicates=0), small=True)
    _follow(place, begin, begin + count)


def _work(place: SystemPlace, begin: int, seed: int) -> tuple[float, float]:
    """Have the worker do records of the usual kind; return records a second and the peak memory in MiB."""
    load.preload(place.servers, place.source, load.changes(GROWTH_RECORDS, seed=-1 - seed))
    return _follow(place, begin, begin + GROWTH_RECORDS)


def _follow(place: SystemPlace, begin: int, end: int) -> tuple[float, float]:
    process = headwater(place)
    try:
        with MeasuredProgress(place.servers, place.prefix, place.source) as progress:
            pace = progress.follow(process, end, begin)
        return pace.per_second, usage(process.pid).peak_mib
    finally:
        processes.stop([process])
