"""The lake as Iceberg tables: one for each DynamoDB table, of its changes (append) or of its items as they are (upsert).

Exactly once: each commit to a table carries, as a property of the table, the offset up to which it holds the partition. Data
and offset change in one step of the catalog, and a commit fails when another came before it. So whoever commits looks first
where the table is, and leaves out what it has: a restart, a former owner or a zombie can add nothing twice.
"""

from __future__ import annotations

import logging
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, cast

import pyarrow as pa
from confluent_kafka import Message
from faust.types import TP
from pyiceberg.catalog import Catalog, load_catalog
from pyiceberg.exceptions import (
    CommitFailedException,
    ForbiddenError,
    NamespaceAlreadyExistsError,
    NoSuchTableError,
    TableAlreadyExistsError,
    UnauthorizedError,
)
from pyiceberg.expressions import And, EqualTo, In
from pyiceberg.table import Table

from pipeline.errors import FatalError, HeadwaterError, TransientError
from pipeline.sinks.base import Flushed, Rejected, Sink, Writer
from pipeline.sinks.lake import Rotation
from pipeline.sinks.layouts.columns import ColumnsLayout, Kind, TableSchema
from pipeline.sinks.layouts.envelope import EnvelopeLayout
from pipeline.sinks.rows import Reader, Rows

log = logging.getLogger(__name__)
ATTEMPTS = 10
"""Commits that are tried in a row when others commit to the same table."""
OFFSET = "headwater.offset/"
"""Property of a table: the offset up to which it holds a partition of a sink topic."""
DOC = "headwater:"
"""What the description of a column begins with that holds an attribute; then comes its kind."""
ITEM_COLUMNS = ["_key", "_event_id", "_changed_at", "_sequence", "_overflow", "_partition", "_offset"]
"""The columns of an item in upsert mode, before its own."""


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
    ) -> None:
        self.rotation, self.clock, self.memory = rotation, clock, memory
        self.columns = layout == "columns" or mode == "upsert"
        self.upserts = mode == "upsert"
        self._namespace, self._properties = namespace, dict(catalog)
        self._catalog: Catalog | None = None
        self._locks: dict[str, threading.Lock] = {}
        self._lock = threading.Lock()

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

    def open(self, tp: TP, start: int) -> Writer:
        """Take a partition over. What the tables have of it is seen when something is committed to them."""
        with explained(f"the catalog of {self._namespace}"):
            _ = self.catalog
        return IcebergWriter(self, tp, start)

    def commit(self, name: str, tp: TP, rows: Rows, end: int) -> int:
        """Bring rows of one table into it, with the offset; return how many it did not have yet."""
        lock = self._locks.setdefault(name, threading.Lock())
        with lock, explained(f"the Iceberg table {self._namespace}.{name}"):
            for _ in range(ATTEMPTS):
                table = self._load(name)
                there = int(table.properties.get(f"{OFFSET}{tp.topic}/{tp.partition}", 0)) if table is not None else 0
                fresh = rows.take([place for place, offset in enumerate(rows.offsets) if offset >= there])
                if not fresh:
                    return 0
                try:
                    self._commit(name, table, tp, fresh, end)
                except (CommitFailedException, TableAlreadyExistsError) as error:
                    log.info("%s.%s is committed to again: %s", self._namespace, name, error)
                    continue
                return len(fresh)
        raise TransientError(f"the Iceberg table {self._namespace}.{name}: others commit to it all the time")

    def _load(self, name: str) -> Table | None:
        try:
            return self.catalog.load_table((self._namespace, name))
        except NoSuchTableError:
            return None

    def _commit(self, name: str, table: Table | None, tp: TP, rows: Rows, end: int) -> None:
        keys: list[str] = []
        if self.upserts:
            newest = {key: place for place, key in enumerate(rows.keys)}
            keys = [key.decode() for key in newest]
            rows = rows.take([place for place in newest.values() if rows.kinds[place].op != "d"])
        data = self._data(name, table, tp.partition, rows)
        if table is None:
            table = self._create(name, data.schema)
        with table.transaction() as transaction:
            if set(data.schema.names) - set(table.schema().column_names):
                with transaction.update_schema() as update:
                    update.union_by_name(data.schema)
            if keys:
                # A key has one partition of the topic: the files of the others need not be read.
                with warnings.catch_warnings():  # that items are new is no cause for a word
                    warnings.filterwarnings("ignore", "Delete operation did not match any records")
                    transaction.delete(
                        And(EqualTo(term="_partition", value=tp.partition), In(term="_key", literals=keys))
                    )
            if data.num_rows:
                transaction.append(data)
            transaction.set_properties({f"{OFFSET}{tp.topic}/{tp.partition}": str(end)})

    def _data(self, name: str, table: Table | None, partition: int, rows: Rows) -> pa.Table:
        """Return rows as the table has them: its columns keep their types, new ones are added."""
        if not self.columns:
            return EnvelopeLayout().table(name, partition, rows)
        schema = {name: columns_of(table)}

        def grow(table_name: str, grown: TableSchema) -> TableSchema:
            schema[table_name] = schema[table_name].merge(grown)
            return schema[table_name]

        data = ColumnsLayout(schema.__getitem__, grow, climbing=False).table(name, partition, rows)
        if self.upserts:
            data = data.select([*ITEM_COLUMNS, *schema[name].columns])
        kinds = schema[name].columns
        fields = [
            one.with_metadata({"doc": f"{DOC}{kinds[one.name]}"}) if one.name in kinds else one for one in data.schema
        ]
        return data.cast(pa.schema(fields))

    def _create(self, name: str, schema: pa.Schema) -> Table:
        table = self.catalog.create_table((self._namespace, name), schema=schema)
        if self.upserts:
            with table.update_spec() as spec:
                spec.add_identity("_partition")
        return table


def look(catalog: Mapping[str, str], namespace: str) -> str:
    """Return how many tables of ours a catalog has; nothing is written. Raises HeadwaterError when it does not answer."""
    with explained(f"the catalog of {namespace}"):
        found = load_catalog("headwater", **catalog)
        there = found.list_tables(namespace) if (namespace,) in found.list_namespaces() else []
    return f"the catalog answers; {len(there)} tables in {namespace}"


class IcebergWriter(Writer):
    """One partition on its way into tables."""

    def __init__(self, sink: IcebergSink, tp: TP, start: int) -> None:
        self._sink, self._tp, self._reader = sink, tp, Reader()
        self._rows: dict[str, Rows] = {}
        self._size = 0
        self._begin = self._taken = start
        self._since = 0.0

    def add(self, records: Sequence[Message], end: int) -> Sequence[Rejected]:
        """Decode records as far as every layout needs it."""
        rejected: list[Rejected] = []
        if records and not self._rows:
            self._since = self._sink.clock()
        for rows, refused in self._reader.read(records):
            rejected += refused
            for name in {kind.table for kind in rows.kinds}:
                places = [place for place, kind in enumerate(rows.kinds) if kind.table == name]
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
        rows = sum(self._sink.commit(name, self._tp, found, self._taken) for name, found in sorted(self._rows.items()))
        self._rows, self._size, self._begin = {}, 0, self._taken
        return Flushed(self._taken, {"rows": rows} if rows else {})


def columns_of(table: Table | None) -> TableSchema:
    """Return the columns of a table that hold attributes, as their descriptions say."""
    fields: Iterable[Any] = table.schema().fields if table is not None else ()
    return TableSchema(
        {field.name: cast("Kind", field.doc.removeprefix(DOC)) for field in fields if (field.doc or "").startswith(DOC)}
    )


@contextmanager
def explained(what: str) -> Iterator[None]:
    """Turn what a catalog or its store raises into our errors: refusals are fatal, anything else may pass."""
    try:
        yield
    except HeadwaterError:
        raise
    except (UnauthorizedError, ForbiddenError) as error:
        raise FatalError(f"{what}: {first_line(error)}", hint="headwater check ([lake.catalog])") from error
    except Exception as error:
        raise TransientError(f"{what}: {type(error).__name__}: {first_line(error)}", hint="headwater check") from error


def first_line(error: Exception) -> str:
    """Return the first line of what an error says."""
    return (str(error).strip().splitlines() or [repr(error)])[0]
