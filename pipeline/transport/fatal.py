"""The end of a process that must not go on: a fatal error, or a commit whose outcome is unknown."""

from __future__ import annotations

import logging
import os
import sys
from typing import NoReturn

log = logging.getLogger(__name__)


def stop_process(reason: str, *, hint: str = "start the worker again: it finds the truth in the broker") -> NoReturn:
    """End this process at once, with the reason on stderr and exit code 1.

    No graceful shutdown: that could commit. Whatever was not committed is done again by the next owner.
    """
    log.critical("headwater: %s (try: %s)", reason, hint)
    logging.shutdown()
    sys.stderr.flush()
    os._exit(1)
