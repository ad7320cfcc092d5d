"""The end of a process that must not continue: a fatal error, or a commit whose outcome is unknown."""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

log = logging.getLogger(__name__)


def stop_process(
    reason: str, *, hint: str = "start the worker again: it asks the broker what was committed"
) -> NoReturn:
    """End this process at once, with the reason on stderr and exit code 1.

    No graceful shutdown: that could commit. Whatever was not committed is processed again by the next owner.
    """
    log.critical("headwater: %s (try: %s)", reason, hint)
    logging.shutdown()
    sys.stderr.flush()
    os._exit(1)


def end_within(seconds: float, reason: str) -> threading.Timer:
    """End this process with the reason if it still runs after so many seconds, whatever it waits for; may be cancelled."""
    watchdog = threading.Timer(seconds, stop_process, (reason,))
    watchdog.daemon = True  # an end that comes sooner does not wait for it
    watchdog.start()
    return watchdog


@contextmanager
def ends_process_after(seconds: float, reason: str) -> Iterator[None]:
    """End this process with the reason if the block takes longer: for calls that no time-out of their own can be trusted in."""
    watchdog = end_within(seconds, reason)
    try:
        yield
    finally:
        watchdog.cancel()
