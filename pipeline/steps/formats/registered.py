"""The last step of a flow with a format: grow the shape, register it, encode. Pure but for the registry that is given in."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol, cast

from pipeline.errors import TransientError
from pipeline.settings.formats import EnvelopeSettings, FormatSettings, KeyFormatSettings
from pipeline.steps.envelope import Encoder, compile_envelope
from pipeline.steps.event import Event, Step, each
from pipeline.steps.formats import avro, json_schema, protobuf
from pipeline.steps.formats.shape import (
    RECORDS,
    ConflictError,
    Document,
    Kind,
    Shape,
    debezium_members,
    debezium_names,
    grow,
    key_members,
    kind_of,
    plain_members,
    renamed,
)

log = logging.getLogger(__name__)

MAGIC = b"\x00"
ENVELOPE = ".Envelope"
"""By this end of a record's name Debezium's readers know an envelope."""
KEEPS, MIGRATES = "former_names = keep", "former_names = migrate"
TYPES = {"avro": "AVRO", "protobuf": "PROTOBUF", "json-schema": "JSON"}
CODECS = {"avro": avro, "protobuf": protobuf, "json-schema": json_schema}


ROUNDS = 10
"""How often others may come in between while a schema is registered, before the batch is tried again, after a pause."""
REFUSED_SCHEMAS_KEPT = 100
"""Refused schemas that are remembered at most."""


class IncompatibleError(ValueError):
    """The registry refuses a schema, as it does not go with those before it."""


class OvertakenError(Exception):
    """A schema was registered, but others came between it and what was the newest before."""

    def __init__(self, own: str, others: Sequence[str]) -> None:
        super().__init__(f"{len(others)} schemas were registered meanwhile")
        self.own = own
        """What was registered, as the registry has it."""
        self.others = others
        """The schemas in between, the oldest first."""


class Registry(Protocol):
    """A Schema Registry."""

    def latest(self, subject: str) -> str | None:
        """Return the newest schema of a subject; None: there is none. Raises TransientError when it does not answer."""

    def register(self, subject: str, schema: str, kind: str) -> int:
        """Register a schema and return its ID; of one that is there, its own.

        Raises IncompatibleError when the registry refuses it, OvertakenError when schemas were registered that `latest` has not
        returned, TransientError when it does not answer.
        """


def compile_format(envelope: EnvelopeSettings, settings: FormatSettings, topic: str, registry: Registry) -> Encoder:
    """Return the step that encodes changes for a topic, with the subject `<topic>-value`.

    What conflicts with the schema, or needs one that the registry refuses, is rejected. The step raises TransientError when the
    registry does not answer, and can then be given the same changes again.
    """
    step = _Step(envelope, settings, topic, registry)
    return Encoder(step, tombstone_follows=envelope.kind == "debezium" and bool(envelope.tombstone))


class _Step:
    """Encodes the changes of one topic."""

    def __init__(self, envelope: EnvelopeSettings, settings: FormatSettings, topic: str, registry: Registry) -> None:
        self._subject, self._registry = f"{topic}-value", registry
        self._format, self._codec = settings.kind, CODECS[settings.kind]
        self._widen = settings.on_conflict == "widen"
        self._tombstone = envelope.kind == "plain" and envelope.tombstone is not False
        self._members: Callable[[Event], Document] = (
            plain_members
            if envelope.kind == "plain"
            else partial(debezium_members, documents=envelope.images == "document")
        )
        self._json = compile_envelope(envelope) if settings.kind == "json-schema" else None
        self._numbers = envelope.numbers
        self._schema: Callable[[Shape], str] = (
            partial(json_schema.schema, numbers=envelope.numbers) if self._json is not None else self._codec.schema
        )
        name = topic.rpartition(".")[2]
        self._name = f"{name}_" if name in RECORDS.values() else name
        """The record's own name, by the topic."""
        self._debezium = (f"{topic}{ENVELOPE}", debezium_names(topic)) if envelope.kind == "debezium" else None
        """Debezium's names of it and of the records in it."""
        self._migrates = settings.former_names == "migrate"
        self._base: str | None = None
        """The newest schema of the registry that the shape has taken over."""
        self._refused: dict[str, IncompatibleError] = {}
        self._shape = self._new_shape()
        self._encode: Callable[[Document], bytes] | None = None
        self._encode_fitting: Callable[[Document], bytes | None] | None = None
        self._head = b""

    def __call__(self, events: Sequence[Event]) -> None:
        """Encode; what conflicts with the schema is rejected."""
        documents = []
        for event in events:
            if self._tombstone and event.change.after is None:
                event.output = None
                continue
            try:
                documents.append((event, self._members(event)))
            except ValueError as error:
                event.error = error
        if not documents or self._write_fitting(documents):
            return
        try:
            self._agree(documents)
        except IncompatibleError as error:
            self._forget()
            if len(documents) == 1:
                documents[0][0].error = error
            else:  # those that fit what the registry has continue
                for event, _ in documents:
                    self([event])
            return
        except ValueError as error:  # the subject has a schema that is none of ours
            for event, _ in documents:
                event.error = error
            return
        self._write(documents)

    def _write_fitting(self, documents: Sequence[tuple[Event, Document]]) -> bool:
        """Encode documents that fit what is registered, all of them or none; say whether they did. Most do."""
        encode = self._encode_fitting
        if encode is None or not self._head or self._shape.grown:
            return False
        try:
            found = [encode(document) for _, document in documents]
        except Exception:  # noqa: BLE001 - which of them is wrong, and how, is found out one by one
            return False
        if None in found:
            return False
        for (event, _), content in zip(documents, found, strict=True):
            event.output = self._head + cast("bytes", content)
        return True

    def _agree(self, documents: Sequence[tuple[Event, Document]]) -> None:
        """Make the shape fit all documents, and have it registered; reject those that it cannot fit."""
        shape = self._shape
        for _ in range(ROUNDS):
            for event, document in documents:
                if event.error is None:
                    try:
                        grow(shape, document, widen=self._widen)
                    except ValueError as error:
                        event.error = error
            nothing_new = bool(self._head) and not shape.grown
            if nothing_new or all(event.error is not None for event, _ in documents) or self._register(shape):
                return
        raise TransientError(f"the schema of {self._subject} changes again and again", hint="headwater check")

    def _register(self, shape: Shape) -> bool:
        """Have the registry know the shape; return False when others had news, which the documents must be compared with."""
        if self._take_over(shape):
            return False
        text = self._schema(shape)
        if (refused := self._refused.get(text)) is not None:
            raise refused
        renames = shape.is_debezium and self._base is not None and not self._codec.parse(self._base).is_debezium
        try:
            number = self._registry.register(self._subject, text, TYPES[self._format])
        except IncompatibleError as error:
            if self._take_over(shape):  # it goes with those before it, but not with one that has just come
                return False
            if renames:
                self._keep_names(shape, error)
                return False
            if len(self._refused) >= REFUSED_SCHEMAS_KEPT:
                self._refused.clear()
            self._refused[text] = error
            raise
        except OvertakenError as news:
            for other in reversed(news.others):
                merged_schema(shape, self._parsed(other))
            self._base = news.own
            return False
        if renames:
            log.info("%s: its records have the names now that Debezium gives them (%s)", self._subject, MIGRATES)
        self._head = MAGIC + number.to_bytes(4, "big")
        shape.registered()
        if self._codec is not json_schema:
            self._encode = self._codec.encoder(shape)
        else:
            self._encode = json_schema.encoder(shape, self._numbers) if shape.is_debezium else None
        self._encode_fitting = avro.fitting_encoder(shape) if self._codec is avro else None
        return True

    def _take_over(self, shape: Shape) -> bool:
        """Take over the newest schema of the registry, if it is not yet; say whether that was so."""
        text = self._registry.latest(self._subject)
        if text is None or text == self._base:
            return False
        known = self._parsed(text)
        is_new = self._base is None
        merged_schema(shape, known)
        self._base = text
        self._name_again(shape, known, is_new=is_new)
        return True

    def _name_again(self, shape: Shape, known: Shape, *, is_new: bool) -> None:
        """Give the records the names that the registry has, or Debezium's where the subject is to be migrated."""
        if self._debezium is not None and known.is_debezium:
            renamed(shape, *self._debezium, alias=known.alias)
        elif self._debezium is not None and self._migrates:
            renamed(shape, *self._debezium, alias=self._name)
            if self._codec is json_schema:
                json_schema.open_documents(shape)
        else:
            renamed(shape, self._name, {})
            if self._debezium is not None and is_new:
                log.info("%s: its records keep their names, which Debezium's readers refuse (%s)", self._subject, KEEPS)

    def _keep_names(self, shape: Shape, error: IncompatibleError) -> None:
        """Continue with the names that the subject has, and what it knows: the registry refuses others."""
        log.warning(
            "%s: its records keep their names, the registry refuses Debezium's: %s; see docs/how-to/read-with-kafka-connect.md",
            self._subject,
            error,
        )
        self._migrates = False
        renamed(shape, self._name, {})
        if self._base is not None:
            shape.fields = self._parsed(self._base).fields

    def _new_shape(self) -> Shape:
        if self._debezium is None:
            return Shape(self._name)
        name, names = self._debezium
        return Shape(name, names=names)

    def _parsed(self, text: str) -> Shape:
        """Return the shape of a schema of the subject."""
        shape: Shape = self._codec.parse(text)
        if self._debezium is not None and shape.is_debezium:
            renamed(shape, *self._debezium, alias=shape.alias)
        else:
            renamed(shape, self._name, {})
        return shape

    def _forget(self) -> None:
        """Go back to what the registry has."""
        self._head = b""
        self._shape = self._new_shape() if self._base is None else self._parsed(self._base)

    def _write(self, documents: Sequence[tuple[Event, Document]]) -> None:
        documents = [(event, document) for event, document in documents if event.error is None]
        if self._json is not None and self._encode is None:
            self._json([event for event, _ in documents])
        for event, document in documents:
            if self._encode is None:
                event.output = self._head + (event.output or b"")
                continue
            try:
                event.output = self._head + self._encode(document)
            except ConflictError as error:
                event.error = error
                if self._widen and self._codec is avro:
                    self._write_wide(event, document)
            except Exception as error:  # noqa: BLE001 - whatever is wrong with one change, the others continue
                event.error = error

    def _write_wide(self, event: Event, document: Document) -> None:
        """Encode a change with a number that the decimal of its member cannot hold."""
        event.error = None
        avro.widen(self._shape, document)
        try:
            self._agree([(event, document)])
            if event.error is None and self._encode is not None:
                event.output = self._head + self._encode(document)
        except IncompatibleError as error:
            self._forget()
            event.error = error
        except ValueError as error:
            event.error = error


def compile_keys(envelope: EnvelopeSettings, settings: KeyFormatSettings, topic: str, registry: Registry) -> Step:
    """Return the step that encodes the keys of a topic, with the subject `<topic>-key`.

    Their schema never changes, for it is part of them: with another one the same item would have another key, in another
    partition perhaps. So the first key decides, and one with other attributes is rejected.
    """
    return each(_Keys(envelope, settings, topic, registry))


class _Keys:
    """Encodes the keys of one topic."""

    def __init__(self, envelope: EnvelopeSettings, settings: KeyFormatSettings, topic: str, registry: Registry) -> None:
        self._topic, self._subject, self._registry = topic, f"{topic}-key", registry
        self._format, self._codec, self._numbers = settings.kind, CODECS[settings.kind], envelope.numbers
        self._schema: Callable[[Shape], str] = (
            partial(json_schema.schema, numbers=envelope.numbers) if self._codec is json_schema else self._codec.schema
        )
        self._form: Sequence[tuple[str, Kind | None]] | None = None
        """The attributes of a key, and of which kind each is; None: nobody knows yet."""
        self._head = b""
        self._encode: Callable[[Document], bytes] = lambda document: b""

    def __call__(self, event: Event) -> None:
        """Encode the key of one event."""
        members = key_members(event)
        form = [(name, kind_of(value)) for name, value in members.items()]
        if form != self._form:
            self._agree(form)
        event.key_output = self._head + self._encode(members)

    def _agree(self, form: Sequence[tuple[str, Kind | None]]) -> None:
        """Have the registry know the form of the first key; raise ConflictError for one of another form."""
        if self._form is None:
            self._register(form)
        if form != self._form:
            raise ConflictError(
                f"{self._subject}: a key of this topic is {_told(self._form or ())}, and not {_told(form)}; a table with other "
                "keys needs a topic of its own"
            )

    def _register(self, form: Sequence[tuple[str, Kind | None]]) -> None:
        for _ in range(ROUNDS):
            text = self._registry.latest(self._subject)
            if text is None:
                shape = Shape(f"{self._topic}.Key", required=True)
                for name, kind in form:
                    if kind is not None:
                        shape.field(name, kind)
                text = self._schema(shape)
            else:
                shape = self._codec.parse(text)
            try:
                number = self._registry.register(self._subject, text, TYPES[self._format])
            except OvertakenError:
                continue
            self._head = MAGIC + number.to_bytes(4, "big")
            self._form = [(name, one.kind) for name, one in shape.fields.items()]
            if self._codec is json_schema:
                self._encode = json_schema.encoder(shape, self._numbers)
            else:
                self._encode = avro.key_encoder(shape) if self._codec is avro else protobuf.encoder(shape)
            return
        raise TransientError(f"the schema of {self._subject} changes again and again", hint="headwater check")


def _told(form: Sequence[tuple[str, Kind | None]]) -> str:
    return ", ".join(f"{name} ({kind})" for name, kind in form)


def merged_schema(shape: Shape, known: Shape) -> None:
    """Take over what another worker has registered meanwhile: its members come first, in its order, and of its kinds."""
    own, shape.fields = shape.fields, dict(known.fields)
    for name, one in own.items():
        there = shape.fields.get(name)
        if there is None:
            one.number = len(shape.fields) + 1
            shape.fields[name] = one
        else:
            there.wide |= one.wide
            if there.shape is not None and one.shape is not None and there.shape is not one.shape:
                merged_schema(one.shape, there.shape)
                there.shape = one.shape
    shape.changed = True
