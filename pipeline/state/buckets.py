"""IDs by buckets of time: old ones leave as a whole bucket, never key by key."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

import rocksdict

from pipeline.state.store import Store, options

KEPT = 3
"""Buckets kept. A window is two of them, so that an ID is remembered for a whole window when its bucket has just begun to
age, and for one and a half at most. More buckets would part the window finer and cost a look-up each (0.3 to 0.5 us an ID)."""


POSITIONS = "positions"
"""The family of the store's positions. Not the default one: that is flushed alone when a database is closed, and a kill
just then would leave positions without the IDs they stand for. All others are flushed together, or not at all."""


def bucket_of(seconds: float, window: float) -> int:
    """Return the bucket of a time, for a window in seconds."""
    return int(seconds // (window / (KEPT - 1)))


class Buckets(Store):
    """A set of IDs, each in the bucket of its time; a column family of RocksDB a bucket."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        names = rocksdict.Rdict.list_cf(str(path))
        if POSITIONS not in names:
            self._db.create_column_family(POSITIONS, options())
        self._families = {int(name): self._db.get_column_family(name) for name in names if name.isdecimal()}
        self._positions = self._db.get_column_family(POSITIONS)

    def known(self, ids: Sequence[bytes]) -> list[bool]:
        """Say for each ID whether it is in any bucket."""
        found = [False] * len(ids)
        for _, family in sorted(self._families.items(), reverse=True):
            values = cast("list[bytes | None]", family.get(list(ids)))
            found = [known or value is not None for known, value in zip(found, values, strict=True)]
        return found

    def add(self, ids: Mapping[int, Sequence[bytes]], **meta: int) -> None:
        """Add IDs by bucket, with the store's positions: all of it or nothing. Then drop the buckets that are too old."""
        batch = rocksdict.WriteBatch(raw_mode=True)
        for bucket, members in ids.items():
            if members and bucket not in self._families:
                self._families[bucket] = self._db.create_column_family(str(bucket), options())
            if members:
                family = self._db.get_column_family_handle(str(bucket))
                for member in members:
                    batch.put(member, b"", family)
        positions = self._db.get_column_family_handle(POSITIONS)
        for name, number in meta.items():
            batch.put(name.encode(), str(number).encode(), positions)
        self._write(batch, {})
        for bucket in [old for old in self._families if old <= max(self._families) - KEPT]:
            del self._families[bucket]
            self._db.drop_column_family(str(bucket))

    def meta(self, name: str) -> int | None:
        """Return a position."""
        value = cast("bytes | None", self._positions.get(name.encode()))
        return None if value is None else int(value)

    @property
    def buckets(self) -> list[int]:
        """The buckets that hold IDs, the oldest first."""
        return sorted(self._families)

    def close(self) -> None:
        """Write what is in memory, give the lock back."""
        self._families.clear()  # a view keeps the lock
        del self._positions
        super().close()
