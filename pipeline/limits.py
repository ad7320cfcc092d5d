"""Bounds that hold everywhere."""

from __future__ import annotations

import gc

MESSAGE_MAX = 16 << 20
"""Bytes of a record at most: a change with both images can be many times its 400 kB in DynamoDB, as JSON."""


def spare_the_collector() -> None:
    """Have what is loaded now never walked again by Python's collector, which would else walk it for every batch."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)
