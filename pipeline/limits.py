"""Bounds that hold everywhere."""

from __future__ import annotations

import gc

MESSAGE_MAX = 16 << 20
"""Bytes of a record at most, where the settings say nothing: as JSON a change with both images can be many times the 400 kB
that it has in DynamoDB."""
HEADROOM = 1 << 20
"""Bytes that dead letters, retries and state may have more than a change: what is kept beside it."""


def spare_the_collector() -> None:
    """Have what is loaded now never walked again by Python's collector, which would else walk it for every batch."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)
