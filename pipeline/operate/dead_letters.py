"""`headwater dlq`: what was rejected, and what is done about it.

A dead letter is known by its place on the dead-letter topic, `partition-offset`. What was done about one is on a topic of its
own: the dead letters themselves stay as they are.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Literal, cast

import msgspec
from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaException, Message

from models.change import MalformedChangeError, decode, item_key
from models.dead_letter import (
    FLOW,
    LATE,
    OFFSET,
    ORIGIN,
    PARTITION,
    PREFIX,
    REASON,
    SEALED,
    STAGE,
    TOPIC,
    Origin,
    origin_in,
)
from pipeline.errors import FatalError, UsageError
from pipeline.files import exact_json
from pipeline.flows.held import SKIP
from pipeline.services.keys import mask_key
from pipeline.settings.root import Settings
from pipeline.sources.members import read_again
from pipeline.steps.secrecy import MaskKey, fingerprint_of, is_sealed, open_letter, with_value
from pipeline.topics.admin import admin, look, silent, unreachable
from pipeline.topics.names import Topics
from pipeline.topics.read import each_record, reading
from pipeline.transport import clients
from pipeline.transport.partition import partition_of

DEAD_LETTERS_TIMEOUT_S = 30.0
State = Literal["open", "retried", "skipped", "edited"]
Done = Literal["retried", "skipped", "edited"]


@dataclass(frozen=True, slots=True)
class StoredDeadLetter:
    """A dead letter, and what was done about it."""

    id: str
    at: float
    """When it was rejected, in seconds since the epoch."""
    stage: str
    flow: str
    """The flow that rejected it; ''."""
    error: str
    """The error's class."""
    reason: str
    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...]
    """Those of the message itself."""
    origin: Origin | None = None
    """Where it was in its stream, when `ingest` has rejected it."""
    state: State = "open"

    def json(self) -> dict[str, Any]:
        """Return it as plain data, without the value."""
        when = datetime.fromtimestamp(self.at, UTC).isoformat(timespec="milliseconds")
        return {
            "id": self.id,
            "at": when.replace("+00:00", "Z"),
            "state": self.state,
            "stage": self.stage,
            "flow": self.flow,
            "error": self.error,
            "reason": self.reason,
            "topic": self.topic,
            "partition": self.partition,
            "offset": self.offset,
            "key": None if self.key is None else self.key.decode(errors="replace"),
            "origin": None if self.origin is None else {k: v for k, v in self.origin._asdict().items() if v},
        }

    def whole(self) -> dict[str, Any]:
        """Return it as plain data, with the value: as JSON where it is, else as text."""
        try:
            value: Any = exact_json.loads(self.value or b"")
        except ValueError:
            value = None if self.value is None else self.value.decode(errors="backslashreplace")
        headers = {name: one.decode(errors="backslashreplace") for name, one in self.headers}
        return self.json() | {"headers": headers, "value": value}


def opened(settings: Settings, one: StoredDeadLetter) -> StoredDeadLetter:
    """Return a dead letter with what is sealed in it; raise UsageError when its key is not among those of the settings."""
    return _opened(one, _key_of(settings, one)) if is_sealed(one.value or b"") else one


def _opened(one: StoredDeadLetter, key: MaskKey) -> StoredDeadLetter:
    secret = open_letter(key, one.value or b"")
    return replace(one, key=secret.key, value=secret.value, reason=secret.reason)


def _key_of(settings: Settings, one: StoredDeadLetter) -> MaskKey:
    """Return the key that a dead letter is sealed with: its flow's own; where that has another now, any that fits."""
    wanted = fingerprint_of(one.value or b"")
    flows, others = sorted(settings.flows, key=lambda flow: flow.name != one.flow), list[str]()
    for uri in dict.fromkeys(flow.mask_key for flow in flows if flow.mask_key is not None):
        key = mask_key(uri)
        if key.fingerprint.hex() == wanted:
            return key
        others.append(key.fingerprint.hex())
    known = ", ".join(others) or "none"
    raise UsageError(
        f"{one.id} is sealed with the key {wanted}, which no flow of the settings has as mask_key (they have {known})",
        hint=f"give a flow that mask_key, or headwater dlq skip {one.id}",
    )


def letter(record: Message) -> StoredDeadLetter:
    """Return a record of the dead-letter topic as a dead letter."""
    headers = cast("list[tuple[str, bytes]]", record.headers() or [])
    said = {name: value.decode(errors="replace") for name, value in headers}
    return StoredDeadLetter(
        id=f"{record.partition()}-{record.offset()}",
        at=record.timestamp()[1] / 1000,
        stage=said.get(STAGE, ""),
        flow=said.get(FLOW, ""),
        error=said.get(f"{PREFIX}exception.class.name", ""),
        reason=said.get(REASON, ""),
        topic=said.get(TOPIC, ""),
        partition=int(said.get(PARTITION, "-1")),
        offset=int(said.get(OFFSET, "-1")),
        key=cast("Any", record.key()),
        value=record.value(),
        headers=tuple(
            (name, value)
            for name, value in headers
            if not name.startswith((PREFIX, ORIGIN)) and name not in {FLOW, SEALED}
        ),
        origin=origin_in(said),
    )


@dataclass(frozen=True, slots=True)
class DeadLetterFilter:
    """Which dead letters are meant; what is not given does not matter."""

    ids: Sequence[str] = ()
    flow: str = ""
    stage: str = ""
    reason: str = ""
    """A part of the reason."""
    done: bool = False
    """Those that are done with, too."""

    def __call__(self, one: StoredDeadLetter) -> bool:
        """Say whether a dead letter is meant."""
        return (
            (not self.ids or one.id in self.ids)
            and self.flow in {"", one.flow}
            and self.stage in {"", one.stage}
            and self.reason in one.reason
            and (self.done or one.state == "open")
        )


def dead_letters(settings: Settings, wanted: DeadLetterFilter) -> list[StoredDeadLetter]:
    """Return dead letters, oldest first; raise FatalError when the cluster cannot be reached, UsageError for an unknown ID."""
    topics = Topics(settings)
    names = {topics.dead_letter, topics.dead_letter_states}
    there = {
        found.wanted.name: found.partitions
        for found in look(admin(settings.kafka.conf), [topic for topic in topics.all() if topic.name in names])
    }

    ids, found = set(wanted.ids), list[StoredDeadLetter]()
    with reading(settings) as consumer:
        states = dead_letter_states(consumer, topics.dead_letter_states, there[topics.dead_letter_states])
        partitions = dict.fromkeys(range(there[topics.dead_letter]), OFFSET_BEGINNING)
        for record in each_record(consumer, topics.dead_letter, partitions):  # those that are not meant are not kept
            one = letter(record)
            ids.discard(one.id)
            one = replace(one, state=cast("State", states.get(one.id, "open")))
            if wanted(one):
                found.append(one)
    if ids:
        raise UsageError(f"there is no dead letter {', '.join(sorted(ids))}", hint="headwater dlq list --all")
    return sorted(found, key=lambda one: one.at)


def retry(settings: Settings, chosen: Iterable[StoredDeadLetter], value: bytes | None = None) -> int:
    """Retry dead letters, with another value if one is given; return how many. All of them or none.

    Raises UsageError for one that cannot be tried again.
    """
    done: Done = "retried" if value is None else "edited"
    return _act(settings, chosen, done, lambda one: _again(settings, one, value))


def skip(settings: Settings, chosen: Iterable[StoredDeadLetter]) -> int:
    """Discard dead letters: what waits behind them continues. Return how many."""
    return _act(settings, chosen, "skipped", lambda one: _given_up(settings, one))


Record = tuple[str, bytes | None, bytes | None, int, list[tuple[str, bytes]]]
"""Topic, key, value, partition, headers."""


def _again(settings: Settings, one: StoredDeadLetter, value: bytes | None) -> list[Record]:
    topics = Topics(settings)
    new = one.value if value is None else value
    if one.stage == "ingest":
        return _read_again(settings, one, new or b"")
    if value is not None:
        if is_sealed(one.value or b""):
            key = _key_of(settings, one)  # once: AWS KMS may have to be asked for it
            _check_edited(_opened(one, key), value)
            new = with_value(key, one.value or b"", value)
        else:
            _check_edited(one, value)
    if one.stage == "transform":
        return [(topics.retry, one.key, new, one.partition, _to_flow(one))]
    if one.stage == "deduplicate":
        where = one.partition if one.topic == topics.ingest else partition_of(one.key or b"", settings.partitions)
        return [(topics.ingest, one.key, new, where, [*(h for h in one.headers if h[0] != LATE), _late(one)])]
    raise UsageError(
        f"{one.id}: the stage {one.stage} rejected a message of {one.topic}, which others read as well: it cannot be sent "
        "again for this stage alone",
        hint=f"headwater dlq show {one.id}, then headwater dlq skip {one.id}",
    )


def _read_again(settings: Settings, one: StoredDeadLetter, value: bytes) -> list[Record]:
    """Return what the codec of the source makes of a dead letter of `ingest`: as if it had been read, but late."""
    hint = f"headwater dlq show {one.id}, then headwater dlq edit {one.id}"
    try:
        found = read_again(settings, value, one.origin or _former_origin(one))
    except ValueError as error:
        raise UsageError(f"{one.id}: {error}", hint=hint) from error
    for record in found:
        if one.key is not None and record["key"] != one.key:
            raise UsageError(
                f"{one.id} is about the item {one.key.decode(errors='replace')}, the new value about {record['key'].decode()}",
                hint=hint,
            )
    topic, partitions = Topics(settings).ingest, settings.partitions
    return [(topic, r["key"], r["value"], partition_of(r["key"], partitions), [_late(one)]) for r in found]


def _former_origin(one: StoredDeadLetter) -> Origin:
    """Return the place of a dead letter that was written before they had it in headers: `ARN/shard` as its topic."""
    stream, _, shard_id = one.topic.rpartition("/")
    return Origin(stream, shard_id)


def _late(one: StoredDeadLetter) -> tuple[str, bytes]:
    """Return the header of a change that comes after its turn: newer ones of its item may have been written since."""
    return LATE, str(round(one.at * 1_000_000)).encode()


def _check_edited(one: StoredDeadLetter, value: bytes) -> None:
    """Raise UsageError when a new value is not a change, or one of another item: that would be sent out of its order."""
    hint = f"headwater dlq show {one.id}"
    try:
        key = item_key(decode(value).body.keys)
    except (MalformedChangeError, msgspec.DecodeError) as error:
        raise UsageError(f"{one.id}: the new value is {error}", hint=hint) from error
    if one.key is not None and key != one.key:
        raise UsageError(
            f"{one.id} is about the item {one.key.decode(errors='replace')}, the new value about {key.decode()}",
            hint=hint,
        )


def _to_flow(one: StoredDeadLetter) -> list[tuple[str, bytes]]:
    flow = [(FLOW, one.flow.encode())] if one.flow else []
    return [*one.headers, *flow, (OFFSET, str(one.offset).encode())]


def _given_up(settings: Settings, one: StoredDeadLetter) -> list[Record]:
    if one.stage != "transform" or not one.flow:
        return []
    return [(Topics(settings).retry, one.key, one.value, one.partition, [*_to_flow(one), (SKIP, b"1")])]


def _act(
    settings: Settings, chosen: Iterable[StoredDeadLetter], done: Done, make: Callable[[StoredDeadLetter], list[Record]]
) -> int:
    acts = [(one, make(one)) for one in chosen]
    if not acts:
        return 0
    states = Topics(settings).dead_letter_states
    name = f"{settings.prefix}-dlq-{uuid.uuid4().hex[:12]}"
    try:
        producer = clients.transactional(settings.kafka.conf, name, DEAD_LETTERS_TIMEOUT_S, logger=silent)
        producer.begin_transaction()
        for one, records in acts:
            for topic, key, value, partition, headers in records:
                producer.produce(
                    topic, value, key, partition, headers=cast("Any", headers)
                )  # its stubs know invariant lists
            producer.produce(states, json.dumps({"state": done, "at": time.time()}), one.id, 0)
            producer.poll(0)
        producer.commit_transaction(DEAD_LETTERS_TIMEOUT_S)
    except KafkaException as error:
        raise unreachable(error) from error
    except BufferError as error:
        raise FatalError("too many dead letters at once", hint="headwater dlq retry ID ID ...") from error
    return len(acts)


def dead_letter_states(consumer: Consumer, topic: str, partitions: int) -> dict[str, str]:
    """Return what was done about dead letters, by ID (`partition-offset`); an open one is not among them."""
    states: dict[str, str] = {}
    for record in each_record(consumer, topic, dict.fromkeys(range(partitions), OFFSET_BEGINNING)):
        states[bytes(record.key() or b"").decode()] = msgspec.json.decode(record.value() or b"{}").get("state", "open")
    return {letter: state for letter, state in states.items() if state != "open"}
