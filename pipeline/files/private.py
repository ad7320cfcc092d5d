"""Directories that hold items of customers: only their owner may enter them."""

from __future__ import annotations

import logging
import stat
from functools import lru_cache
from pathlib import Path

log = logging.getLogger(__name__)
OWNER = 0o700


def private_directory(path: Path) -> None:
    """Make a directory for its owner alone, with its parents; tighten one that is wider, and say so. Raises OSError."""
    path.mkdir(mode=OWNER, parents=True, exist_ok=True)
    mode = stat.S_IMODE(path.stat().st_mode)
    if not mode & 0o077:
        return
    try:
        path.chmod(OWNER)
    except OSError as error:
        _say_of(path, mode, error.strerror)
    else:
        log.warning("Others could enter the directory %s (%o): now it is 700, for its owner alone", path, mode)


@lru_cache
def _say_of(path: Path, mode: int, why: str | None) -> None:
    """Say it once, not for every part of the worker that keeps something there."""
    log.warning("Others may enter the directory %s (%o), and that cannot be changed: %s", path, mode, why)
