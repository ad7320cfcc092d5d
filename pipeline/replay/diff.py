"""Compares what a replay has written with what is live, change by change: by event ID, in each topic."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple, cast

from confluent_kafka import Message, TopicPartition

from models.change import event_id
from pipeline.flows.resend import RE_EMITTED
from pipeline.replay.plan import Replay, of_suffix, placed
from pipeline.replay.range import require_logs
from pipeline.replay.transaction import is_end, on_cluster, reader
from pipeline.settings.root import Settings
from pipeline.steps.route import REPLAY
from pipeline.topics.admin import admin, names_in
from pipeline.topics.names import Topics

EXAMPLES = 5
DIFF_TIMEOUT_S = 30.0
SHOWN = 400
"""Characters of a value that an example shows."""


@dataclass(frozen=True, slots=True)
class Example:
    """One difference."""

    what: str
    topic: str
    event_id: str
    key: str
    live: str | None
    shadow: str | None


@dataclass
class TopicDiff:
    """What differs in a topic."""

    topic: str
    shadow: str
    same: int = 0
    added: int = 0
    """Messages of the shadow alone."""
    missing: int = 0
    """Messages of the live topic alone."""
    different: int = 0
    examples: list[Example] = field(default_factory=list)

    @property
    def is_empty(self) -> bool:
        """Whether shadow and live are the same."""
        return not (self.added or self.missing or self.different)

    def json(self) -> dict[str, Any]:
        """Return it as plain data."""
        return asdict(self)


@dataclass(frozen=True)
class WantedChanges:
    """The changes that should be in the shadow."""

    events: set[str]
    """Those of the range that raw still has."""
    raw: set[str]
    """All that raw has, of the partitions whose beginning is gone."""
    gone: frozenset[int]
    """Those partitions: live messages of changes that raw does not have are of what is gone."""

    def has(self, event: str, partition: int) -> bool:
        """Say whether the shadow should have a message of this change that is live in this partition."""
        return event in self.events or (partition in self.gone and event not in self.raw)


def diff(settings: Settings, replay: Replay) -> list[TopicDiff]:
    """Compare every topic that the replay has written to. Memory: about 200 bytes a message of the larger of the two.

    What of the range is no longer on raw, and is live, is missing.
    """
    wanted = _wanted(settings, replay) if replay.source == "raw" else None
    topics = Topics(settings)
    there = names_in(admin(settings.kafka.conf))
    names = {flow.name: flow for flow in settings.flows}
    chosen = [flow for name, flow in names.items() if not replay.flows or name in replay.flows]
    live_topics = set(Topics(settings, chosen).sinks.values()) | set(Topics(settings, chosen).through)
    shadows = {
        name.removesuffix(f".{replay.suffix}"): name for name in of_suffix(there, settings.prefix, replay.suffix)
    }
    shadows.pop(topics.dead_letter, None)
    return [
        compare(settings, replay, topic, shadows.get(topic), topic in there, wanted)
        for topic in sorted(live_topics | set(shadows))
    ]


def _wanted(settings: Settings, replay: Replay) -> WantedChanges:
    """Return the event IDs of the replay's range: live topics hold others as well."""
    require_logs(settings, replay)
    ranges = {placed(name): (begin, end) for name, (begin, end) in replay.ranges.items()}
    lows = _lows(settings, ranges)
    # What was deleted after a replay has read it is in its shadow.
    gone = {tp for tp, (begin, _) in ranges.items() if lows[tp] > begin and replay.state in {"running", "stopped"}}
    if replay.begin is not None:
        gone |= set(map(placed, replay.gone))
    lows |= _lows(settings, gone)
    found = WantedChanges(set(), set(), frozenset(partition for _, partition in gone))
    for record in _read(
        settings, {tp: lows[tp] if tp in gone else max(lows[tp], ranges[tp][0]) for tp in {*ranges, *gone}}
    ):
        tp = cast("str", record.topic()), cast("int", record.partition())
        begin, end = ranges.get(tp, (0, 0))
        try:
            event = event_id(record.value() or b"")
        except ValueError:
            continue  # it was rejected
        if begin <= (record.offset() or 0) < end:
            found.events.add(event)
        if tp in gone:
            found.raw.add(event)
    return found


def _lows(settings: Settings, places: Iterable[tuple[str, int]]) -> dict[tuple[str, int], int]:
    """Return the first offsets that are left."""
    consumer = reader(settings, f"{settings.prefix}.replay")
    try:
        with on_cluster():
            return {
                tp: int(consumer.get_watermark_offsets(TopicPartition(*tp), DIFF_TIMEOUT_S, cached=False)[0])
                for tp in places
            }
    finally:
        consumer.close()


def compare(
    settings: Settings, replay: Replay, topic: str, shadow: str | None, is_live: bool, wanted: WantedChanges | None
) -> TopicDiff:
    """Compare a live topic with its shadow."""
    found = TopicDiff(topic, shadow or replay.topic(topic))
    ours = _messages(_whole(settings, shadow)) if shadow is not None else {}
    theirs = _messages(_whole(settings, topic)) if is_live else {}
    for event, messages in ours.items():
        live = theirs.get(event, [])
        if [file.digest for file in live] == [message.digest for message in messages]:
            found.same += len(messages)
        elif not live:
            found.added += len(messages)
            _example(found, "added", event, None, messages[0])
        else:
            found.different += max(len(messages), len(live))
            _example(found, "different", event, live[0], messages[0])
    for event, messages in theirs.items():
        if event not in ours and (wanted is None or wanted.has(event, messages[0].partition)):
            found.missing += len(messages)
            _example(found, "missing", event, messages[0], None)
    return found


class KnownMessage(NamedTuple):
    """What is kept of a message."""

    digest: bytes
    key: bytes
    value: bytes
    """Its beginning."""
    partition: int


def _messages(records: Iterable[Message]) -> dict[str, list[KnownMessage]]:
    """Return what a topic holds by event ID, in order; what was sent again, or replayed into it, is left out."""
    found: dict[str, list[KnownMessage]] = {}
    for record in records:
        headers = dict(cast("list[tuple[str, bytes]]", record.headers() or []))
        if RE_EMITTED in headers or REPLAY in headers or "event_id" not in headers:
            continue
        key, value = record.key() or b"", record.value() or b""
        digest = hashlib.blake2b(digest_size=16)
        for part in (key, value, *(f"{name}={text!r}".encode() for name, text in sorted(headers.items()))):
            digest.update(len(part).to_bytes(4, "big") + part)
        found.setdefault(headers["event_id"].decode(), []).append(
            KnownMessage(digest.digest(), key, value[:SHOWN], cast("int", record.partition()))
        )
    return found


def _example(found: TopicDiff, what: str, event: str, live: KnownMessage | None, shadow: KnownMessage | None) -> None:
    if sum(example.what == what for example in found.examples) < EXAMPLES:
        either = live or shadow
        key = "" if either is None else either.key.decode(errors="replace")
        live_text, shadow_text = (
            None if message is None else message.value.decode(errors="replace") for message in (live, shadow)
        )
        found.examples.append(Example(what, found.topic, event, key, live_text, shadow_text))


def _whole(settings: Settings, topic: str) -> Iterator[Message]:
    metadata = names_in(admin(settings.kafka.conf))[topic]
    return _read(settings, _lows(settings, ((topic, partition) for partition in metadata.partitions)))


def _read(settings: Settings, starts: Mapping[tuple[str, int], int]) -> Iterator[Message]:
    """Yield records from these offsets to the ends as they are now."""
    if not starts:
        return
    consumer = reader(settings, f"{settings.prefix}.replay")
    left = set(starts)
    try:
        with on_cluster():
            consumer.assign([TopicPartition(*tp, offset) for tp, offset in starts.items()])
            while left:
                for message in consumer.consume(5_000, 1.0):
                    if is_end(message, cast("str", message.topic())):
                        left.discard((cast("str", message.topic()), cast("int", message.partition())))
                    else:
                        yield message
    finally:
        consumer.close()
