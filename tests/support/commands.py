"""Running commands in tests: given up when nothing moves any more, not when time is up; and commands that heed Ctrl-C."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryFile

STILL_S = 120.0
"""Seconds without output and without a change of a file after which a command is given up: a slow machine moves, slowly."""

LOOK_S = 1.0

_HEEDING = "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); os.execv(sys.argv[1], sys.argv[1:])"


def heeding(command: Sequence[str]) -> list[str]:
    """Return a command that heeds Ctrl-C: what a shell starts in the background ignores it, with its children."""
    return [sys.executable, "-c", _HEEDING, *command]


def run_while_it_moves(
    command: Sequence[str], directory: Path, environment: Mapping[str, str], still_s: float = STILL_S
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end; kill it when it says nothing and changes no file in its directory for so many seconds."""
    with TemporaryFile("w+") as stdout, TemporaryFile("w+") as stderr:
        process = subprocess.Popen(command, cwd=directory, env=environment, stdout=stdout, stderr=stderr)
        seen, moved = (-1, -1), time.monotonic()
        while process.poll() is None:
            now = os.fstat(stdout.fileno()).st_size + os.fstat(stderr.fileno()).st_size, _size(directory)
            if now != seen:
                seen, moved = now, time.monotonic()
            elif time.monotonic() > moved + still_s:
                process.kill()
                stderr.write(f"\ngiven up: nothing has moved for {still_s:.0f} s\n")
            try:
                process.wait(LOOK_S)
            except subprocess.TimeoutExpired:
                continue
        stdout.seek(0)
        stderr.seek(0)
        return subprocess.CompletedProcess(command, process.returncode, stdout.read(), stderr.read())


def _size(directory: Path) -> int:
    """Return the bytes of all files of a directory, as they are now: workers and brokers write logs there."""
    total = 0
    for path in directory.rglob("*"):
        try:
            total += path.stat().st_size
        except OSError:  # it is gone
            continue
    return total
