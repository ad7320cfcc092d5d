"""The lake as Iceberg tables: one for each DynamoDB table, of its changes (append) or of its items as they are (upsert).

Exactly once: each commit to a table carries, as a property of the table, the offset up to which it holds the partition of a
log. Data and offset change in one step of the catalog, and a commit fails when another came before it. So whoever commits
looks first where the table is, and leaves out what it has: a restart, a former owner or a zombie can add nothing twice.

The property of a version before does not name the log. What it covers is left out only if the table has the very change at
that offset. It is kept beside ours, so that a worker of that version that wakes up late adds nothing.

A row that the table refuses for its content is found by halves, and becomes a dead letter. Its offset is kept as a property
until the group has passed it: no crash between catalog and Kafka loses it.
"""

from __future__ import annotations

import json
import logging
import re
import threading
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, cast

import pyarrow as pa
from botocore.exceptions import BotoCoreError, ClientError
from confluent_kafka import Message
from faust.types import TP
from pyiceberg.catalog import Catalog, load_catalog
from pyiceberg.exceptions import (
    BadRequestError,
    CommitFailedException,
    DynamoDbError,
    ForbiddenError,
    NamespaceAlreadyExistsError,
    NoSuchTableError,
    RESTError,
    SignError,
    TableAlreadyExistsError,
    UnauthorizedError,
    WaitingForLockException,
)
from pyiceberg.expressions import And, EqualTo, GreaterThanOrEqual, In, LessThanOrEqual
from pyiceberg.schema import make_compatible_name
from pyiceberg.table import Table, TableProperties

from pipeline.errors import FatalError, HeadwaterError, RejectedError, TransientError
from pipeline.sinks.base import NOTHING, Flushed, Rejected, Sink, Writer
from pipeline.sinks.lake import Rotation
from pipeline.sinks.layouts.columns import ColumnsLayout, Kind, TableSchema
from pipeline.sinks.layouts.envelope import EnvelopeLayout
from pipeline.sinks.moves import Moves
from pipeline.sinks.paths import mark_of
from pipeline.sinks.rows import Reader, Rows
from pipeline.transport.committed import Committed
from pipeline.transport.logs import UNKNOWN, Log

log = logging.getLogger(__name__)
MOST_REFUSED = 100
"""Rows in a row after which the fault is taken to be the table's, not theirs: nothing more becomes a dead letter."""
ATTEMPTS = 10
"""Commits that are tried in a row when others commit to the same table."""
OFFSET = "headwater.offset/"
"""Property of a table: the offset up to which it holds a partition of a sink topic: `<topic>/<mark of the log>/<partition>`.

A version before had `<topic>/<partition>`; so have brokers that give no IDs."""
REFUSED = "headwater.refused/"
"""Property of a table: offsets before that one that it refuses, as long as the group may come to them again."""
TABLE = re.compile(r"(?!\.+$)[A-Za-z0-9_.-]{1,255}")
"""Names of DynamoDB's tables, which a catalog takes as they are."""
NAME_BYTES = 255
RESERVED = {
    "_file",
    "_pos",
    "_deleted",
    "_spec_id",
    "_partition",
    "_row_id",
    "_last_updated_sequence_number",
    "_change_type",
    "_change_ordinal",
    "_commit_snapshot_id",
}
"""What Iceberg's readers add to every table."""
PASSING = (
    OSError,  # requests' and pyarrow's among them
    json.JSONDecodeError,  # what is no answer of a catalog
    BotoCoreError,
    ClientError,
    DynamoDbError,
    RESTError,
    SignError,
    WaitingForLockException,
    CommitFailedException,
    TableAlreadyExistsError,
    MemoryError,
)
"""What says nothing of the rows. Beside it: what the database of an SQL catalog raises."""
DOC = "headwater:"
"""What the description of a column begins with that holds an attribute; then comes its kind."""
ITEM_COLUMNS = ["_key", "_event_id", "_changed_at", "_sequence", "_overflow", "_topic_partition", "_offset"]
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
        with explained(f"the catalog of {self._namespace}"):
            _ = self.catalog
        return IcebergWriter(self, Part(tp, start, log))

    def commit(self, name: str, part: Part, rows: Rows, end: int) -> Stored:
        """Bring rows of one table into it, with the offset; return how many it did not have yet, and what it refuses."""
        what = f"the Iceberg table {self._namespace}.{name}"
        with self._locks.setdefault(name, threading.Lock()), explained(what):
            return self._bring(name, part, rows, end)

    def _bring(self, name: str, part: Part, rows: Rows, end: int) -> Stored:
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

    def _refuse(self, name: str, part: Part, row: Rows, end: int, error: Exception) -> Stored:
        """Leave a row out, if the table takes that: a table, or a catalog, that takes nothing is not the row's fault."""
        self._in_a_row[name] = self._in_a_row.get(name, 0) + 1
        if self._in_a_row[name] > MOST_REFUSED:
            raise TransientError(
                f"the Iceberg table {self._namespace}.{name} has refused {MOST_REFUSED} rows in a row: it must be the table, "
                f"not the rows: {type(error).__name__}: {first_line(error)}",
                hint="headwater status; headwater dlq list",
            )
        why = RejectedError(
            f"the Iceberg table {self._namespace}.{name} refuses it: {type(error).__name__}: {first_line(error)}"
        )
        log.warning("%s[%d], offset %d: %s", *part.tp, row.offsets[0], why)
        part.refused.setdefault(name, set()).add(row.offsets[0])
        self._try(name, part, row.take([]), end)
        return Stored(0, (Rejected(row.records[0], why),))

    def _try(self, name: str, part: Part, rows: Rows, end: int) -> Stored:
        for _ in range(ATTEMPTS):
            table = self._load(name)
            if table is None and not rows:  # nothing to leave out in a table that is not there yet
                return Stored()
            held = part.held(table)
            fresh, again = self._fresh(name, table, part, held, rows)
            if not fresh and (rows or end <= held.there):
                return Stored(0, again)
            try:
                self._commit(name, table, part.tp, fresh, part.properties(name, held, end))
            except (CommitFailedException, TableAlreadyExistsError) as error:
                log.info("%s.%s is committed to again: %s", self._namespace, name, error)
                continue
            return Stored(len(fresh), again)
        raise TransientError(f"the Iceberg table {self._namespace}.{name}: others commit to it all the time")

    def _fresh(
        self, name: str, table: Table | None, part: Part, held: Held, rows: Rows
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
        names = ["_topic_partition", "_offset", "_event_id"] if self.columns else ["partition", "offset", "event_id"]
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
        if not rows and table is not None:
            with once(table).transaction() as transaction:
                _set(transaction, properties)
            return
        keys: list[str] = []
        if self.upserts:
            newest = {key: place for place, key in enumerate(rows.keys)}
            keys = [key.decode() for key in newest]
            rows = rows.take([place for place in newest.values() if rows.kinds[place].op != "d"])
        data = self._data(name, table, tp.partition, rows)
        if table is None:
            table = self._create(name, data.schema)
        with once(table).transaction() as transaction:
            if set(data.schema.names) - set(table.schema().column_names):
                with transaction.update_schema() as update:
                    update.union_by_name(data.schema)
            if keys:
                # A key has one partition of the topic: the files of the others need not be read.
                with warnings.catch_warnings():  # that items are new is no cause for a word
                    warnings.filterwarnings("ignore", "Delete operation did not match any records")
                    transaction.delete(
                        And(EqualTo(term="_topic_partition", value=tp.partition), In(term="_key", literals=keys))
                    )
            if data.num_rows:
                transaction.append(data)
            _set(transaction, properties)

    def _data(self, name: str, table: Table | None, partition: int, rows: Rows) -> pa.Table:
        """Return rows as the table has them: its columns keep their types, new ones are added."""
        if not self.columns:
            return EnvelopeLayout().table(name, partition, rows)
        schema = {name: columns_of(table)}

        def grow(table_name: str, grown: TableSchema) -> TableSchema:
            schema[table_name] = schema[table_name].merge(grown)
            return schema[table_name]

        names = table.schema().column_names if table is not None else ()
        taken = [*names, *(name.rpartition(".")[0] for name in names)]
        layout = ColumnsLayout(schema.__getitem__, grow, spelling=spelling, taken=taken)
        data = layout.table(name, partition, rows)
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
                spec.add_identity("_topic_partition")
        return table


def look(catalog: Mapping[str, str], namespace: str) -> str:
    """Return how many tables of ours a catalog has; nothing is written. Raises HeadwaterError when it does not answer."""
    with explained(f"the catalog of {namespace}"):
        found = load_catalog("headwater", **catalog)
        there = found.list_tables(namespace) if (namespace,) in found.list_namespaces() else []
    return f"the catalog answers; {len(there)} tables in {namespace}"


class Held(NamedTuple):
    """What a table says of a partition."""

    there: int
    """The offset up to which it may hold it."""
    is_sure: bool
    """Whether that is of our log for certain."""
    refused: frozenset[int]
    former: bool
    """Whether it has the property of a version before."""


class Stored(NamedTuple):
    """What a commit has done."""

    rows: int = 0
    rejected: tuple[Rejected, ...] = ()

    def __add__(self, other: object) -> Stored:
        if not isinstance(other, Stored):
            return NotImplemented
        return Stored(self.rows + other.rows, (*self.rejected, *other.rejected))


@dataclass(slots=True)
class Part:
    """A partition of a log, on its way into tables."""

    tp: TP
    begin: int
    """The group's offset: what lies before it does not come again."""
    source: Log
    refused: dict[str, set[int]] = field(default_factory=dict)
    """Offsets that a table has refused, by its name."""

    @property
    def _former(self) -> str:
        return f"{self.tp.topic}/{self.tp.partition}"

    @property
    def _own(self) -> str:
        mark = mark_of(self.source)
        return f"{self.tp.topic}/{mark}/{self.tp.partition}" if mark else self._former

    def held(self, table: Table | None) -> Held:
        """Return what a table says of the partition."""
        found: Mapping[str, str] = table.properties if table is not None else {}
        own, former = found.get(f"{OFFSET}{self._own}"), found.get(f"{OFFSET}{self._former}")
        refused = {int(word) for word in found.get(f"{REFUSED}{self._own}", "").split(",") if word.isdecimal()}
        is_former = former is not None and self._own != self._former
        is_sure = own is not None and bool(self.source.topic_id)
        return Held(int(own or former or 0), is_sure, frozenset(refused), is_former)

    def properties(self, name: str, held: Held, end: int) -> dict[str, str | None]:
        """Return the properties of a commit up to an offset."""
        refused = self.refused.get(name, set()) | held.refused
        words = ",".join(str(offset) for offset in sorted(refused) if offset >= self.begin)
        found: dict[str, str | None] = {f"{OFFSET}{self._own}": str(end)}
        if words or held.refused:
            found[f"{REFUSED}{self._own}"] = words or None
        if held.former:
            found[f"{OFFSET}{self._former}"] = str(end)
        return found


class IcebergWriter(Writer):
    """One partition on its way into tables."""

    def __init__(self, sink: IcebergSink, part: Part) -> None:
        self._sink, self._part, self._reader = sink, part, Reader()
        self._rows: dict[str, Rows] = {}
        self._size = 0
        self._begin = self._taken = part.begin
        self._since = 0.0
        self._done = Stored()
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
                    why = RejectedError(f"a catalog takes no table of the name {name[:300]!r}")
                    rejected += [Rejected(rows.records[place], why) for place in places]
                    continue
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
        done, self._done = self._done, Stored()
        self._size, self._begin = 0, self._taken
        self._part.begin, self._part.refused = self._taken, {}
        return Flushed(self._taken, {"rows": done.rows} if done.rows else {}, done.rejected)


def columns_of(table: Table | None) -> TableSchema:
    """Return the columns of a table that hold attributes, as their descriptions say."""
    fields: Iterable[Any] = table.schema().fields if table is not None else ()
    return TableSchema(
        {field.name: cast("Kind", field.doc.removeprefix(DOC)) for field in fields if (field.doc or "").startswith(DOC)}
    )


def spelling(name: str) -> str:
    """Return what must differ between the names of columns: as files spell it, in lower case; '' where there can be none."""
    if not name or "." in name or not name.isprintable() or len(name.encode()) > NAME_BYTES:
        return ""
    plain = str(make_compatible_name(name)).lower()
    return "" if plain in RESERVED else plain


def once(table: Table) -> Table:
    """Return a table whose commits fail when another came before them: pyiceberg would add the rows to that one's."""
    properties = {**table.metadata.properties, TableProperties.COMMIT_NUM_RETRIES: "0"}
    table.metadata = table.metadata.model_copy(update={"properties": properties})
    return table


def _set(transaction: Any, properties: Mapping[str, str | None]) -> None:
    transaction.set_properties({name: value for name, value in properties.items() if value is not None})
    if gone := [name for name, value in properties.items() if value is None]:
        transaction.remove_properties(*gone)


def is_passing(error: Exception) -> bool:
    """Say whether an error says nothing of the rows: another try may help."""
    if isinstance(error, BadRequestError):
        return False
    return isinstance(error, PASSING) or type(error).__module__.startswith("sqlalchemy.")


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
