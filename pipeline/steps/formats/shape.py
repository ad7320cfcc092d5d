"""What the documents of a subject hold: their members, of which kind each is, and how that grows. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from pipeline.steps.envelope import source
from pipeline.steps.event import Event
from pipeline.steps.plain import NONE, Tagged, decode_item, decode_value

Kind = Literal["string", "decimal", "boolean", "bytes", "json", "strings", "decimals", "byteses", "long", "record"]
Document: TypeAlias = Mapping[str, Any]
"""Members: `Tagged` values of attributes, and what an envelope has beside them: text, whole numbers, documents, None."""
MOST_FIELDS = 2_000
"""Members of a record at most: maps that are used as dictionaries would make a schema without end."""


class ConflictError(ValueError):
    """A value does not fit the schema of its attribute."""


@dataclass(slots=True)
class Field:
    """A member of a shape."""

    kind: Kind
    number: int
    """Its place, from 1 on, in the order in which members came: Protobuf knows them by it."""
    shape: Shape | None = None
    """Of a record."""
    wide: bool = False
    """Whether values of other kinds are taken, as text."""


@dataclass(slots=True)
class Shape:
    """The members of a record."""

    name: str
    """What the record is called in the schema; with dots, as Debezium names it."""
    fields: dict[str, Field] = field(default_factory=dict)
    changed: bool = True
    """Whether it has grown since it was registered."""
    names: Mapping[str, str] = field(default_factory=dict)
    """What the records in it are called, by their names in `RECORDS`; those that are not there keep these."""
    alias: str = ""
    """What the record was called before its subject was migrated."""
    required: bool = False
    """Whether all members are always there, as those of a key."""

    @property
    def is_debezium(self) -> bool:
        """Whether it is named as Debezium names records: what readers of Kafka Connect make of it counts, too."""
        return "." in self.name

    def field(self, name: str, kind: Kind, shape: Shape | None = None, *, widen: bool = False) -> Field:
        """Return the member of a name for a value of a kind; add it, or widen it, where it must be.

        Raise ConflictError when it is of another kind and must not be widened.
        """
        found = self.fields.get(name)
        if found is None:
            if len(self.fields) >= MOST_FIELDS:
                raise ConflictError(f"{self.name} would have more than {MOST_FIELDS} attributes: {name}")
            found = self.fields[name] = Field(kind, len(self.fields) + 1, shape)
            self.changed = True
        elif found.kind != kind and not found.wide:
            if not widen:
                raise ConflictError(f"{self.name}: the attribute {name} is {found.kind} in the schema, and here {kind}")
            found.wide = self.changed = True
        return found

    @property
    def grown(self) -> bool:
        """Whether it, or a record in it, has grown since it was registered."""
        return self.changed or any(one.shape is not None and one.shape.grown for one in self.fields.values())

    def registered(self) -> None:
        """Take note that the registry knows it."""
        self.changed = False
        for one in self.fields.values():
            if one.shape is not None and one.shape.grown:
                one.shape.registered()


def kind_of(value: Tagged) -> Kind | None:
    """Return the kind of an attribute value; None says nothing about its kind (NULL)."""
    if value.text is not NONE:
        return "string"
    if value.number is not None:
        return "decimal"
    if value.boolean is not None:
        return "boolean"
    if value.null is not None:
        return None
    if value.binary is not NONE:
        return "bytes"
    if value.members is not NONE or value.elements is not NONE:
        return "json"
    if value.texts is not None:
        return "strings"
    if value.numbers is not None:
        return "decimals"
    if value.binaries is not None:
        return "byteses"
    raise ValueError("an attribute value has one type tag, this has none")


def grow(shape: Shape, document: Document, *, widen: bool) -> None:
    """Make a shape fit a document; raise ConflictError when it cannot. What has grown until then can stay."""
    for name, value in document.items():
        if isinstance(value, Tagged):
            kind = kind_of(value)
            if kind is not None:
                known = shape.fields.get(name)
                if known is None or (known.kind != kind and not known.wide):
                    shape.field(name, kind, widen=widen)
        elif isinstance(value, str):
            shape.field(name, "string")
        elif isinstance(value, int):
            shape.field(name, "long")
        else:
            inner = shape.field(name, "record", shape_of(shape, name)).shape
            if inner is not None and value is not None:
                grow(inner, value, widen=widen)


RECORDS = {
    "before": "Item",
    "after": "Item",
    "source": "Source",
    "transaction": "Transaction",
    "enriched": "Enriched",
}
"""The records in Debezium's envelope, both images are of one: this is what they were called before Debezium's names."""
SOURCE = "io.debezium.connector.headwater.Source"
"""As every connector names its `source`: by the connector."""


def debezium_names(topic: str) -> dict[str, str]:
    """Return what Debezium calls the records in an envelope, by their names in `RECORDS`."""
    return {
        "Item": f"{topic}.Value",
        "Source": SOURCE,
        "Transaction": "event.block",
        "Enriched": f"{topic}.Enriched",
    }


def renamed(shape: Shape, name: str, names: Mapping[str, str], *, alias: str = "") -> None:
    """Give a record and those in it other names; `alias`: what it was called before, then the others also keep theirs."""
    shape.name, shape.names, shape.alias = name, names, alias
    for member, one in shape.fields.items():
        if one.shape is not None:
            record = RECORDS.get(member, member)
            one.shape.name, one.shape.alias = names.get(record, record), record if alias else ""


TRANSACTION: dict[str, Kind] = {"id": "string", "total_order": "long", "data_collection_order": "long"}
"""The members of Debezium's `transaction`: of a change of DynamoDB it is always null, so no document tells them."""


def shape_of(shape: Shape, name: str) -> Shape:
    """Return the shape for a record in a document: that of another member with the same record, or a new one."""
    record = RECORDS.get(name, name)
    for other, one in shape.fields.items():
        if one.shape is not None and RECORDS.get(other, other) == record:
            return one.shape
    new = Shape(shape.names.get(record, record), alias=record if shape.alias else "")
    for member, kind in TRANSACTION.items() if name == "transaction" else ():
        new.field(member, kind)
    return new


def plain_members(event: Event) -> Document:
    """Return the document of the envelope `plain`: the item, with what was added."""
    image = event.after_json if event.change.after is not None else event.before_json
    found: dict[str, Any] = {} if image is None else decode_item(image)
    for name, value in event.added.items():
        found[name] = decode_value(value)
    return found


def key_members(event: Event) -> Document:
    """Return the key attributes of a change, masked where they are, in the order of their names."""
    return {name: decode_value(value) for name, value in sorted(event.keys.items())}


def debezium_members(event: Event, *, documents: bool) -> Document:
    """Return the document of the envelope `debezium`; `documents`: each image is one text.

    What is always None in `source` is left out: to readers with a schema that has it, that is the same.
    """
    us = event.change.ts_us
    found: dict[str, Any] = {
        "before": _image(event.before_json, documents=documents),
        "after": _image(event.after_json, documents=documents),
        "source": {name: value for name, value in source(event.change).items() if value is not None},
        "op": event.change.op,
        "ts_ms": us // 1_000,
        "ts_us": us,
        "ts_ns": us * 1_000,
        "transaction": None,
    }
    if event.added:
        found["enriched"] = {name: decode_value(value) for name, value in event.added.items()}
    return found


def _image(image: bytes | None, *, documents: bool) -> Document | None:
    if image is None:
        return None
    return {"document": image.decode()} if documents else decode_item(image)
