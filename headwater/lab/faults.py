"""The faults of the chaos: what can be done to workers, their state, the broker and its topics."""

from __future__ import annotations

import random
import shutil
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

from headwater.lab.chaos_topics import Over, Scene, TopicFaults
from headwater.lab.disk import Disk, why_not
from headwater.lab.killer import POINTS, ask
from headwater.lab.stack import Stack
from headwater.lab.workers import WorkerProcess, Workers
from pipeline.errors import FatalError, HeadwaterError

SESSION = 6.0
"""Session time-out of the workers, in seconds."""
FROZEN = (2.0, 6.0)
"""Seconds that a worker is frozen beyond that."""
MOST_WORKERS = 3
LIMIT = 120.0
"""Seconds that a fault may take."""
LOOK = 0.01
"""Seconds between two looks at what is waited for."""
FILL_DISK = "fill disk"
RECREATED = "changed while this worker ran"
"""What a worker says that ends because a topic is another one than it has read or written."""
RETENTION, RETENTION_FROZEN = "retention", "retention while frozen"
RECREATE_SINK, REFUSE, SLEEP, SLOW = "recreate sink", "refuse", "sleep", "slow step"
TOPICS = (RETENTION, RETENTION_FROZEN, RECREATE_SINK, REFUSE, SLEEP, SLOW)
"""What is done to topics and to the flow's step."""
ALONE = frozenset({RECREATE_SINK, REFUSE, SLEEP})
"""Those that begin when all others are over, and are over before the next: what they wait for takes its time."""


class Faults:
    """Does faults to the workers and the broker of one run, on victims chosen by `chance`."""

    def __init__(self, stack: Stack, directory: Path, environment: Mapping[str, str], chance: random.Random) -> None:
        self._stack, self._chance = stack, chance
        self._disks: dict[str, Disk] = {}
        directory.mkdir(parents=True, exist_ok=True)
        self._no_disks = why_not(directory)
        self.workers = Workers(2, directory, environment, module="headwater.lab.chaos_worker", made=self._give_disk)
        self._ways: dict[str, Callable[[], Over | None]] = {
            "kill": self._kill,
            "freeze": self._freeze,
            "terminate": self._terminate,
            "join": self._join,
            **{f"kill at {point}": partial(self._kill_at, point) for point in POINTS},
            "kill in recovery": self._kill_in_recovery,
            "restart broker": self._restart_broker,
            "kill broker": self._kill_broker,
            "lose state": self._lose_state,
            **({} if self._no_disks else {FILL_DISK: self._fill_disk}),
        }

    def add(self, scene: Scene) -> None:
        """Add the faults of `TOPICS`: they need to know what comes out."""
        topics = TopicFaults(scene, self.workers, self._choose, self._chance)
        self._ways |= {
            RETENTION: topics.trim_while_stopped,
            RETENTION_FROZEN: topics.trim_while_frozen,
            RECREATE_SINK: topics.recreate_sink,
            REFUSE: topics.refuse,
            SLEEP: topics.sleep,
            SLOW: topics.slow_down,
        }

    @property
    def names(self) -> list[str]:
        """The faults that can be done here."""
        return list(self._ways)

    @property
    def left_out(self) -> dict[str, str]:
        """The faults that cannot be done here, and why."""
        return {FILL_DISK: self._no_disks} if self._no_disks else {}

    def do(self, name: str) -> Over:
        """Do a fault and return when it has happened; raise FatalError when its victim does not behave as it must.

        What is returned says whether it is over, as far as that is not seen by what comes out.
        """
        return self._ways[name]() or (lambda: True)

    def close(self) -> None:
        """Stop the workers and take their disks away."""
        self.workers.stop()
        for disk in self._disks.values():
            with suppress(HeadwaterError):
                disk.unmount()

    # -- the faults ---------------------------------------------------------------------------------------------------

    def _kill(self) -> None:
        self._end(self._choose(), signal.SIGKILL)

    def _freeze(self) -> None:
        """Longer than the session lasts: when it wakes it is a zombie, evicted from the group without knowing it."""
        self.workers.freeze(self.workers.all.index(self._choose()), SESSION + self._chance.uniform(*FROZEN))

    def _terminate(self) -> None:
        self._end(self._choose(), signal.SIGTERM)

    def _join(self) -> None:
        """One more worker; where there are enough, one leaves permanently."""
        if len(self.workers.all) < MOST_WORKERS:
            self.workers.add()
            return
        worker = self._choose()
        self.workers.all.remove(worker)
        self._end(worker, signal.SIGTERM)

    def _kill_at(self, point: str) -> None:
        worker = self._choose()
        ask(worker.state, point)
        self.until(lambda: not worker.alive(), f"the end of {worker.name} at {point}")

    def _kill_in_recovery(self) -> None:
        worker = self._choose()
        self._lose(worker)
        worker.start()
        # A recovery begins when the partitions have come; the store is opened first.
        self.until(
            lambda: any(worker.state.glob("*.db")) or not worker.alive(),
            f"the beginning of a recovery of {worker.name}",
        )
        self._end(worker, signal.SIGKILL)

    def _restart_broker(self) -> None:
        self._stack.stop_broker()
        self._stack.start_broker()

    def _kill_broker(self) -> None:
        """Killed by a worker at the end of a slice: there is a transaction with records in it."""
        broker = self._stack.processes[0]
        ask(self._choose().state, "finish", broker.pid)
        self.until(lambda: not broker.alive(), "the end of the broker")
        self._stack.kill_broker()  # what is left of it
        self._stack.start_broker()

    def _lose_state(self) -> None:
        self._lose(self._choose())

    def _fill_disk(self) -> None:
        """Expect the worker to end with the reason, and again when it is started while the disk is still full."""
        worker = self._choose()
        disk, said = self._disks[worker.name], _size(worker.log)

        def ended() -> bool:
            disk.fill()  # again: RocksDB may have given something back
            return not worker.alive()

        self.until(ended, f"the end of {worker.name}, whose disk is full")
        if RECREATED not in _said(worker, said):  # it may have noticed a fault before this one first
            _require_reason(worker, said)
        said = _size(worker.log)
        worker.start()
        self.until(ended, f"the end of {worker.name}, started on a full disk")
        _require_reason(worker, said)
        disk.free()

    # -- their parts --------------------------------------------------------------------------------------------------

    def _choose(self) -> WorkerProcess:
        awake: list[WorkerProcess] = []

        def some_are_awake() -> bool:
            self.workers.watch()
            awake[:] = [
                worker for worker in self.workers.all if not self.workers.stands_still(worker) and worker.alive()
            ]
            return bool(awake)

        self.until(some_are_awake, "a worker that is awake")
        return self._chance.choice(awake)

    def _end(self, worker: WorkerProcess, number: signal.Signals) -> None:
        worker.signal(number)
        self.until(lambda: not worker.alive(), f"the end of {worker.name} by {number.name}")

    def _lose(self, worker: WorkerProcess) -> None:
        self._end(worker, signal.SIGKILL)
        if (disk := self._disks.get(worker.name)) is not None:
            disk.lose()
        else:
            shutil.rmtree(worker.state, ignore_errors=True)

    def _give_disk(self, worker: WorkerProcess) -> None:
        if self._no_disks is None:
            self._disks[worker.name] = disk = Disk(worker.state)
            disk.mount()

    def until(self, condition: Callable[[], bool], what: str) -> None:
        """Wait, and wake what was frozen long enough; raise FatalError when it takes too long."""
        deadline = time.monotonic() + LIMIT
        while not condition():
            if time.monotonic() > deadline:
                raise FatalError(f"not within {LIMIT:.0f} s: {what}", hint=f"ls {self.workers.all[0].directory}")
            self.workers.thaw()
            time.sleep(LOOK)


def plan(names: Sequence[str], count: int, chance: random.Random) -> list[str]:
    """Return a schedule of so many faults: each kind once before any comes again, in an order that chance decides."""
    rounds = [chance.sample(list(names), len(names)) for _ in range(0, count, len(names))]
    schedule = [name for turn in rounds for name in turn][:count]
    chance.shuffle(schedule)
    return schedule


def _size(log: Path) -> int:
    return log.stat().st_size if log.exists() else 0


def _said(worker: WorkerProcess, since: int) -> str:
    """Return what a worker's log says from an offset on."""
    with worker.log.open("rb") as log:
        log.seek(since)
        return log.read().decode(errors="replace")


def _require_reason(worker: WorkerProcess, since: int) -> None:
    """Raise FatalError unless the worker's log says, from an offset on, that the disk is full, and what to type."""
    lines = _said(worker, since).splitlines()
    if not any("No space left on device" in line and "(try: df -h" in line for line in lines):
        raise FatalError(f"{worker.name} ended on a full disk without saying so", hint=f"less {worker.log}")
