"""The last step of a flow with a format: grow the shape, register it, encode. Pure but for the registry that is given in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from pipeline.flow_settings import Envelope, Format
from pipeline.steps.envelope import Encoder, compile_envelope
from pipeline.steps.event import Event
from pipeline.steps.formats import avro, json_schema, protobuf
from pipeline.steps.formats.shape import ConflictError, Document, Shape, debezium_members, grow, plain_members

MAGIC = b"\x00"
TYPES = {"avro": "AVRO", "protobuf": "PROTOBUF", "json-schema": "JSON"}
CODECS = {"avro": avro, "protobuf": protobuf, "json-schema": json_schema}


class Registry(Protocol):
    """A Schema Registry."""

    def latest(self, subject: str) -> str | None:
        """Return the newest schema of a subject; None: there is none. Raises TransientError when it does not answer."""

    def register(self, subject: str, schema: str, kind: str) -> int:
        """Register a schema and return its ID; of one that is there, its own.

        Raises IncompatibleError when the registry refuses it, TransientError when it does not answer.
        """


def compile_format(envelope: Envelope, settings: Format, topic: str, registry: Registry) -> Encoder:
    """Return the step that encodes changes for a topic, with the subject `<topic>-value`."""
    tombstone = envelope.kind == "plain" and envelope.tombstone is not False
    step = _Step(envelope, settings, f"{topic}-value", topic.rpartition(".")[2], registry, tombstone=tombstone)
    return Encoder(step, tombstone_follows=envelope.kind == "debezium" and bool(envelope.tombstone))


class _Step:
    """Encodes the changes of one topic."""

    def __init__(
        self, envelope: Envelope, settings: Format, subject: str, name: str, registry: Registry, *, tombstone: bool
    ) -> None:
        self._subject, self._registry = subject, registry
        self._format, self._codec = settings.kind, CODECS[settings.kind]
        self._widen, self._tombstone = settings.on_conflict == "widen", tombstone
        self._members: Callable[[Event], Document] = plain_members if envelope.kind == "plain" else debezium_members
        self._json = compile_envelope(envelope) if settings.kind == "json-schema" else None
        self._name = name
        self._shape: Shape | None = None
        self._encode: Callable[[Document], bytes] | None = None
        self._head = b""

    def __call__(self, events: Sequence[Event]) -> None:
        """Encode; what conflicts with the schema is rejected."""
        shape = self._shape if self._shape is not None else self._begin()
        documents: list[tuple[Event, Document | None]] = []
        for event in events:
            if self._tombstone and event.change.after is None:
                documents.append((event, None))
                continue
            try:
                document = self._members(event)
                grow(shape, document, widen=self._widen)
            except ValueError as error:
                event.error = error
            else:
                documents.append((event, document))
        if shape.grown or not self._head:
            self._register(shape)
        if self._json is not None:
            self._json([event for event, _ in documents])
        for event, found in documents:
            self._write(event, found, shape)

    def _write(self, event: Event, document: Document | None, shape: Shape) -> None:
        if document is None:
            event.output = None
        elif self._encode is None:
            event.output = self._head + (event.output or b"")
        else:
            try:
                event.output = self._head + self._encode(document)
            except ConflictError as error:
                if self._widen and self._format == "avro":
                    avro.widen(shape, document)
                    self._register(shape)
                    event.output = self._head + self._encode(document)
                else:
                    event.error = error

    def _begin(self) -> Shape:
        """Go on from what the registry has: another worker, or this one before, may have registered it."""
        text = self._registry.latest(self._subject)
        self._shape = Shape(self._name) if text is None else self._codec.parse(text)
        self._shape.changed = True  # its ID is asked for by registering it again
        return self._shape

    def _register(self, shape: Shape) -> None:
        text = self._registry.latest(self._subject)
        if text is not None:
            merge(shape, self._codec.parse(text))
        number = self._registry.register(self._subject, self._codec.schema(shape), TYPES[self._format])
        self._head = MAGIC + number.to_bytes(4, "big")
        shape.registered()
        self._encode = None if self._codec is json_schema else self._codec.encoder(shape)


def merge(shape: Shape, known: Shape) -> None:
    """Take over what another worker has registered meanwhile: its members come first, in its order."""
    own, shape.fields = shape.fields, dict(known.fields)
    for name, one in own.items():
        there = shape.fields.get(name)
        if there is None:
            one.number = len(shape.fields) + 1
            shape.fields[name] = one
        else:
            there.wide |= one.wide or (there.kind != one.kind)
            if there.shape is not None and one.shape is not None and there.shape is not one.shape:
                merge(one.shape, there.shape)
                there.shape = one.shape
    shape.changed = True
