"""The layout `columns`: the item's attributes as typed columns, one schema a table, which only grows.

The rules: an attribute gets the column of the type that is seen first, and a column never changes its type: many engines
refuse a table of whose files one has another type than the next. What does not fit its column (another type, NULL, a
number that decimal128(38, 9) cannot hold, a name that is taken) is in `_overflow`, in DynamoDB's typed JSON: an item is
always its columns and its overflow together.
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
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from models.change import NONE
from pipeline.sinks.lake.layouts.arrays import COMMON, common, images, texts
from pipeline.sinks.rows import Rows

Kind = Literal[
    "string", "int", "decimal", "wide", "number", "bool", "binary", "strings", "numbers", "binaries", "map", "list"
]
"""What a column holds. Numbers are `decimal`; an earlier version had int, wide and number (as text) too: such columns stay."""
NUMBERS: tuple[Kind, ...] = ("int", "decimal", "wide", "number")
"""Each holds what is before it."""
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
    "N": "decimal",
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
"""What is under a type tag. A map or a list stays JSON."""
QUOTED: set[Kind] = {"string", *NUMBERS, "binary"}
"""What is text in quotes under its tag."""
_FIELDS = [
    COMMON.field(name) for name in ("event_id", "op", "source", "changed_at", "sequence", "key", "before", "enriched")
]
_FIELDS += [pa.field("overflow", pa.string())]
_FIELDS += [COMMON.field(name) for name in ("topic", "partition", "offset", "replay")]
RENAMED = {"partition": "_topic_partition"}
"""Iceberg reserves `_partition`."""
META = pa.schema([one.with_name(RENAMED.get(one.name, f"_{one.name}")) for one in _FIELDS])
"""The columns before the item's own. Of a deletion the item's columns are those of its key."""
DICTIONARY = ["_op", "_source", "_topic", "_topic_partition", "_replay"]
NAME = re.compile(r'[^"\\\x00-\x1f]+')
"""Names that can be columns, as nearly all are."""
SHORT: dict[Kind, int] = {"int": 20, "decimal": 28, "wide": 37}
"""Characters of numbers that Arrow's cast takes right, or refuses. Of longer ones, and of those with exponents, it makes others
silently (1E-28 becomes 0, 38 digits overflow): they go by Python's decimals."""
NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
MAX_COLUMNS = 1_000
"""Columns that a table gets at most: names that are data must not become columns without end."""
Item = dict[str, msgspec.Raw]
_items = msgspec.json.Decoder(Item).decode
NO_ITEM = ""
"""Where an image that is not an object is in the overflow: no attribute has this name."""
_encode = msgspec.json.encode


@dataclass(frozen=True)
class TableSchema:
    """The columns of a table, by attribute."""

    columns: Mapping[str, Kind] = field(default_factory=dict)

    def merge(self, other: TableSchema) -> TableSchema:
        """Return this schema with what is new in another one: what is here stays as it is, also under names alike."""
        merged, taken = dict(self.columns), set(map(str.lower, self.columns))
        for name, kind in other.columns.items():
            if name.lower() not in taken and len(merged) < MAX_COLUMNS:
                merged[name] = kind
                taken.add(name.lower())
        return TableSchema(merged) if len(merged) > len(self.columns) else self


def step_of(text: str) -> Kind:
    """Return the lowest step that holds a number without loss."""
    with localcontext() as context:
        context.prec = 200
        number = Decimal(text)
        if number == number.to_integral_value() and -(1 << 63) <= number < 1 << 63:
            return "int"
        stripped = number.normalize().as_tuple()
        scale = max(0, -cast("int", stripped.exponent))
        whole = max(0, len(stripped.digits) + cast("int", stripped.exponent))
    if scale <= 9 and whole <= 29:
        return "decimal"
    return "wide" if scale <= 38 and whole <= 38 else "number"


class _Cutter:
    """Cuts items into the bytes of their attributes: those that have a column, and those that are known to have none."""

    def __init__(self, schema: TableSchema, without: Iterable[str]) -> None:
        """`without`: attributes that have been seen and have no column."""
        self.schema, self.without = schema, tuple(name for name in without if name not in schema.columns)
        names = [*schema.columns, *self.without]
        members: list[Any] = [(f"a{number}", msgspec.Raw, NONE) for number in range(len(names))]
        rename = {f"a{number}": name for number, name in enumerate(names)}
        item = msgspec.defstruct("Item", members, rename=rename, forbid_unknown_fields=True, gc=False, frozen=True)
        self.cut = msgspec.json.Decoder(item).decode
        """Raises DecodeError when there is another attribute."""
        getters = [attrgetter(name) for name in rename]
        self.columns, self.others = getters[: len(schema.columns)], getters[len(schema.columns) :]


def _under(tag: str) -> Callable[[bytes | msgspec.Raw], Any]:
    """Return what decodes an attribute value of this type; it raises DecodeError at any other."""
    value = msgspec.defstruct(
        "Value", [("value", VALUES[tag])], rename={"value": tag}, forbid_unknown_fields=True, gc=False
    )
    decode = msgspec.json.Decoder(value).decode
    return lambda found: decode(found).value  # type: ignore[attr-defined]


_UNDER = {tag: _under(tag) for tag in VALUES}


class ColumnsLayout:
    """Typed columns. It may be used from any thread."""

    prefix = "_"

    def __init__(
        self,
        schema_of: Callable[[str], TableSchema],
        grow: Callable[[str, TableSchema], TableSchema],
        *,
        spelling: Callable[[str], str] = str.lower,
        taken: Iterable[str] = (),
    ) -> None:
        """`schema_of` gives the schema of a table; `grow` takes one that has new columns, and returns the one that is decided.

        `spelling`: what must differ between the names of columns; '' for a name that none can have. `taken`: other names
        that no new column gets.
        """
        self._spelling, self._taken = spelling, {spelling(name) for name in taken}
        self._reserved = set[str]()
        self._schema_of, self._grow = schema_of, grow
        self._cutters: dict[str, _Cutter] = {}
        self._without: dict[str, dict[str, None]] = {}
        """By table, the attributes that have no column: always NULL so far, or of a name that is taken."""

    def reserve(self, names: Iterable[str]) -> None:
        """Give attributes of these names no column: readers would find something else under them."""
        self._reserved |= {self._spelling(name) for name in names}

    def table(self, name: str, partition: int, rows: Rows) -> pa.Table:
        """Return the changes as a table, with the columns that all of them need."""
        cutter, items, overflow = self._cut(name, images(rows))
        meta = common(partition, rows)
        columns, fields = [], list(META)
        for member, (attribute, kind) in zip(cutter.columns, list(cutter.schema.columns.items()), strict=True):
            found = list(map(member, items))
            column, odd = _column(kind, found)
            for place in odd:
                overflow.setdefault(place, {})[attribute] = found[place]
            columns.append(column)
            fields.append(pa.field(attribute, TYPES[kind]))
        meta["overflow"] = _rest(cutter, items, overflow)
        return pa.Table.from_arrays([*(meta[one.name] for one in _FIELDS), *columns], schema=pa.schema(fields))

    def align(self, name: str, *tables: pa.Table) -> list[pa.Table]:
        """Return tables with the columns of the schema as it is by now: nulls in new columns."""
        wanted = pa.schema([*META, *(pa.field(n, TYPES[kind]) for n, kind in self._columns_of(name).items())])
        return [widened(table, wanted) for table in tables]

    def _columns_of(self, name: str) -> Mapping[str, Kind]:
        """Return a table's columns, but for those that are reserved here: lakes share their schemas, not their paths."""
        columns, spelling = self._schema_of(name).columns, self._spelling
        if not self._reserved or self._reserved.isdisjoint(map(spelling, columns)):
            return columns
        return {name: kind for name, kind in columns.items() if spelling(name) not in self._reserved}

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

    def _cut(self, name: str, found: Sequence[msgspec.Raw]) -> tuple[_Cutter, list[Any], dict[int, Item]]:
        """Cut items at once; what the schema does not foresee makes it grow, or goes to the overflow."""
        cutter, overflow = self._cutter(name), dict[int, Item]()
        try:
            return cutter, list(map(cutter.cut, found)), overflow
        except msgspec.DecodeError:
            self._learn(name, found)
        cutter, items = self._cutter(name), []
        for place, image in enumerate(found):
            try:
                items.append(cutter.cut(image))
            except msgspec.DecodeError:
                known = {*cutter.schema.columns, *cutter.without}
                item = _item(image)
                items.append(cutter.cut(_encode({one: value for one, value in item.items() if one in known})))
                overflow[place] = {one: value for one, value in item.items() if one not in known}
        return cutter, items, overflow

    def _cutter(self, name: str) -> _Cutter:
        columns, without = self._columns_of(name), self._without.setdefault(name, {})
        known = self._cutters.get(name)
        if known is None or known.schema.columns != columns or len(known.without) > len(without):
            known = self._cutters[name] = _Cutter(TableSchema(columns), list(without))  # others may add to it meanwhile
        return known

    def _learn(self, name: str, found: Iterable[msgspec.Raw]) -> None:
        """Give attributes that are new a column; take note of those that get none."""
        columns, without = dict(self._columns_of(name)), self._without.setdefault(name, {})
        spelling = self._spelling
        taken = {"", *self._taken, *self._reserved, *map(spelling, [*META.names, *columns])}
        before = len(columns)
        for image in found:
            for attribute, value in _item(image).items():
                if attribute in columns or not NAME.fullmatch(attribute):
                    continue
                tag = next(iter(_item(value)), "")
                if tag in FIRST and spelling(attribute) not in taken and len(columns) < MAX_COLUMNS:
                    columns[attribute] = FIRST[tag]
                    taken.add(spelling(attribute))
                elif len(without) < MAX_COLUMNS:
                    without[attribute] = None
        self._cutters.pop(name, None)
        if len(columns) > before:
            self._grow(name, TableSchema(columns))
        decided = self._columns_of(name)
        without |= dict.fromkeys(columns.keys() - decided.keys())  # somebody else was faster with a name alike
        for attribute in decided:
            without.pop(attribute, None)


def _column(kind: Kind, found: list[msgspec.Raw]) -> tuple[pa.Array, Sequence[int]]:
    """Return a column, and the places of what does not fit it."""
    if kind in QUOTED:
        column, odd = quoted(TAGS[kind], found)
        if kind in NUMBERS:
            column, unfit = _numbers(kind, column)
        elif kind == "binary":
            column, unfit = binaries(column)
        else:
            return column, odd
        return column, [*odd, *unfit]
    if kind == "bool":
        return booleans(found)
    values, odd = _each(_UNDER[TAGS[kind]], found)
    if kind == "binaries":
        for place, value in enumerate(values):
            if value is not None and None in (sets := [_binary(one) for one in value]):
                values[place] = None
                odd.append(place)
            elif value is not None:
                values[place] = sets
    if kind in {"map", "list"}:
        return texts([b"" if value is None else value for value in values], missing="empty"), odd
    return pa.array(values, TYPES[kind]), odd


def _numbers(kind: Kind, found: pa.Array) -> tuple[pa.Array, Sequence[int]]:
    """Return numbers as the column has them, and the places of those that it cannot hold."""
    if kind != "number" and _is_short(found, SHORT[kind]):
        try:
            return found.cast(TYPES[kind]), ()
        except pa.ArrowInvalid:
            pass  # some do not fit
    values: list[str | None] = found.to_pylist()
    odd = [place for place, value in enumerate(values) if value is not None and not _fits(kind, value)]
    for place in odd:
        values[place] = None
    if kind == "number":
        return pa.array(values, pa.string()), odd
    # 1E+3 as a whole number is none for Arrow.
    plainly = [None if value is None else plain_value(Decimal(value)) for value in values]
    return pa.array(plainly, pa.string()).cast(TYPES[kind]), odd


def _fits(kind: Kind, value: str) -> bool:
    """Say whether a text is a number, and one that a column of this kind has."""
    return NUMBER.fullmatch(value) is not None and NUMBERS.index(step_of(value)) <= NUMBERS.index(kind)


def _is_short(numbers: pa.Array, most: int) -> bool:
    """Say whether all numbers are digits, sign and point, so many at most."""
    longest = pc.max(pc.binary_length(numbers)).as_py() or 0
    return longest <= most and not (longest and numbers.buffers()[2].to_pybytes().translate(None, b"0123456789.-"))


def _item(image: bytes | msgspec.Raw) -> Item:
    """Return the members of an object; anything else, which DynamoDB never writes, is whole under a name of its own."""
    try:
        return _items(image)
    except msgspec.DecodeError:
        return {NO_ITEM: msgspec.Raw(bytes(image))}


def quoted(tag: str, found: Sequence[msgspec.Raw]) -> tuple[pa.Array, list[int]]:
    """Return the texts of values such as `{"S":"x"}`, and the places of those that are something else.

    In JSON as AWS writes it, a value that begins and ends like this, with four quotes and no backslash, is one of this type
    and nothing else. What looks otherwise is decoded by itself.
    """
    begin, joined = f'{{"{tag}":"', b"".join(found)
    whole = texts(found, missing="empty", joined=joined)
    typical = pc.and_(pc.starts_with(whole, begin), pc.ends_with(whole, '"}'))
    alike = pc.all(typical).as_py() is not False  # else quotes that one has too many may be those that another lacks
    if not alike or b"\\" in joined or joined.count(b'"') != 4 * (len(whole) - whole.null_count):  # then which?
        typical = pc.and_(typical, pc.equal(pc.count_substring(whole, '"'), 4))
        typical = pc.and_not(typical, pc.match_substring(whole, "\\"))
    inner = pc.binary_slice(whole.view(pa.binary()), len(begin), -2).view(pa.string())
    if pc.all(typical).as_py() is not False:
        return inner, []
    others = pc.indices_nonzero(pc.invert(typical)).to_pylist()
    values, odd = _each(_UNDER[tag], [found[place] for place in others])
    replaced: list[str | None] = [None] * len(found)
    for place, value in zip(others, values, strict=True):
        replaced[place] = value
    return pc.if_else(pc.fill_null(typical, True), inner, pa.array(replaced, pa.string())), [others[one] for one in odd]


def booleans(found: Sequence[msgspec.Raw]) -> tuple[pa.Array, Sequence[int]]:
    """Return the values of `{"BOOL":true}` and the like, and the places of those that are something else."""
    whole = texts(found, missing="empty")
    true, false = (pc.equal(whole, text) for text in ('{"BOOL":true}', '{"BOOL":false}'))
    if pc.all(pc.or_(true, false)).as_py() is not False:
        return true, ()
    values, odd = _each(_UNDER["BOOL"], found)
    return pa.array(values, pa.bool_()), odd


def _each(decode: Callable[[msgspec.Raw], Any], found: Sequence[msgspec.Raw]) -> tuple[list[Any], list[int]]:
    """Return values one by one, None where there is none, and the places of those that are of another type."""
    values, odd = [], []
    for place, one in enumerate(found):
        value = None
        if one != NONE:
            try:
                value = decode(one)
            except msgspec.DecodeError:
                odd.append(place)
        values.append(value)
    return values, odd


def binaries(column: pa.Array) -> tuple[pa.Array, list[int]]:
    """Return what base64 texts stand for, and the places of texts that are none as AWS writes it."""
    found = column.to_pylist()
    values = [None if text is None else _binary(text) for text in found]
    odd = [place for place, text in enumerate(found) if text is not None and values[place] is None]
    return pa.array(values, pa.binary()), odd


def _binary(text: str) -> bytes | None:
    try:
        value = base64.b64decode(text, validate=True)
    except ValueError:
        return None
    return value if base64.b64encode(value).decode() == text else None


def _rest(cutter: _Cutter, items: Sequence[Any], overflow: Mapping[int, Item]) -> pa.Array:
    """Return the overflow of each item; that of attributes without a column is nearly always one of a few."""
    if not cutter.others and not overflow:
        return pa.nulls(len(items), pa.string())
    others = [list(map(member, items)) for member in cutter.others]

    def whole(place: int, more: Item) -> bytes:
        item = {name: found[place] for name, found in zip(cutter.without, others, strict=True) if found[place] != NONE}
        item |= more
        return _encode(item) if item else b""

    alike = np.zeros(len(items), np.int64)
    for found in others:
        known = texts(found, missing="empty").dictionary_encode(null_encoding="encode")
        alike = np.unique(alike * len(known.dictionary) + known.indices.to_numpy(), return_inverse=True)[1]
    _, first, alike = np.unique(alike, return_index=True, return_inverse=True)
    rest = texts([whole(place, {}) for place in first.tolist()], missing="empty").take(pa.array(alike))
    if overflow:
        values = rest.to_pylist()
        for place, more in overflow.items():
            values[place] = whole(place, more)
        rest = pa.array(values, pa.string())
    return rest


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
            columns.append(pa.array([plain_value(value) for value in column.to_pylist()], one.type))
        else:
            columns.append(column.cast(one.type))
    return pa.Table.from_arrays(columns, schema=wanted)


def plain_value(value: Any) -> Any:
    """Return a number as text without an exponent and without zeros that say nothing; anything else as it is."""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, Decimal):
        return value
    with localcontext() as context:
        context.prec = 200
        text = format(value.normalize(), "f")
    return "0" if text in {"-0", ""} else text
