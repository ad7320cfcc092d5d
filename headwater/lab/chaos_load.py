"""The load of the chaos: changes with duplicates, at a rate. Item k of K goes through versions 1, 2, 3, ..."""

from __future__ import annotations

import base64
import random
import threading
import time
from collections import deque
from dataclasses import dataclass
from typing import Any

from confluent_kafka import Producer

from pipeline.errors import FatalError

KEYS = 500
DUPLICATES = 0.2
TABLE = "chaos"
PAD = "x" * 300
HOUR = 1_764_000_000
"""When all changes happened, in seconds since the epoch: one hour, so that the lake has one directory."""
VERSION_BITS = 40


@dataclass(frozen=True, slots=True)
class Special:
    """A change that is not like the others."""

    sleep_ms: int = 0
    """How long the step of the flow sleeps at it."""
    size: int = 0
    """Bytes that its item has more, which no compression makes less."""


ORDINARY = Special()


def change_of(event_id: str | bytes) -> int:
    """Return the number that stands for a change, by its event ID: the item, and its version in the low bits."""
    return int(event_id[:8], 16) << VERSION_BITS | int(event_id[16:], 16)


def key_of(change: int) -> int:
    """Return the number of a change's item."""
    return change >> VERSION_BITS


def sleep_of(event_id: str) -> float:
    """Return the seconds that the flow's step sleeps at a change, by its event ID."""
    return int(event_id[8:16], 16) / 1000


class Load:
    """Writes the changes into the ingest topic, in a thread of its own."""

    def __init__(self, conf: dict[str, Any], topic: str, rate: int, seed: int) -> None:
        self._producer = Producer({**conf, "enable.idempotence": True, "linger.ms": 5, "message.timeout.ms": 300_000})
        self._topic, self._rate, self._random = topic, rate, random.Random(seed)  # noqa: S311
        self._versions = [0] * KEYS
        self._specials: dict[tuple[int, int], Special] = {}
        self._asked: deque[tuple[Special, list[int], threading.Event]] = deque()
        self._stop, self._running, self._paused = threading.Event(), threading.Event(), threading.Event()
        self._running.set()
        self._thread = threading.Thread(target=self._run, name="load", daemon=True)
        self.failed = 0

    @property
    def written(self) -> int:
        """The number of different changes."""
        return sum(self._versions)

    def __contains__(self, change: tuple[int, int]) -> bool:
        key, version = change
        return 0 <= key < KEYS and 0 < version <= self._versions[key]

    def start(self) -> None:
        """Start to write."""
        self._thread.start()

    def pause(self) -> None:
        """Write nothing until `resume`; returns when the broker has everything."""
        self._paused.clear()
        self._running.clear()
        self._paused.wait()

    def resume(self) -> None:
        """Write again."""
        self._running.set()

    def put(self, special: Special) -> int:
        """Write one change that is not like the others; return its number (`change_of`)."""
        found: list[int] = []
        done = threading.Event()
        self._asked.append((special, found, done))
        if not done.wait(60):
            raise FatalError("the load does not write")
        return found[0]

    def stop(self) -> None:
        """Stop, and wait until the broker has everything."""
        self._stop.set()
        self._running.set()
        self._thread.join()
        self._flush()

    def _flush(self) -> None:
        left = self._producer.flush(120)
        if left or self.failed:
            raise FatalError(f"the load itself was lost: {left + self.failed} records were not delivered")

    def _run(self) -> None:
        began, made = time.monotonic(), 0
        while not self._stop.wait(0.005):
            if not self._running.is_set():
                self._producer.flush(120)
                self._paused.set()
                self._running.wait()
                began, made = time.monotonic(), 0
            while self._asked:
                special, found, done = self._asked.popleft()
                found.append(self._write_one(special))
                done.set()
            while made < (time.monotonic() - began) * self._rate:
                made += 1
                self._write_one()
            self._producer.poll(0)

    def _write_one(self, special: Special = ORDINARY) -> int:
        key = self._random.randrange(KEYS)
        last = self._versions[key]
        if special == ORDINARY and last and self._random.random() < DUPLICATES:
            version = self._random.randint(max(1, last - 50), last)
            special = self._specials.get((key, version), ORDINARY)
        else:
            version = self._versions[key] = last + 1
            if special != ORDINARY:
                self._specials[key, version] = special
        self._produce(key, version, special)
        return key << VERSION_BITS | version

    def _produce(self, key: int, version: int, special: Special) -> None:
        event_id = f"{key:08x}{special.sleep_ms:08x}{version:016x}"
        item = f'{{"id":{{"S":"k{key}"}}}}'
        pad = base64.b64encode(self._random.randbytes(special.size * 3 // 4)).decode() if special.size else PAD
        value = (
            f'{{"eventID":"{event_id}","eventName":"MODIFY","tableName":"{TABLE}","dynamodb":{{"Keys":{item},'
            f'"NewImage":{{"id":{{"S":"k{key}"}},"pad":{{"S":"{pad}"}}}},"SequenceNumber":"{version}",'
            f'"ApproximateCreationDateTime":{HOUR}}},"k":{key},"v":{version}}}'
        ).encode()
        while True:
            try:
                self._producer.produce(self._topic, value, item.encode(), on_delivery=self._report)
            except BufferError:
                self._producer.poll(0.1)
            else:
                return

    def _report(self, error: Any, _message: Any) -> None:
        self.failed += error is not None
