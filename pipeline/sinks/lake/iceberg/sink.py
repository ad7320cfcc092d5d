"""The lake as Iceberg tables: one for each DynamoDB table, of its changes (append) or of its items as they are (upsert).

Exactly once: each commit to a table carries, as a property of the table, the offset up to which it holds the partition of a
log. Data and offset change in one step of the catalog, and a commit fails when another came before it. So whoever commits
looks first where the table is, and leaves out what it has: a restart, a former owner or a zombie can add nothing twice.

The property of an earlier version does not name the log. What it covers is left out only if the table has the very change at
that offset. It is kept beside ours, so that a worker of that version that wakes up late adds nothing.

Items are kept by the age of their changes: items.py says how.

A row that the table refuses for its content is found by halves, and becomes a dead letter. Its offset is kept as a property
until the group has passed it: no crash between catalog and Kafka loses it.
"""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Literal, cast

import pyarrow as pa
import pyarrow.compute as pc
from confluent_kafka import Message
from faust.types import TP
from pyiceberg.catalog import Catalog, load_catalog
from pyiceberg.exceptions import NamespaceAlreadyExistsError, NoSuchTableError
from pyiceberg.expressions import And, EqualTo, GreaterThanOrEqual, LessThanOrEqual
from pyiceberg.manifest import DataFile
from pyiceberg.table import FileScanTask, Table, Transaction

from pipeline.errors import FatalError, HeadwaterError, RejectedError, TransientError
from pipeline.sinks.base import NOTHING, Flushed, Rejected, Sink, Writer
from pipeline.sinks.lake.iceberg.columns import DOC, VERSION, columns_of, spelling
from pipeline.sinks.lake.iceberg.commit import (
    PARTITION,
    begin_table,
    delete,
    grow_table,
    iceberg_partition,
    once,
    read_file,
    replace,
    set_properties,
    write_files,
)
from pipeline.sinks.lake.iceberg.errors import OVERTAKEN, explained_error, first_line, is_passing
from pipeline.sinks.lake.iceberg.items import COMMIT_ATTEMPTS, TOMBSTONES, Tombstones, is_one_of, look_for, newest_of
from pipeline.sinks.lake.iceberg.parts import CommitOutcome, HeldUpTo, LogPart, is_of_one_log
from pipeline.sinks.lake.layouts.columns import META, ColumnsLayout, TableSchema
from pipeline.sinks.lake.layouts.envelope import EnvelopeLayout
from pipeline.sinks.lake.sink import Rotation
from pipeline.sinks.moves import Moves
from pipeline.sinks.rows import RowReader, Rows
from pipeline.sinks.versions import version
from pipeline.transport.committed import Committed
from pipeline.transport.logs import UNKNOWN, Log

log = logging.getLogger(__name__)
REFUSED_ROWS_IN_A_ROW = 100
"""Rows in a row after which the fault is taken to be the table's, not theirs: nothing more becomes a dead letter."""
TABLE = re.compile(r"(?!\.+$)[A-Za-z0-9_.-]{1,255}")
"""Names of DynamoDB's tables, which a catalog takes as they are."""
ITEM_COLUMNS = [
    "_key",
    "_event_id",
    "_changed_at",
    "_sequence",
    "_overflow",
    "_topic",
    PARTITION,
    "_offset",
]
"""The columns of an item in upsert mode, before its version and its own, as far as the layout makes them."""


class IcebergSink(Sink):
    """Iceberg tables in a catalog."""

    name = "lake"

    def __init__(
        self,
        catalog: Mapping[str, str],
        namespace: str,
        rotation: Rotation,
        *,
        layout: Literal["envelope", "columns"],
        mode: Literal["append", "upsert"],
        clock: Callable[[], float],
        memory: int = Sink.memory,
        sinks: Collection[str] = (),
    ) -> None:
        """`sinks`: those that it takes."""
        self.moves = Moves(sinks)
        self.rotation, self.clock, self.memory = rotation, clock, memory
        self.columns = layout == "columns" or mode == "upsert"
        self.upserts = mode == "upsert"
        self._namespace, self._properties = namespace, dict(catalog)
        self._catalog: Catalog | None = None
        self._locks: dict[str, threading.Lock] = {}
        self._lock = threading.Lock()
        self._in_a_row: dict[str, int] = {}
        """By table, the rows that it has refused since it took one."""

    @property
    def catalog(self) -> Catalog:
        """The catalog, with the namespace in it."""
        with self._lock:
            if self._catalog is None:
                catalog = load_catalog("headwater", **self._properties)
                try:
                    catalog.create_namespace_if_not_exists(self._namespace)
                except NamespaceAlreadyExistsError:  # another worker was faster
                    log.debug("the namespace %s is there", self._namespace)
                self._catalog = catalog
        return self._catalog

    def open(self, tp: TP, start: int, log: Log = UNKNOWN, committed: Committed = NOTHING) -> Writer:
        """Take a partition over. What the tables have of it is seen when something is committed to them."""
        with explained_error(f"the catalog of {self._namespace}"):
            _ = self.catalog
        return IcebergWriter(self, LogPart(tp, start, log))

    def commit(self, name: str, part: LogPart, rows: Rows, end: int) -> CommitOutcome:
        """Bring rows of one table into it, with the offset; return how many it did not have yet, and what it refuses."""
        what = f"the Iceberg table {self._namespace}.{name}"
        with self._locks.setdefault(name, threading.Lock()), explained_error(what):
            return self._bring(name, part, rows, end)

    def _bring(self, name: str, part: LogPart, rows: Rows, end: int) -> CommitOutcome:
        """Commit rows; if their content is at fault, by halves, down to the row."""
        try:
            stored = self._try(name, part, rows, end)
        except Exception as error:
            if isinstance(error, HeadwaterError) or is_passing(error):
                raise
            if len(rows) > 1:
                half, places = len(rows) // 2, range(len(rows))
                first = self._bring(name, part, rows.take(places[:half]), rows.offsets[half])
                return first + self._bring(name, part, rows.take(places[half:]), end)
            return self._refuse(name, part, rows, end, error)
        if rows:
            self._in_a_row.pop(name, None)
        return stored

    def _refuse(self, name: str, part: LogPart, row: Rows, end: int, error: Exception) -> CommitOutcome:
        """Leave a row out, if the table takes that: a table, or a catalog, that takes nothing is not the row's fault."""
        self._in_a_row[name] = self._in_a_row.get(name, 0) + 1
        if self._in_a_row[name] > REFUSED_ROWS_IN_A_ROW:
            raise TransientError(
                f"the Iceberg table {self._namespace}.{name} has refused {REFUSED_ROWS_IN_A_ROW} rows in a row: "
                f"it must be the table, not the rows: {type(error).__name__}: {first_line(error)}",
                hint="headwater status; headwater dlq list",
            )
        why = RejectedError(
            f"the Iceberg table {self._namespace}.{name} refuses it: {type(error).__name__}: {first_line(error)}"
        )
        log.warning("%s[%d], offset %d: %s", *part.tp, row.offsets[0], why)
        part.refused.setdefault(name, set()).add(row.offsets[0])
        self._try(name, part, row.take([]), end)
        return CommitOutcome(0, (Rejected(row.records[0], why),))

    def _try(self, name: str, part: LogPart, rows: Rows, end: int) -> CommitOutcome:
        for _ in range(COMMIT_ATTEMPTS):
            table = self._load(name)
            if table is None and not rows:  # nothing to leave out in a table that is not there yet
                return CommitOutcome()
            if table is not None and TOMBSTONES in table.properties:
                raise FatalError(
                    f"the Iceberg table {self._namespace}.{name} holds the deleted items of another lake",
                    hint=f"give one of the lakes another namespace: {self._namespace} belongs to the other",
                )
            held = part.held(table)
            fresh, again = self._fresh(name, table, part, held, rows)
            if not fresh and (rows or end <= held.there):
                return CommitOutcome(0, again)
            try:
                self._commit(name, table, part.tp, fresh, part.properties(name, held, end))
            except OVERTAKEN as error:
                log.info("%s.%s is committed to again: %s", self._namespace, name, error)
                continue
            return CommitOutcome(len(fresh), again)
        raise TransientError(f"the Iceberg table {self._namespace}.{name}: others keep committing to it")

    def _fresh(
        self, name: str, table: Table | None, part: LogPart, held: HeldUpTo, rows: Rows
    ) -> tuple[Rows, tuple[Rejected, ...]]:
        """Return the rows that a table does not have, and those that it has refused before."""
        places = range(len(rows))
        before = [place for place in places if rows.offsets[place] < held.there]
        if not before:
            return rows, ()
        if held.is_sure:
            known = set(before)
        else:
            there = self._changes(cast("Table", table), part.tp.partition, [rows.offsets[place] for place in before])
            known = {place for place in before if (rows.offsets[place], rows.changes[place].event_id) in there}
            if known and self.upserts:  # the others are older states of items, or items that are gone
                known = set(before)
            if not known:
                log.info("%s.%s has another log of %s[%d]", self._namespace, name, *part.tp)
        again = [
            Rejected(rows.records[place], RejectedError(f"{self._namespace}.{name} has refused it before"))
            for place in before
            if rows.offsets[place] in held.refused
        ]
        return rows.take([place for place in places if place not in known]), tuple(again)

    def _changes(self, table: Table, partition: int, offsets: Sequence[int]) -> set[tuple[int, str]]:
        """Return the changes that a table has of a partition, between the first and the last of these offsets."""
        names = ["partition", "offset", "event_id"]
        if self.columns:
            names = [iceberg_partition(table), "_offset", "_event_id"]
        if not set(names) <= set(table.schema().column_names):
            return set()
        in_it = EqualTo(term=names[0], value=partition)
        between = And(
            GreaterThanOrEqual(term=names[1], value=offsets[0]), LessThanOrEqual(term=names[1], value=offsets[-1])
        )
        found = table.scan(row_filter=And(in_it, between), selected_fields=tuple(names)).to_arrow()
        return set(zip(found.column(names[1]).to_pylist(), found.column(names[2]).to_pylist(), strict=True))

    def _load(self, name: str) -> Table | None:
        try:
            return self.catalog.load_table((self._namespace, name))
        except NoSuchTableError:
            return None

    def _commit(self, name: str, table: Table | None, tp: TP, rows: Rows, properties: Mapping[str, str | None]) -> None:
        """Commit rows and properties in one step; None takes a property away."""
        if self.upserts and rows:
            self._upsert(name, table, tp, rows, properties)
            return
        data = self._data(name, table, tp.partition, rows) if rows or table is None else None
        with self._begin(name, table, data) as transaction:
            if data is not None and data.num_rows:
                transaction.append(data)
            set_properties(transaction, properties)

    def _upsert(self, name: str, table: Table | None, tp: TP, rows: Rows, properties: Mapping[str, str | None]) -> None:
        """Commit what is newer than what the table has; see iceberg_items.py for the order of the steps."""
        newest = newest_of(rows)
        known = {**(table.properties if table is not None else {}), **properties}
        partition = tp.partition if is_of_one_log(known) else None
        there = look_for(table, newest, partition)
        tombstones = Tombstones(self.catalog, self._namespace, name)
        gone = tombstones.versions(
            {key: one.version for key, one in newest.items() if key not in there.versions}, partition
        )
        fresh = {
            key: one
            for key, one in newest.items()
            if one.version >= max(there.versions.get(key, ""), gone.get(key, ""))
        }
        deleted = {key: one for key, one in fresh.items() if rows.kinds[one.place].op == "d"}
        if unknown := {key: one for key, one in deleted.items() if gone.get(key, "") < one.version}:
            versions = {key: one.version for key, one in unknown.items()}
            tombstones.add(tp.partition, versions, [rows.times[one.place] for one in unknown.values()])
        kept = [one for key, one in fresh.items() if key not in deleted]
        data = self._data(
            name, table, tp.partition, rows.take([row.place for row in kept]), [row.version for row in kept]
        )
        replaced = pa.array([key for key in fresh if key in there.versions], pa.string())
        if table is None or not len(replaced):
            with self._begin(name, table, data) as transaction:
                # A deletion makes a snapshot even where it finds no row, and where its tombstone was there (of a worker that
                # was killed before this): it overtakes who has read neither.
                if data.num_rows or deleted:
                    transaction.append(data)
                set_properties(transaction, properties)
            return
        added = list[DataFile]()
        try:
            with self._begin(name, table, data) as transaction:
                removed = list[DataFile]()
                added += write_files(
                    transaction, table, _rest(transaction, table, there.files, replaced, data, removed)
                )
                replace(transaction, table, removed, added)
                set_properties(transaction, properties)
        except OVERTAKEN:  # they belong to nothing
            delete(table, [file.file_path for file in added])
            raise

    def _begin(self, name: str, table: Table | None, data: pa.Table | None) -> Transaction:
        """Return a transaction on a table with the columns of the data, or one that makes it."""
        if table is None:
            by = PARTITION if self.upserts else None
            return begin_table(self.catalog, (self._namespace, name), cast("pa.Table", data).schema, by, {})
        transaction = once(table).transaction()
        if data is not None:
            grow_table(transaction, data.schema)
        return transaction

    def _data(
        self, name: str, table: Table | None, partition: int, rows: Rows, versions: Sequence[str] = ()
    ) -> pa.Table:
        """Return rows as the table has them: its columns keep their types, new ones are added."""
        if not self.columns:
            return EnvelopeLayout().table(name, partition, rows)
        schema = {name: columns_of(table)}

        def grow_to(table_name: str, grown: TableSchema) -> TableSchema:
            schema[table_name] = schema[table_name].merge(grown)
            return schema[table_name]

        names = table.schema().column_names if table is not None else ()
        taken = [*names, *(name.rpartition(".")[0] for name in names), VERSION]
        layout = ColumnsLayout(schema.__getitem__, grow_to, spelling=spelling, taken=taken)
        data = layout.table(name, partition, rows)
        ours = [one for one in (ITEM_COLUMNS if self.upserts else META.names) if one in META.names]
        kinds = schema[name].columns
        places = [META.names.index(our) for our in ours if our not in columns_of(table).columns]
        own = range(len(META), data.num_columns)
        data = data.select([*places, *own])
        if self.upserts and VERSION not in kinds:
            field = pa.field(VERSION, pa.string(), nullable=False)
            data = data.add_column(len(data.schema.names) - len(own), field, [pa.array(versions, pa.string())])
        fields = [_as_in(table, one, kinds.get(one.name)) for one in data.schema]
        return data.rename_columns([one.name for one in fields]).cast(pa.schema(fields))


def look_at_table(catalog: Mapping[str, str], namespace: str) -> str:
    """Return how many tables of ours a catalog has; nothing is written. Raises HeadwaterError when it does not answer."""
    with explained_error(f"the catalog of {namespace}"):
        found = load_catalog("headwater", **catalog)
        there = found.list_tables(namespace) if (namespace,) in found.list_namespaces() else []
    return f"the catalog answers; {len(there)} tables in {namespace}"


class IcebergWriter(Writer):
    """One partition on its way into tables."""

    def __init__(self, sink: IcebergSink, part: LogPart) -> None:
        self._sink, self._part, self._reader = sink, part, RowReader()
        self._rows: dict[str, Rows] = {}
        self._size = 0
        self._begin = self._taken = part.begin
        self._since = 0.0
        self._done = CommitOutcome()
        """What tables have of the flush under way."""

    def add(self, records: Sequence[Message], end: int) -> Sequence[Rejected]:
        """Decode records as far as every layout needs it."""
        rejected: list[Rejected] = []
        if records and not self._rows:
            self._since = self._sink.clock()
        for read, refused in self._reader.read(records):
            rejected += refused
            rows = self._sink.moves.without(read)
            for name in {kind.table for kind in rows.kinds}:
                places = [place for place, kind in enumerate(rows.kinds) if kind.table == name]
                if TABLE.fullmatch(name) is None:
                    why = RejectedError(f"a catalog does not accept the table name {name[:300]!r}")
                    rejected += [Rejected(rows.records[place], why) for place in places]
                    continue
                if self._sink.upserts:
                    places, without = _with_versions(rows, places)
                    rejected += without
                self._rows.setdefault(name, Rows()).extend(rows.take(places))
            self._size += rows.size
        self._taken = end
        return rejected

    @property
    def size(self) -> int:
        """Bytes that are held in memory, roughly."""
        return self._size

    def is_due(self, now: float) -> bool:
        """Say whether there is enough for a commit, or it has waited long enough."""
        if not self._rows:
            return self._taken > self._begin
        rotation = self._sink.rotation
        return (
            now - self._since >= rotation.max_age
            or sum(map(len, self._rows.values())) >= rotation.max_rows
            or self._size // 8 >= rotation.max_size
        )

    def flush(self) -> Flushed:
        """Commit to each table that has rows. A table that has them already is left alone."""
        for name, found in sorted(self._rows.items()):
            self._done += self._sink.commit(name, self._part, found, self._taken)
            del self._rows[name]
        done, self._done = self._done, CommitOutcome()
        self._size, self._begin = 0, self._taken
        self._part.begin, self._part.refused = self._taken, {}
        return Flushed(self._taken, {"rows": done.rows} if done.rows else {}, done.rejected)


def _with_versions(rows: Rows, places: Sequence[int]) -> tuple[list[int], list[Rejected]]:
    """Return the places of changes that have an age, and the others as rejected."""
    kept, rejected = list[int](), list[Rejected]()
    for place in places:
        try:
            version(rows.changes[place], rows.offsets[place])
        except ValueError as error:
            rejected.append(Rejected(rows.records[place], RejectedError(str(error))))
        else:
            kept.append(place)
    return kept, rejected


def _as_in(table: Table | None, field: pa.Field, kind: str | None) -> pa.Field:
    """Return a column as a table has it, or takes it; `kind`: of the attribute that it holds."""
    if kind is not None:
        return field.with_metadata({"doc": f"{DOC}{kind}"})
    if field.name == PARTITION:
        return field.with_name(iceberg_partition(table))
    # What is there already has rows without it.
    is_new = table is not None and field.name not in table.schema().column_names
    return field.with_nullable(True) if is_new else field


def _rest(
    transaction: Transaction,
    table: Table,
    files: Iterable[FileScanTask],
    replaced: pa.Array,
    data: pa.Table,
    removed: list[DataFile],
) -> Iterator[pa.Table]:
    """Yield new rows, and of each file that has some of the replaced items its other rows; note these files as removed."""
    yield data
    for task in files:
        found = read_file(transaction, table, task)
        others = found.filter(pc.invert(is_one_of(found, replaced)))
        if others.num_rows < found.num_rows:
            removed.append(task.file)
            yield others
