"""The store of Faust tables: `faust.App(..., broker="headwater://...", store="headwater://")`.

Faust's recovery stays idle: `table_partitions` recovers, and says when what is written goes to RocksDB.
"""
# ruff: noqa: SLF001 - Faust's tables have no other names for what a store needs of them

from __future__ import annotations

import asyncio
import glob
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from faust.exceptions import ImproperlyConfigured
from faust.stores.base import SerializedStore
from faust.streams import current_event
from faust.tables.sets import SetTable
from faust.types import TP

from pipeline.errors import FatalError
from pipeline.state.table_partitions import Partitions, TablePartition, Writes
from pipeline.transport import Transport
from pipeline.transport.fatal import stop_process
from pipeline.transport.partition import partition_of

LOOKS, PAUSE = 40, 0.25
"""How often a changelog that was declared is looked for, and the seconds between two looks."""


class TableStore(SerializedStore[Any, Any]):
    """Registered in the entry-point group `faust.stores` as `headwater`.

    A table is written from an event, or with a partition named: that is where the write goes. A read without an event, by
    a timer or a web view, looks into all partitions of this worker.
    """

    def __init__(self, url: Any, app: Any, table: Any, **options: Any) -> None:
        super().__init__(url, app, table, **options)
        self.table: Any = table
        if not isinstance(app.transport, Transport):
            raise ImproperlyConfigured(f"table {table.name}: store headwater:// needs broker headwater://")
        if isinstance(table, SetTable) or table.is_global:
            raise ImproperlyConfigured(f"table {table.name}: store headwater:// keeps neither sets nor global tables")
        self._count = 0
        self.partitions = Partitions(
            app.transport,
            table.changelog_topic_name,
            Path(app.conf.tabledir),
            self.table_name,
            sends=getattr(table, "store_sends", False),
            on_recovered=self._rebuild_expiry,
            is_by_key=table.use_partitioner,
            expires=lambda: bool(table._changelog_deleting),
        )
        app.transport.add_participant(self.partitions)

    async def on_start(self) -> None:
        """Have the changelog made; stop with a clear error when it is missing and may not be made."""
        topic = self.table.changelog_topic
        await topic.maybe_declare()
        questions = cast("Transport", self.app.transport).questions()
        for _ in range(LOOKS if self.app.conf.topic_allow_declare else 1):
            self._count = await questions.partitions(self.partitions.fence)
            if self._count:
                break
            await asyncio.sleep(
                PAUSE
            )  # another worker makes it in this moment: the broker knows it, and does not list it yet
        if self._count == 0:
            stop_process(
                f"the changelog {self.partitions.fence} of table {self.table_name} does not exist, and topic_allow_declare is "
                f"off: it may not be created here",
                hint="create it, compacted, with as many partitions as the topics that the table is used with",
            )

    def number(self, key: bytes, partition: int | None = None) -> int | None:
        """Return the partition of a key: the one named, by its hash where the table says so, the event's, or None."""
        if partition is not None:
            return partition
        if self.table.use_partitioner:
            return partition_of(key, self._count)
        event = current_event()
        return None if event is None else event.message.partition

    def _owned(self, number: int) -> TablePartition:
        try:
            return self.partitions.all[number]
        except KeyError:
            if self.table.use_partitioner:
                raise FatalError(
                    f"partition {number} of table {self.table_name} is on another worker: with use_partitioner keys decide, "
                    "and this event's partition has another number",
                    hint="run one worker; or send the events on by the table's key, with stream.group_by",
                ) from None
            raise FatalError(
                f"partition {number} of table {self.table_name} is not on this worker: its changelog "
                f"{self.partitions.fence} has {self._count} partitions, the topic that is processed another number",
                hint="app.Table(partitions=...) with the topic's number, and a new changelog",
            ) from None

    def read_many(self, keys: Sequence[bytes], partition: int | None = None) -> list[bytes | None]:
        """Return the values of encoded keys, None where there is none."""
        by_number: dict[int | None, list[bytes]] = {}
        for key in keys:
            by_number.setdefault(self.number(key, partition), []).append(key)
        found: dict[bytes, bytes | None] = {}
        for number, sought in by_number.items():
            for owned in [self._owned(number)] if number is not None else self.partitions.all.values():
                values = zip(sought, owned.get_many(sought), strict=True)
                found.update((key, value) for key, value in values if value is not None)
        return [found.get(key) for key in keys]

    def write_many(self, writes: Mapping[bytes, bytes | None], partition: int | None = None) -> None:
        """Set or delete (None) encoded keys, in the slice under way."""
        by_number: dict[int, Writes] = {}
        for key, value in writes.items():
            number = self.number(key, partition)
            if number is None:
                raise FatalError(
                    f"table {self.table_name} was written outside of an event: the partition is not known",
                    hint="write in an agent, or name the partition: put_many(..., partition=0)",
                )
            by_number.setdefault(number, {})[key] = value
        for number, some in by_number.items():
            self._owned(number).write(some)

    # -- Faust's interface --------------------------------------------------------------------------------------------

    def update(self, *args: Any, **kwargs: Any) -> None:
        """Set many keys; Faust's mapping would look for a dictionary in here."""
        for key, value in dict(*args, **kwargs).items():
            self[key] = value

    def _get(self, key: bytes) -> bytes | None:
        number = self.number(key)
        if number is not None:
            return self._owned(number).get(key)
        found = (partition.get(key) for partition in self.partitions.all.values())
        return next((value for value in found if value is not None), None)

    def _contains(self, key: bytes) -> bool:
        return self._get(key) is not None

    def _set(self, key: bytes, value: bytes | None) -> None:
        self.write_many({key: value})

    def _del(self, key: bytes) -> None:
        if self.number(key) is not None:
            self.write_many({key: None})
        else:  # Faust expires windows so, and a view may clear the table
            for partition in self.partitions.all.values():
                if partition.get(key) is not None:
                    partition.write({key: None})

    def _clear(self) -> None:
        for partition in self.partitions.all.values():
            partition.write(dict.fromkeys(partition))

    def _iteritems(self) -> Iterator[tuple[bytes, bytes]]:
        for partition in self.partitions.all.values():
            yield from partition.items()

    def _iterkeys(self) -> Iterator[bytes]:
        return (key for partition in self.partitions.all.values() for key in partition)

    def _itervalues(self) -> Iterator[bytes | None]:
        return (value for _, value in self._iteritems())

    def _size(self) -> int:
        return sum(1 for _ in self._iteritems())

    def _decode_key(self, key: bytes | None) -> Any:
        return self.table._to_key(super()._decode_key(key))  # a window's key is a tuple, in JSON a list

    def persisted_offset(self, tp: TP) -> int | None:
        """Return nothing: recovery is done here, not by Faust."""
        return None

    def set_persisted_offset(self, tp: TP, offset: int) -> None:
        """Take note of a changelog record that Faust has sent."""
        self.partitions.sent(tp.partition, offset)

    async def on_recovery_completed(self, active_tps: set[TP], standby_tps: set[TP]) -> None:
        """Wait for the recovery where someone waits for its end; elsewhere other partitions run meanwhile."""
        if self.table._recover_callbacks:
            await self.partitions.recovered()

    def _rebuild_expiry(self, number: int, partition: TablePartition) -> None:
        """Tell Faust which windows there are: it knows only those that were written since its start."""
        if self.table._should_expire_keys():
            self.table._partition_timestamps.pop(number, None)
            for key in partition:
                self.table._maybe_set_key_ttl(self._decode_key(key), number)

    def reset_state(self) -> None:
        """Remove the table's files: the changelog keeps what they held."""
        for path in self.partitions.path(0).parent.glob(f"{glob.escape(self.table_name)}-*.db"):
            shutil.rmtree(path)

    async def backup_partition(self, tp: Any, flush: bool = True, purge: bool = False, keep: int = 1) -> None:
        """Do nothing: the changelog is the backup."""

    def restore_backup(self, tp: Any, latest: bool = True, backup_id: int = 0) -> None:
        """Do nothing: the changelog is the backup."""
