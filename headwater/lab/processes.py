"""Processes of the local stack: started in groups of their own, known by their birth, stopped as groups."""

from __future__ import annotations

import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import cast
from urllib.parse import urlsplit

from pipeline.errors import HeadwaterError

LOOPBACK = "127.0.0.1"
PORTS = range(20_000, 32_000)
"""Below the ports that the kernel gives to clients: one of those can be taken, even by the client that dials it."""
TETHER = Path(__file__).with_name("tether.py")
POLL = 0.02
TELLING = re.compile(r"in use|no space left|exception|error|fatal|denied|cannot", re.IGNORECASE)

_children: dict[int, subprocess.Popen[bytes]] = {}  # ours to reap, also those that outlive us (no ResourceWarning)
_starter = ThreadPoolExecutor(max_workers=1, thread_name_prefix="lab")  # lasts as long as we do: see tether.py


@dataclass(frozen=True)
class Process:
    """A process that was started once: `born` tells it from a stranger that has got the same pid since."""

    name: str
    pid: int
    born: str
    address: str
    log: Path

    def alive(self) -> bool:
        """Tell whether this very process still runs (a zombie does not)."""
        return self.born != "" and birth(self.pid) == self.born

    def kill(self) -> None:
        """Kill it and its group at once, and wait until it is gone."""
        stop([self], grace=0)


def start(
    name: str, command: Sequence[str | Path], *, log: Path, address: str, environment: Mapping[str, str], detached: bool
) -> Process:
    """Start a program in a session of its own, its output appended to `log`; unless detached, it dies with us."""
    words = [str(word) for word in command]
    with log.open("ab") as output:
        child = _starter.submit(
            subprocess.Popen,
            words if detached else tethered(words),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=log.parent,
            env={**os.environ, **environment},
            start_new_session=True,
        ).result()
    _children[child.pid] = child
    return Process(name, child.pid, birth(child.pid) or "", address, log)


def run(command: Sequence[str | Path], *, seconds: float) -> tuple[int, str]:
    """Run a program to its end, at most so long; return its exit code and output, both streams as one.

    It dies with us; when time is up, it is killed and the exit code is not 0.
    """
    child = _starter.submit(
        subprocess.Popen,
        tethered([str(word) for word in command]),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    ).result()
    with child:
        try:
            output, _ = child.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            output = f"not done within {seconds:g} s"
        finally:
            if child.poll() is None:
                os.killpg(child.pid, signal.SIGKILL)
    return child.returncode, output


def tethered(command: Sequence[str]) -> list[str]:
    """Return the command that runs `command` until its end or ours."""
    return [sys.executable, "-I", "-S", str(TETHER), str(os.getpid()), *command]


def stop(processes: Sequence[Process], *, grace: float = 10) -> None:
    """End the processes, the last first: ask, wait up to `grace` seconds for all of them, then kill their groups."""
    ours = [process for process in reversed(processes) if process.alive() or process.pid in _children]
    for process in ours if grace > 0 else []:
        _signal(process, signal.SIGTERM)
    _wait_until_gone(ours, grace)
    for process in ours:  # those that are left, and what those that ended have left in their groups
        _signal(process, signal.SIGKILL)
    _wait_until_gone(ours, 10)
    for process in ours:
        if (child := _children.pop(process.pid, None)) is not None:
            child.wait()  # a zombie until now, so that its pid was nobody else's while we signalled its group


def wait_until_ready(process: Process, ready: Callable[[], bool], *, seconds: float) -> None:
    """Wait until the condition holds; raise HeadwaterError when time is up or the process ended before."""
    deadline = time.monotonic() + seconds
    while not ready():
        if not process.alive():
            raise _failure(process, "ended as it started")
        if time.monotonic() > deadline:
            raise _failure(process, f"was not ready within {seconds:g} s")
        time.sleep(POLL)


def is_ready(process: Process) -> bool:
    """Say whether a worker's /readyz answers 200."""
    address = urlsplit(process.address)
    with suppress(OSError, HTTPException):
        connection = HTTPConnection(cast("str", address.hostname), address.port, timeout=2)
        try:
            connection.request("GET", "/readyz")
            return connection.getresponse().status == 200
        finally:
            connection.close()
    return False


def explained(message: str, output: str, *, hint: str) -> HeadwaterError:
    """Return an error in one line, with the most telling line of a program's output; its last lines are a note."""
    lines = [line.strip() for line in output.splitlines() if line.strip()] or ["(no output)"]
    telling = next((line for line in reversed(lines) if TELLING.search(line)), lines[-1])
    error = HeadwaterError(f"{message}: {telling[:300]}", hint=hint)
    error.add_note("\n".join(f"  {line[:300]}" for line in lines[-12:]))
    return error


def free_port() -> int:
    """Return a port on which nothing listens."""
    for port in random.sample(PORTS, 200):
        if port_is_free(port):
            return port
    raise HeadwaterError(f"{LOOPBACK}: no free port between {PORTS.start} and {PORTS.stop}", hint="ss -ltnp")


def port_is_free(port: int) -> bool:
    """Tell whether a server could listen on this port."""
    with socket.socket() as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do: past TIME_WAIT
        try:
            server.bind((LOOPBACK, port))
            server.listen()
        except OSError:
            return False
    return True


def listens(host: str, port: int) -> bool:
    """Tell whether something accepts connections there."""
    with suppress(OSError), socket.create_connection((host, port), timeout=2):
        return True
    return False


def birth(pid: int) -> str | None:
    """Return when a process was born, as a word to compare; None for one that has ended, a zombie too."""
    if Path("/proc/self/stat").exists():
        with suppress(OSError):
            fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
            return None if fields[0] in "ZX" else f"{_boot()}/{fields[19]}"
        return None
    shown = subprocess.run(["ps", "-o", "stat=,lstart=", "-p", str(pid)], capture_output=True, text=True, check=False)
    state, _, born = shown.stdout.strip().partition(" ")
    return born.strip() or None if state and not state.startswith("Z") else None


def _boot() -> str:
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return ""


def _signal(process: Process, number: int) -> None:
    with suppress(ProcessLookupError, PermissionError):  # gone; macOS says the latter of a group of zombies
        os.killpg(process.pid, number)


def _wait_until_gone(processes: Sequence[Process], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while any(process.alive() for process in processes) and time.monotonic() < deadline:
        time.sleep(POLL)


def _failure(process: Process, what: str) -> HeadwaterError:
    with process.log.open("rb") as file:
        file.seek(max(0, process.log.stat().st_size - 32_768))
        output = file.read().decode(errors="replace")
    return explained(f"{process.name} on {process.address} {what}", output, hint=f"less {process.log}")
