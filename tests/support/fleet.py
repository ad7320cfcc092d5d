"""Workers under load on topics of their own: what goes in must come out once, in order."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from headwater.lab.chaos_load import Load
from headwater.lab.killer import ask
from headwater.lab.recorder import Recorder, lag
from headwater.lab.stack import Endpoints
from headwater.lab.workers import WorkerProcess, Workers
from pipeline.settings.root import Settings
from pipeline.topics.admin import admin, ensure
from pipeline.topics.names import Topics
from support.waiting import until

SESSION = 6.0
KILLER = "headwater.lab.chaos_worker"
"""The worker that ends itself at a chosen point of a slice: see `die_at`."""


@dataclass
class Fleet:
    """A deployment of its own, with one agent; workers run when they are asked for."""

    endpoints: Endpoints
    directory: Path
    settings: Mapping[str, str] = field(default_factory=dict)
    """Variables over those of the fleet."""
    partitions: int = 4
    prefix: str = field(default_factory=lambda: f"t{uuid.uuid4().hex[:8]}")
    module: str = "pipeline.worker"
    replicas: int = 1
    properties: Mapping[str, str] = field(default_factory=dict)
    """What this process needs to reach the broker beside its address."""
    static: bool = False
    """Whether each worker has its name in the group (static membership)."""

    def __post_init__(self) -> None:
        self.conf: dict[str, Any] = {"bootstrap.servers": self.endpoints.bootstrap_servers, **self.properties}
        settings = {"prefix": self.prefix, "partitions": self.partitions}
        self.topics = Topics(Settings.model_validate(settings))
        ensure(admin(self.conf), self.topics.all(), self.replicas)

    @property
    def environment(self) -> dict[str, str]:
        """What a worker or the command `headwater` reads."""
        time_out = (
            {} if self.settings.get(PROTOCOL) == "consumer" else {"HEADWATER_KAFKA__SESSION_TIMEOUT": f"{SESSION}"}
        )
        return {
            **os.environ,
            **self.endpoints.environment(),
            "HEADWATER_PREFIX": self.prefix,
            "HEADWATER_PARTITIONS": str(self.partitions),
            "HEADWATER_AGENTS": '["deduplicate"]',
            **time_out,
            **self.settings,
        }

    def workers(self, count: int) -> Workers:
        """Make workers; the caller starts and stops them."""
        workers = Workers(count, self.directory, self.environment, module=self.module)
        for worker in workers.all if self.static else []:
            worker.environment = {**worker.environment, INSTANCE: worker.name}
        return workers

    @contextmanager
    def running(self, count: int = 1) -> Iterator[Workers]:
        """Run workers until the end of the block; they are ready when it begins."""
        workers = self.workers(count)
        try:
            workers.start()
            until(lambda: all(map(ready, workers.all)), "workers that are ready")
            yield workers
        finally:
            workers.stop()

    @contextmanager
    def under_load(self, workers: Workers, rate: int = 2_000, *, watched: bool = True) -> Iterator[Recorder]:
        """Write changes with duplicates meanwhile; at the end all must have come out once, in order.

        `watched`: workers that have ended are started again while the last changes are waited for.
        """
        load = Load(self.conf, self.topics.ingest, rate, seed=1)
        with Recorder(self.conf, self.topics.raw) as raw, Recorder(self.conf, self.topics.ingest) as ingest:

            def through() -> bool:
                if watched:
                    workers.watch()
                return len(raw) >= load.written and self.lag(ingest) == 0

            load.start()
            until(lambda: len(raw) > 0, "the first change")
            try:
                yield raw
            finally:
                load.stop()
            until(through, "all changes")
            assert verdict(raw, load) == {"lost": 0, "doubled": 0, "out of order": 0}

    def lag(self, ingest: Recorder) -> int:
        """Return how far the group is behind what was written."""
        return lag(self.conf, self.prefix, {self.topics.ingest: ingest.ends})


INSTANCE = "HEADWATER_KAFKA__INSTANCE_ID"
PROTOCOL = "HEADWATER_KAFKA__GROUP_PROTOCOL"


def verdict(raw: Recorder, load: Load) -> dict[str, int]:
    """Compare what came out with what was written: versions 1, 2, 3, ... of each key, once each."""
    seen: set[tuple[int, int]] = set()
    last: dict[int, int] = {}
    doubled = disordered = 0
    for record in raw:
        change = json.loads(cast("bytes", record.value()))
        one = change["k"], change["v"]
        doubled += one in seen or one not in load
        disordered += one not in seen and one[1] < last.get(one[0], 0)
        last[one[0]] = max(one[1], last.get(one[0], 0))
        seen.add(one)
    return {"lost": load.written - len(seen), "doubled": doubled, "out of order": disordered}


def log_of(worker: WorkerProcess) -> str:
    """Return what a worker has said."""
    return worker.log.read_text(errors="replace") if worker.log.exists() else ""


def ready(worker: WorkerProcess) -> bool:
    """Say whether a worker has its partitions; fail when it has ended."""
    assert worker.alive(), log_of(worker)[-3000:]
    return "Worker ready" in log_of(worker) and "in all" in log_of(worker)


def die_at(worker: WorkerProcess, point: str) -> None:
    """Let a worker of the module `KILLER` end itself at a point of one of its next slices."""
    ask(worker.directory / f"{worker.name}.state", point)
