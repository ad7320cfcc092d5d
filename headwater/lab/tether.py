"""Runs a program that dies with the process that started it: `python tether.py PARENT_PID PROGRAM ARGUMENTS...`.

It is a program of its own, executed in place of itself: a preexec function in the parent could deadlock where the
parent has threads. The kernel sends the signal when the *thread* that started us ends, so start from one that lasts.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main(parent: int, command: list[str]) -> None:
    """Ask the kernel for SIGKILL when the parent ends (where it is Linux), then become the command."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it ended before we asked
            sys.exit(1)
    try:
        os.execvp(command[0], command)  # noqa: S606 - that is what it is for
    except OSError as error:
        sys.exit(f"{command[0]}: {error.strerror}")


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
