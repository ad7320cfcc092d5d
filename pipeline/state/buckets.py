"""IDs by buckets of time: new ones in memory, older ones in sorted files; the oldest leave as a whole bucket.

What a store of this kind does all day is to look up IDs that it does not have and to add them, in random order. A set in
memory does that ten times cheaper than RocksDB's memtable, which is a skip list; and what is written from there, many IDs at
once, needs no memtable that can be searched: a plain vector, sorted when it becomes a file, in RocksDB's own thread
(docs/decisions/0007). Without a write-ahead log both memories are equally lost in a kill: what they held is read again
from the changelog.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from itertools import compress
from pathlib import Path
from typing import Any, cast

import rocksdict

from pipeline.state.store import META, Store, options

KEPT = 3
"""Buckets kept. A window is two of them, so that an ID is remembered for a whole window when its bucket has just begun to
age, and for one and a half at most. More buckets would part the window finer and cost a look-up each (0.3 to 0.5 us an ID)."""


def bucket_options() -> rocksdict.Options:
    """Return how a bucket is kept: what is written is flushed at once, nothing is looked up before."""
    kept = options()
    kept.set_memtable_factory(rocksdict.MemtableFactory.vector())
    kept.set_memtable_prefix_bloom_ratio(0.0)
    kept.set_allow_concurrent_memtable_write(False)  # a vector knows none
    kept.set_write_buffer_size(16 << 20)
    kept.set_max_background_jobs(8)  # a quarter of them sort and write: two
    return kept


def bucket_of(seconds: float, window: float) -> int:
    """Return the bucket of a time, for a window in seconds."""
    return int(seconds // width_of(window))


def width_of(window: float) -> float:
    """Return the seconds that a bucket is open, for a window in seconds."""
    return window / (KEPT - 1)


class Turns:
    """Which bucket is open in a partition: the next one begins when this one has been open for its time.

    That time is counted while the partition is worked on, by a clock that nobody can set, and kept with the positions. So
    neither a record's time stamp nor a machine's clock that is days off can end a bucket early, and with it the window; while
    nobody works, IDs are kept for longer.
    """

    def __init__(self, window: float, clock: Callable[[], float], newest: int, opened: float = 0.0) -> None:
        """`newest` is the number of the open bucket, `opened` the seconds that it was open before."""
        self._width, self._clock = width_of(window), clock
        self.number = newest
        self._opened, self._since = opened, clock()

    @property
    def opened(self) -> float:
        """Seconds that the open bucket has been open."""
        return self._opened + max(0.0, self._clock() - self._since)

    def now(self) -> int:
        """Return the number of the open bucket; open the next one if it is time."""
        if self.opened >= self._width:
            self.number += 1
            self._opened, self._since = 0.0, self._clock()
        return self.number


class Buckets(Store):
    """A set of IDs, each in the bucket of its time; a column family of RocksDB a bucket.

    `add` is in memory until `flush`: a kill loses it, never a part of it. Positions (`meta`) belong to what was added before.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path, bucket_options)
        names = rocksdict.Rdict.list_cf(str(path))
        self._families = {int(name): self._db.get_column_family(name) for name in names if name.isdecimal()}
        self._recent: dict[int, set[bytes]] = {}
        self._positions: dict[str, int | str] = {}
        self.adds = 0
        """How often `add` was called since the last flush."""
        self.loaded = False
        """Whether `load` has brought IDs that are not known before the next flush."""

    def __len__(self) -> int:
        """Return the number of IDs in memory."""
        return sum(map(len, self._recent.values()))

    def unknown(self, ids: Iterable[bytes]) -> set[bytes]:
        """Return those of the IDs that are in no bucket."""
        unknown = set(ids).difference(*self._recent.values())
        if unknown and self._families:
            sought: list[Any] = list(unknown)
            for family in self._families.values():
                values = cast("list[bytes | None]", family.get(sought))
                unknown.difference_update(compress(sought, [value is not None for value in values]))
        return unknown

    def add(self, ids: Mapping[int, Collection[bytes]], **positions: int | str) -> None:
        """Add IDs by bucket, and the store's positions after them, in memory."""
        for bucket, members in ids.items():
            self._recent.setdefault(bucket, set()).update(members)
        self._positions.update(positions)
        self.adds += 1

    def load(self, ids: Mapping[int, Collection[bytes]], **positions: int | str) -> None:
        """Add many IDs by bucket past the memory: in a recovery. They are not known before the next `flush`."""
        newest = max([*ids, *self._families], default=0)
        batch = rocksdict.WriteBatch(raw_mode=True)
        for bucket, members in {newest: (), **ids}.items():
            if bucket not in self._families:
                with self._writing():
                    self._families[bucket] = self._db.create_column_family(str(bucket), bucket_options())
            family = self._db.get_column_family_handle(str(bucket))
            for member in members:
                batch.put(member, b"", family)
        family = self._db.get_column_family_handle(str(newest))
        for name, value in positions.items():
            batch.put(META + name.encode(), str(value).encode(), family)
        self._write(batch, {})
        self._positions.update(positions)
        self.adds += 1
        self.loaded = True

    def flush(self) -> None:
        """Write what is in memory to files, then drop the buckets that are too old.

        A kill in the middle leaves IDs without their positions, which is harmless, never positions without their IDs.
        """
        if not self.adds:
            return
        self.load(self._recent, **self._positions)
        for bucket in self.buckets:  # the positions last
            self._flush_family(bucket)
        self._recent.clear()
        self.adds, self.loaded = 0, False
        for bucket in [old for old in self._families if old <= max(self._families) - KEPT]:
            del self._families[bucket]
            with self._writing():
                self._db.drop_column_family(str(bucket))

    def _flush_family(self, bucket: int) -> None:
        with self._writing():
            self._families[bucket].flush(True)

    def meta(self, name: str) -> int | None:
        """Return a position: that of the last `add`, after a kill that of the last flush."""
        found = self._kept(name)
        return None if found is None else int(found)

    def text(self, name: str) -> str:
        """Return a text that is kept as positions are; '' where there is none."""
        return self._kept(name) or ""

    def _kept(self, name: str) -> str | None:
        if name in self._positions:
            return str(self._positions[name])
        for bucket in reversed(self.buckets):  # the newest had the last word
            value = cast("bytes | None", self._families[bucket].get(META + name.encode()))
            if value is not None:
                return value.decode()
        return None

    @property
    def buckets(self) -> list[int]:
        """The buckets that are not only in memory, the oldest first."""
        return sorted(self._families)

    def close(self) -> None:
        """Give the lock back. What is in memory is not written: the changelog has it."""
        self._families.clear()  # a view keeps the lock
        super().close()
