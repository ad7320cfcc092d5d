"""Workers as real processes: started, watched and started again, hurt on purpose, stopped."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import cast

from headwater.lab import processes
from headwater.lab.processes import LOOPBACK, Process
from headwater.worker import COMMAND
from pipeline.errors import FatalError

MOST_STARTS = 10
"""How often a worker may end before that is taken for a fault of its own; the chaos allows itself more."""
READY_SECONDS, STOP_SECONDS = 60.0, 20.0


@dataclass
class WorkerProcess:
    """One worker: its state directory stays, its process may change."""

    name: str
    directory: Path
    environment: Mapping[str, str]
    detached: bool
    module: str = "pipeline.worker"
    process: Process | None = None
    starts: int = 0
    most_starts: int = MOST_STARTS

    @property
    def log(self) -> Path:
        """The file with its output."""
        return self.directory / f"{self.name}.log"

    @property
    def state(self) -> Path:
        """Its state directory."""
        return self.directory / f"{self.name}.state"

    def start(self) -> None:
        """Start `faust -A pipeline.worker worker`; raise FatalError when it has ended too often."""
        if self.starts >= self.most_starts:
            last = self.log.read_text(errors="replace").strip().splitlines()[-1:]
            raise FatalError(f"the worker {self.name} keeps ending: {' '.join(last)}", hint=f"less {self.log}")
        self.directory.mkdir(parents=True, exist_ok=True)
        self.starts += 1
        port = processes.free_port()
        self.process = processes.start(
            self.name,
            [sys.executable, *COMMAND, "-A", self.module, "worker", "-l", "info"],
            log=self.log,
            address=f"http://{LOOPBACK}:{port}",
            environment={
                **self.environment,
                "HEADWATER_STATE_DIR": str(self.state),
                "HEADWATER_WEB__PORT": str(port),
            },
            detached=self.detached,
        )

    def alive(self) -> bool:
        """Say whether its process runs."""
        return self.process is not None and self.process.alive()

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to its process, if it runs."""
        if self.process is not None and self.process.alive():
            with suppress(ProcessLookupError):
                os.kill(self.process.pid, number)


class Workers:
    """Some workers that share the work."""

    def __init__(
        self,
        count: int,
        directory: Path,
        environment: Mapping[str, str],
        *,
        detached: bool = False,
        module: str = "pipeline.worker",
        made: Callable[[WorkerProcess], None] = lambda worker: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`made` is called with each worker before it is started for the first time."""
        self._directory, self._environment = directory, environment
        self._detached, self._module = detached, module
        self._count, self._made = 0, made
        self.all = [self._make() for _ in range(count)]
        self._frozen_until: dict[str, float] = {}
        self._clock = clock

    def start(self, *, in_turn: bool = False) -> None:
        """Start all; `in_turn`: each when the one before is ready."""
        for number, worker in enumerate(self.all):
            if in_turn and number:
                before = cast("Process", self.all[number - 1].process)
                processes.wait_until_ready(before, partial(processes.is_ready, before), seconds=READY_SECONDS)
            worker.start()

    def watch(self) -> None:
        """Start again what has ended, as a supervisor would; wake what was frozen long enough."""
        for worker in self.all:
            if not worker.alive():
                worker.start()
        self.thaw()

    def thaw(self) -> None:
        """Wake what was frozen long enough."""
        for worker in self.all:
            if self._frozen_until.get(worker.name, float("inf")) <= self._clock():
                del self._frozen_until[worker.name]
                worker.signal(signal.SIGCONT)

    def add(self) -> None:
        """Start one more."""
        self.all.append(self._make())
        self.all[-1].start()

    def _make(self) -> WorkerProcess:
        self._count += 1
        worker = WorkerProcess(
            f"worker-{self._count}", self._directory, self._environment, self._detached, self._module
        )
        self._made(worker)
        return worker

    @property
    def frozen(self) -> bool:
        """Whether a worker is frozen on purpose."""
        return bool(self._frozen_until)

    def stands_still(self, worker: WorkerProcess) -> bool:
        """Say whether this worker is frozen on purpose."""
        return worker.name in self._frozen_until

    def kill(self, number: int) -> None:
        """Kill a worker without warning; `watch` starts it again."""
        self.all[number].signal(signal.SIGKILL)

    def freeze(self, number: int, seconds: float) -> None:
        """Freeze a worker; `watch` wakes it after `seconds`."""
        self.all[number].signal(signal.SIGSTOP)
        self._frozen_until[self.all[number].name] = self._clock() + seconds

    def stop(self) -> None:
        """Ask all to stop, wait, then kill."""
        stop_all([self])


def stop_all(some: Iterable[Workers]) -> None:
    """Ask the workers of several groups to stop, all at once; wait, then kill."""
    workers = [worker for group in some for worker in group.all]
    for worker in workers:
        worker.signal(signal.SIGCONT)
    processes.stop([worker.process for worker in workers if worker.process is not None], grace=STOP_SECONDS)
