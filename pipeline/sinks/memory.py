"""Gives memory back to the system after large flushes.

glibc keeps what is freed in the middle of its heaps: a worker whose 500 partitions had been written still took 1,050 MiB of
which it used 160; after malloc_trim it took 390.
"""

from __future__ import annotations

import ctypes
import threading

EVERY = 64 << 20
"""Bytes that are freed between two times: a trim takes some tens of milliseconds, in the calling thread alone."""
_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
"""Of glibc alone; other allocators give back by themselves."""


class Freed:
    """Counts what flushes have freed. From any thread."""

    def __init__(self) -> None:
        self._bytes, self._lock = 0, threading.Lock()

    def add(self, size: int) -> None:
        """Count bytes; give back what has gathered when it is much."""
        with self._lock:
            self._bytes += max(0, size)
            due = self._bytes >= EVERY
            if due:
                self._bytes = 0
        if due and _trim is not None:
            _trim(0)
