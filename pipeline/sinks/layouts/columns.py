"""The layout `columns`: the item's attributes as typed columns, one schema a table, which only grows.

The rules: an attribute gets the column of the type that is seen first. Numbers climb int64 -> decimal128(38, 9) ->
decimal256(76, 38) -> string, and never come down. What does not fit its column otherwise (another type, NULL, a name that
is taken) stands in `_overflow`, in DynamoDB's typed JSON: an item is always its columns and its overflow together.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal, localcontext
from operator import attrgetter
from typing import Any, Literal, cast

import msgspec
import pyarrow as pa

from models.change import NONE
from pipeline.sinks.layouts import Row
from pipeline.sinks.layouts.envelope import raw, texts

Kind = Literal[
    "string", "int", "decimal", "wide", "number", "bool", "binary", "strings", "numbers", "binaries", "map", "list"
]
"""What a column holds. int, decimal, wide, number (as text) are the steps of numbers."""
NUMBERS: tuple[Kind, ...] = ("int", "decimal", "wide", "number")
TAGS: dict[Kind, str] = {
    "string": "S",
    **dict.fromkeys(NUMBERS, "N"),
    "bool": "BOOL",
    "binary": "B",
    "strings": "SS",
    "numbers": "NS",
    "binaries": "BS",
    "map": "M",
    "list": "L",
}
FIRST: dict[str, Kind] = {
    "S": "string",
    "N": "int",
    "BOOL": "bool",
    "B": "binary",
    "SS": "strings",
    "NS": "numbers",
    "BS": "binaries",
    "M": "map",
    "L": "list",
}
"""By DynamoDB's type, the column that an attribute begins with. NULL has none."""
TYPES: dict[Kind, pa.DataType] = {
    "string": pa.string(),
    "int": pa.int64(),
    "decimal": pa.decimal128(38, 9),
    "wide": pa.decimal256(76, 38),
    "number": pa.string(),
    "bool": pa.bool_(),
    "binary": pa.binary(),
    "strings": pa.list_(pa.string()),
    "numbers": pa.list_(pa.string()),  # exact, as DynamoDB writes them
    "binaries": pa.list_(pa.binary()),
    "map": pa.string(),  # typed JSON
    "list": pa.string(),
}
VALUES: dict[str, Any] = {
    "S": str,
    "N": str,
    "BOOL": bool,
    "B": str,
    "SS": list[str],
    "NS": list[str],
    "BS": list[str],
    "M": msgspec.Raw,
    "L": msgspec.Raw,
}
META = pa.schema(
    [
        pa.field("_event_id", pa.string(), nullable=False),
        pa.field("_op", pa.string(), nullable=False),
        pa.field("_source", pa.string(), nullable=False),
        pa.field("_changed_at", pa.timestamp("us", tz="UTC"), nullable=False),
        pa.field("_sequence", pa.string(), nullable=False),
        pa.field("_key", pa.string(), nullable=False),
        pa.field("_before", pa.string()),
        pa.field("_enriched", pa.string()),
        pa.field("_overflow", pa.string()),
        pa.field("_partition", pa.int32(), nullable=False),
        pa.field("_offset", pa.int64(), nullable=False),
    ]
)
"""The columns before the item's own. Of a deletion the item's columns are those of its key."""
DICTIONARY = ["_op", "_source", "_partition"]
LONG: set[Kind] = {"map", "list", "binary", "binaries", "strings", "numbers"}
"""Columns without bounds in the statistics: nobody asks for a range of them."""
NAME = re.compile(r'[^"\\\x00-\x1f]+')
"""Names that can be columns, as nearly all are."""
MOST = 1_000
"""Columns that a table gets at most: names that are data must not become columns without end."""
Item = dict[str, msgspec.Raw]
_items = msgspec.json.Decoder(Item).decode
NULL, NOTHING = msgspec.Raw(b'{"NULL":true}'), msgspec.Raw(b"{}")
_encode = msgspec.json.encode


@dataclass(frozen=True)
class TableSchema:
    """The columns of a table, by attribute. Schemas of two workers are merged to one that holds what both hold."""

    columns: Mapping[str, Kind] = field(default_factory=dict)

    def merge(self, other: TableSchema) -> TableSchema:
        """Return the schema of both: the same whoever merges, in whatever order."""
        merged = dict(self.columns)
        for name, kind in other.columns.items():
            merged[name] = kind if name not in merged else join(merged[name], kind)
        return TableSchema(merged) if merged != self.columns else self


def join(one: Kind, other: Kind) -> Kind:
    """Return the column of an attribute that two workers have given different columns."""
    if one in NUMBERS and other in NUMBERS:
        return NUMBERS[max(NUMBERS.index(one), NUMBERS.index(other))]
    # One of the two, for all alike; what does not fit it goes to the overflow from then on.
    return min(one, other, key=lambda kind: (kind not in NUMBERS, kind))


def step_of(text: str) -> Kind:
    """Return the lowest step on which a number stands without loss."""
    with localcontext() as context:
        context.prec = 200
        number = Decimal(text)
        if not number.is_finite():
            return "number"
        if number == number.to_integral_value() and -(1 << 63) <= number < 1 << 63:
            return "int"
        stripped = number.normalize().as_tuple()
        scale = max(0, -cast("int", stripped.exponent))
        whole = max(0, len(stripped.digits) + cast("int", stripped.exponent))
    if scale <= 9 and whole <= 29:
        return "decimal"
    return "wide" if scale <= 38 and whole <= 38 else "number"


class _Decoder:
    """Decodes items of one schema at once: a struct with one member a column, unknown and odd ones refused."""

    def __init__(self, schema: TableSchema, without: Iterable[str]) -> None:
        """`without`: attributes that have been seen and have no column."""
        self.schema, self.without = schema, tuple(name for name in without if name not in schema.columns)
        members: list[tuple[str, Any, Any]] = []
        rename = {}
        for number, (name, kind) in enumerate(schema.columns.items()):
            members.append((f"a{number}", _TAGGED[TAGS[kind]] | None, None))
            rename[f"a{number}"] = name
        for number, name in enumerate(self.without):
            members.append((f"o{number}", msgspec.Raw, NONE))
            rename[f"o{number}"] = name
        self.type = msgspec.defstruct(
            "Item", cast("Any", members), rename=rename, forbid_unknown_fields=True, gc=False, frozen=True
        )
        self.decode = msgspec.json.Decoder(self.type).decode
        self.members = [attrgetter(f"a{number}") for number in range(len(schema.columns))]
        self.others = [attrgetter(f"o{number}") for number in range(len(self.without))]


def _tagged_struct(tag: str) -> Any:
    """Return the type of an attribute value: of this type, or NULL."""
    return msgspec.defstruct(
        f"Tagged{tag}",
        [
            (
                "value",
                VALUES[tag] if VALUES[tag] is msgspec.Raw else VALUES[tag] | None,
                NONE if VALUES[tag] is msgspec.Raw else None,
            ),
            ("null", bool, False),
        ],
        rename={"value": tag, "null": "NULL"},
        forbid_unknown_fields=True,
        gc=False,
        frozen=True,
    )


_TAGGED = {tag: _tagged_struct(tag) for tag in VALUES}


class ColumnsLayout:
    """Typed columns. `schemas` gives the schema of a table and takes one that has grown; both from any thread."""

    prefix = "_"

    def __init__(
        self,
        schema_of: Callable[[str], TableSchema],
        grow: Callable[[str, TableSchema], TableSchema],
        *,
        climbing: bool = True,
    ) -> None:
        """`climbing`: whether numbers climb; else all are decimal128(38, 9), and what does not fit overflows."""
        self._schema_of, self._grow, self._climbing = schema_of, grow, climbing
        self._first: dict[str, Kind] = FIRST if climbing else {**FIRST, "N": "decimal"}
        self._decoders: dict[str, _Decoder] = {}
        self._without: dict[str, dict[str, None]] = {}
        """By table, the attributes that have no column: always NULL so far, or of a name that is taken."""

    def table(self, name: str, partition: int, rows: Sequence[Row]) -> pa.Table:
        """Return the changes as a table, with the columns that all of them need."""
        images = [raw(row.change.body.new_image) or bytes(row.change.body.keys) for row in rows]
        decoder, items, overflow = self._decode(name, images)
        arrays = []
        for member, (attribute, kind) in zip(decoder.members, list(decoder.schema.columns.items()), strict=True):
            found = list(map(member, items))
            if kind in {"map", "list"}:
                values = [None if one is None else bytes(one.value) or None for one in found]
            else:
                values = [None if one is None else one.value for one in found]
            if None in values:
                for index, one in enumerate(found):
                    if one is not None and values[index] is None:
                        overflow.setdefault(index, {})[attribute] = NULL if one.null else NOTHING
            if kind == "decimal" and not self._climbing:
                for index, value in enumerate(values):
                    if value is not None and step_of(cast("str", value)) not in {"int", "decimal"}:
                        values[index] = None
                        overflow.setdefault(index, {})[attribute] = msgspec.Raw(_encode({"N": value}))
            arrays.append((attribute, *self._array(name, attribute, kind, values)))
        rest = self._rest(decoder, items, overflow)
        changes = [row.change for row in rows]
        meta = [
            pa.array([change.event_id for change in changes], pa.string()),
            pa.array([change.op for change in changes], pa.string()),
            pa.array([change.source for change in changes], pa.string()),
            pa.array([change.ts_us for change in changes], pa.int64()).view(pa.timestamp("us", tz="UTC")),
            pa.array([change.body.sequence for change in changes], pa.string()),
            texts([row.key for row in rows]),
            texts([raw(change.body.old_image) for change in changes]),
            texts([raw(change.joined) for change in changes]),
            texts(rest),
            pa.repeat(pa.scalar(partition, pa.int32()), len(rows)),
            pa.array([row.offset for row in rows], pa.int64()),
        ]
        schema = pa.schema([*META, *(pa.field(attribute, TYPES[kind]) for attribute, kind, _ in arrays)])
        return pa.Table.from_arrays([*meta, *(array for *_, array in arrays)], schema=schema)

    def align(self, name: str, table: pa.Table) -> pa.Table:
        """Return the table with the columns of its schema as it is by now: wider numbers, nulls in new columns."""
        wanted = pa.schema([*META, *(pa.field(n, TYPES[kind]) for n, kind in self._schema_of(name).columns.items())])
        return widened(table, wanted)

    def dictionary(self, schema: pa.Schema) -> list[str]:
        """Return the columns of few values, and the item's own strings: many of them are states and kinds.

        Where values are all different the writer gives a dictionary up after its first page.
        """
        strings = [one.name for one in schema if one.type == pa.string() and not one.name.startswith("_")]
        return [*DICTIONARY, *strings]

    def statistics(self, schema: pa.Schema) -> list[str]:
        """Return the columns that a reader can ask for a range of."""
        simple = (pa.types.is_integer, pa.types.is_decimal, pa.types.is_timestamp)
        return [one.name for one in schema if any(is_it(one.type) for is_it in simple)]

    # -- items --------------------------------------------------------------------------------------------------------

    def _decode(self, name: str, images: Sequence[bytes]) -> tuple[_Decoder, list[Any], dict[int, Item]]:
        """Decode items at once; what the schema does not foresee makes it grow, or goes to the overflow."""
        decoder, overflow = self._decoder(name), dict[int, Item]()
        try:
            return decoder, list(map(decoder.decode, images)), overflow
        except msgspec.ValidationError:
            self._learn(name, images)
        decoder, items = self._decoder(name), []
        for index, image in enumerate(images):
            try:
                items.append(decoder.decode(image))
            except msgspec.ValidationError:
                fits, overflow[index] = self._part(decoder, image)
                items.append(fits)
        return decoder, items, overflow

    def _decoder(self, name: str) -> _Decoder:
        schema, without = self._schema_of(name), self._without.setdefault(name, {})
        known = self._decoders.get(name)
        if known is None or known.schema.columns != schema.columns or len(known.without) > len(without):
            known = self._decoders[name] = _Decoder(schema, without)
        return known

    def _learn(self, name: str, images: Iterable[bytes]) -> None:
        """Give attributes that are new a column; take note of those that get none."""
        columns, without = dict(self._schema_of(name).columns), self._without.setdefault(name, {})
        taken = {column.lower() for column in [*META.names, *columns]}
        before = len(columns)
        for image in images:
            for attribute, value in _items(image).items():
                if attribute in columns or not NAME.fullmatch(attribute):
                    continue
                tag = next(iter(_items(bytes(value))), "")
                if tag in FIRST and attribute.lower() not in taken and len(columns) < MOST:
                    columns[attribute] = self._first[tag]
                    taken.add(attribute.lower())
                elif len(without) < MOST:
                    without[attribute] = None
        for attribute in columns:
            without.pop(attribute, None)
        self._decoders.pop(name, None)
        if len(columns) > before:
            self._grow(name, TableSchema(columns))

    def _part(self, decoder: _Decoder, image: bytes) -> tuple[Any, Item]:
        """Return the attributes of an item that fit their columns, and the others."""
        fits: Item = {}
        rest: Item = {}
        for attribute, value in _items(image).items():
            kind = decoder.schema.columns.get(attribute)
            fit = attribute in decoder.without or (kind is not None and set(_items(bytes(value))) == {TAGS[kind]})
            (fits if fit else rest)[attribute] = value
        return decoder.decode(_encode(fits)), rest

    @staticmethod
    def _rest(decoder: _Decoder, items: Sequence[Any], overflow: Mapping[int, Item]) -> list[bytes | None]:
        """Return the overflow of each item; that of attributes without a column is nearly always one of a few."""
        others: Iterable[tuple[bytes, ...]] = [()] * len(items)
        if decoder.others:
            others = zip(*(map(bytes, map(member, items)) for member in decoder.others), strict=True)
        known: dict[tuple[bytes, ...], bytes | None] = {}
        rest = []
        for index, values in enumerate(others):
            if index in overflow or values not in known:
                whole = {name: msgspec.Raw(value) for name, value in zip(decoder.without, values, strict=True) if value}
                whole |= overflow.get(index, {})
                encoded = _encode(whole) if whole else None
                if index not in overflow and len(known) < MOST:
                    known[values] = encoded
                rest.append(encoded)
            else:
                rest.append(known[values])
        return rest

    # -- columns ------------------------------------------------------------------------------------------------------

    def _array(self, name: str, attribute: str, kind: Kind, values: list[Any]) -> tuple[Kind, pa.Array]:
        """Return a column and its kind, which is a wider one where numbers need it."""
        if kind in NUMBERS:
            return self._numbers(name, attribute, kind, values)
        if kind == "binary":
            values = [None if value is None else base64.b64decode(value) for value in values]
        elif kind == "binaries":
            values = [None if value is None else [base64.b64decode(one) for one in value] for value in values]
        elif kind in {"map", "list"}:
            return kind, texts(values)
        return kind, pa.array(values, TYPES[kind])

    def _numbers(self, name: str, attribute: str, kind: Kind, values: list[Any]) -> tuple[Kind, pa.Array]:
        found = pa.array(values, pa.string())
        while kind != "number":
            try:
                return kind, found.cast(TYPES[kind])
            except pa.ArrowInvalid:
                steps = {step_of(value) for value in values if value is not None}
            highest = max((NUMBERS.index(step) for step in steps), default=0)
            if highest <= NUMBERS.index(kind):  # in a form that Arrow does not read: 1E+3 as a whole number
                values = [None if value is None else plain(Decimal(value)) for value in values]
                return kind, pa.array(values, pa.string()).cast(TYPES[kind])
            kind = NUMBERS[highest]
            self._grow(name, TableSchema({**self._schema_of(name).columns, attribute: kind}))
        return kind, found


def item_of(row: Mapping[str, Any], columns: Mapping[str, Kind]) -> dict[str, Any]:
    """Return the item that a row holds, in DynamoDB's typed form; numbers as decimals, in the sets as text."""
    item: dict[str, Any] = msgspec.json.decode(row["_overflow"]) if row["_overflow"] else {}
    for name, kind in columns.items():
        if (value := row.get(name)) is None:
            continue
        if kind in NUMBERS:
            value = Decimal(value)
        elif kind in {"map", "list"}:
            value = msgspec.json.decode(value)
        elif kind == "binary":
            value = base64.b64encode(value).decode()
        elif kind == "binaries":
            value = [base64.b64encode(one).decode() for one in value]
        item[name] = {TAGS[kind]: value}
    return item


def united(tables: Sequence[pa.Table]) -> pa.Table:
    """Return the rows of files of one table, with the columns of all of them, each as wide as the widest."""
    fields: dict[str, pa.DataType] = {}
    for schema in (table.schema for table in tables):
        for one in schema:
            known = fields.get(one.name, one.type)
            fields[one.name] = known if _width(known) >= _width(one.type) else one.type
    wanted = pa.schema([pa.field(name, kind) for name, kind in fields.items()])
    return pa.concat_tables([widened(table, wanted) for table in tables])


def _width(kind: pa.DataType) -> int:
    steps = [TYPES[step] for step in NUMBERS]
    return steps.index(kind) if kind in steps else len(steps)


def widened(table: pa.Table, wanted: pa.Schema) -> pa.Table:
    """Return a table with these columns: wider numbers, nulls where it has none."""
    columns = []
    for one in wanted:
        if one.name not in table.schema.names:
            columns.append(pa.nulls(table.num_rows, one.type))
            continue
        column = table.column(one.name)
        if column.type != one.type and pa.types.is_string(one.type):
            columns.append(pa.array([plain(value) for value in column.to_pylist()], one.type))
        else:
            columns.append(column.cast(one.type))
    return pa.Table.from_arrays(columns, schema=wanted)


def plain(value: Any) -> Any:
    """Return a number as text without an exponent and without zeros that say nothing; anything else as it is."""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, Decimal):
        return value
    with localcontext() as context:
        context.prec = 200
        text = format(value.normalize(), "f")
    return "0" if text in {"-0", ""} else text
