"""Workers as real processes: started, watched and started again, hurt on purpose, stopped."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.errors import FatalError
from pipeline.lab.processes import LOOPBACK

STOP_DEADLINE = 20.0
MOST_STARTS = 10


def free_port() -> int:
    """Return a port of the loopback address that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        port: int = probe.getsockname()[1]
        return port


@dataclass
class WorkerProcess:
    """One worker: its state directory stays, its process may change."""

    name: str
    directory: Path
    environment: Mapping[str, str]
    process: subprocess.Popen[bytes] | None = None
    starts: int = 0
    exits: list[int] = field(default_factory=list)

    @property
    def log(self) -> Path:
        """The file with its output."""
        return self.directory / f"{self.name}.log"

    def start(self) -> None:
        """Start `faust -A pipeline.worker worker`."""
        self.directory.mkdir(parents=True, exist_ok=True)
        self.starts += 1
        environment = {
            **self.environment,
            "HEADWATER_STATE_DIR": str(self.directory / f"{self.name}.state"),
            "HEADWATER_WEB__PORT": str(free_port()),
        }
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "faust", "-A", "pipeline.worker", "worker", "-l", "info"],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def keep_alive(self) -> None:
        """Start it again if it has ended, as a supervisor would; raise FatalError when it keeps ending."""
        if self.process is None or self.process.poll() is None:
            return
        self.exits.append(self.process.returncode)
        if self.starts >= MOST_STARTS:
            last = self.log.read_text(errors="replace").strip().splitlines()[-5:]
            raise FatalError(f"the worker {self.name} keeps ending: {' | '.join(last)}", hint=f"less {self.log}")
        self.start()

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the worker's process, if it runs."""
        if self.process is not None and self.process.poll() is None:
            os.kill(self.process.pid, number)


class Workers:
    """Some workers that share the work."""

    def __init__(self, count: int, directory: Path, environment: Mapping[str, str]) -> None:
        self.all = [WorkerProcess(f"worker-{n + 1}", directory, environment) for n in range(count)]
        self._stopped: dict[str, float] = {}

    def start(self) -> None:
        """Start all."""
        for worker in self.all:
            worker.start()

    def watch(self) -> None:
        """Start again what has ended; let go on what was stopped long enough."""
        for worker in self.all:
            worker.keep_alive()
            if worker.name in self._stopped and time.monotonic() >= self._stopped[worker.name]:
                del self._stopped[worker.name]
                worker.signal(signal.SIGCONT)

    @property
    def hurt(self) -> bool:
        """Whether a worker stands still on purpose."""
        return bool(self._stopped)

    def kill(self, number: int) -> None:
        """Kill a worker without warning."""
        self.all[number].signal(signal.SIGKILL)

    def freeze(self, number: int, seconds: float) -> None:
        """Let a worker stand still; `watch` lets it go on after `seconds`."""
        worker = self.all[number]
        worker.signal(signal.SIGSTOP)
        self._stopped[worker.name] = time.monotonic() + seconds

    def stop(self) -> None:
        """Ask all to stop, wait, then kill."""
        for worker in self.all:
            worker.signal(signal.SIGCONT)
            worker.signal(signal.SIGTERM)
        deadline = time.monotonic() + STOP_DEADLINE
        for worker in self.all:
            if worker.process is None:
                continue
            try:
                worker.process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                worker.process.kill()
                worker.process.wait()
