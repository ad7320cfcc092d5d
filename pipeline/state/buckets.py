"""IDs by buckets of time: new ones in memory, older ones in sorted files; the oldest leave as a whole bucket.

What a store of this kind does all day is to look up IDs that it does not have and to add them, in random order. A set in
memory does that ten times cheaper than RocksDB's memtable, and a sorted file that RocksDB takes in as it is costs a third
of what its own way from memtable to file does (docs/decisions/0007). Without a write-ahead log both memories are
equally lost in a kill: what they held is read again from the changelog.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import rocksdict

from pipeline.errors import FatalError
from pipeline.state.store import META, Store, options

KEPT = 3
"""Buckets kept. A window is two of them, so that an ID is remembered for a whole window when its bucket has just begun to
age, and for one and a half at most. More buckets would part the window finer and cost a look-up each (0.3 to 0.5 us an ID)."""


def bucket_of(seconds: float, window: float) -> int:
    """Return the bucket of a time, for a window in seconds."""
    return int(seconds // (window / (KEPT - 1)))


class Buckets(Store):
    """A set of IDs, each in the bucket of its time; a column family of RocksDB a bucket.

    `add` is in memory until `flush`: a kill loses it, never a part of it. Positions (`meta`) belong to what was added before.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        names = rocksdict.Rdict.list_cf(str(path))
        self._families = {int(name): self._db.get_column_family(name) for name in names if name.isdecimal()}
        self._incoming = path.with_name(f"{path.name}.incoming")
        self._incoming.unlink(missing_ok=True)  # a kill in mid-way may have left one
        self._take_in = rocksdict.IngestExternalFileOptions()
        self._take_in.set_move_files(True)
        self._recent: dict[bytes, int] = {}
        self._positions: dict[str, int] = {}
        self.adds = 0
        """How often `add` was called since the last flush."""

    def __len__(self) -> int:
        """Return the number of IDs in memory."""
        return len(self._recent)

    def known(self, ids: Sequence[bytes]) -> list[bool]:
        """Say for each ID whether it is in any bucket."""
        recent = self._recent
        if not self._families:
            return [one in recent for one in ids]
        sought: list[Any] = [one for one in ids if one not in recent]
        old: set[bytes] = set()
        for family in self._families.values():
            values = cast("list[bytes | None]", family.get(sought))
            old.update(one for one, value in zip(sought, values, strict=True) if value is not None)
        return [one in recent or one in old for one in ids]

    def add(self, ids: Mapping[bytes, int], **positions: int) -> None:
        """Add IDs, each with its bucket, and the store's positions after them, in memory."""
        self._recent.update(ids)
        self._positions.update(positions)
        self.adds += 1

    def flush(self) -> None:
        """Write what is in memory to files, then drop the buckets that are too old.

        A kill in the middle leaves IDs without their positions, which is harmless, never positions without their IDs.
        """
        by_bucket: dict[int, list[bytes]] = {}
        for one, bucket in self._recent.items():
            by_bucket.setdefault(bucket, []).append(one)
        newest = max([*by_bucket, *self._families], default=0)
        by_bucket.setdefault(newest, [])
        for bucket in sorted(by_bucket):
            if bucket > newest - KEPT:
                self._write_file(bucket, by_bucket[bucket], self._positions if bucket == newest else {})
        self._recent.clear()
        self.adds = 0
        for bucket in [old for old in self._families if old <= newest - KEPT]:
            del self._families[bucket]
            self._db.drop_column_family(str(bucket))

    def _write_file(self, bucket: int, ids: Sequence[bytes], positions: Mapping[str, int]) -> None:
        entries = {META + name.encode(): str(number).encode() for name, number in positions.items()}
        try:
            file = rocksdict.SstFileWriter(options())
            file.open(str(self._incoming))
            for key in sorted([*ids, *entries]):
                file[key] = entries.get(key, b"")
            file.finish()
            if bucket not in self._families:
                self._families[bucket] = self._db.create_column_family(str(bucket), options())
            self._families[bucket].ingest_external_file([str(self._incoming)], self._take_in)
        except Exception as error:
            raise FatalError(
                f"the state in {self.path} cannot be written: {error}", hint=f"df -h {self.path.parent}"
            ) from error

    def meta(self, name: str) -> int | None:
        """Return a position: that of the last `add`, after a kill that of the last flush."""
        if name in self._positions:
            return self._positions[name]
        values = [cast("bytes | None", family.get(META + name.encode())) for family in self._families.values()]
        return max((int(value) for value in values if value is not None), default=None)

    @property
    def buckets(self) -> list[int]:
        """The buckets that hold files, the oldest first."""
        return sorted(self._families)

    def close(self) -> None:
        """Give the lock back. What is in memory is not written: the changelog has it."""
        self._families.clear()  # a view keeps the lock
        super().close()
