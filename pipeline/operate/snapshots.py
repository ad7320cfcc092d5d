"""`headwater snapshot`: forecasts, asks for snapshots, watches and cancels them. The workers take them."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import msgspec
from confluent_kafka import OFFSET_BEGINNING, Message

from pipeline.errors import FatalError, UsageError
from pipeline.settings.root import Settings
from pipeline.settings.sources import DynamoDBStreamSettings
from pipeline.sources.dynamodb.streams import captures_table
from pipeline.sources.snapshots.known import CANCEL, Snapshot, Snapshots, is_snapshot
from pipeline.sources.snapshots.scan import Facts, Forecast, Scanner, export_forecast, forecast, segments_for
from pipeline.sources.snapshots.snapshotter import plan_snapshot
from pipeline.topics.admin import admin, look, silent
from pipeline.topics.names import FENCE_PARTITIONS, Topics
from pipeline.topics.read import read_topic, reading
from pipeline.transport import Follower, clients
from pipeline.transport.partition import partition_of

SNAPSHOTS_TIMEOUT_S = 20.0


@dataclass(frozen=True, slots=True)
class SnapshotTable:
    """A table of which a snapshot can be taken, and the source that captures it."""

    facts: Facts
    source: DynamoDBStreamSettings


def source_of_table(settings: Settings, table: str) -> DynamoDBStreamSettings | None:
    """Return the source that captures a table from its stream, None when there is none."""
    return next(
        (
            source
            for source in settings.sources
            if isinstance(source, DynamoDBStreamSettings) and captures_table(source, table)
        ),
        None,
    )


def look_at(settings: Settings, names: Iterable[str]) -> list[SnapshotTable]:
    """Ask AWS about tables; raise UsageError for one that no source captures, FatalError for one that cannot be joined."""
    found = []
    for name in names:
        source = source_of_table(settings, name)
        if source is None:
            raise UsageError(
                f"no source of kind dynamodb-stream captures the table {name}: a snapshot is joined with its stream",
                hint="headwater check; name the table in [[sources]], tables",
            )
        facts = Scanner(source.region, 1).facts(name)
        if refusal := facts.refusal():
            raise FatalError(
                refusal,
                hint=f"aws dynamodb update-table --table-name {name} "
                "--stream-specification StreamEnabled=true,StreamViewType=NEW_AND_OLD_IMAGES",
            )
        found.append(SnapshotTable(facts, source))
    return found


@dataclass(frozen=True, slots=True)
class Wish:
    """How a snapshot is to be taken; None: as its source says."""

    units: float | None = None
    segments: int | None = None
    export: str | None = None


def outlook(table: SnapshotTable, wish: Wish) -> Forecast:
    """Return what a snapshot of a table takes."""
    if wish.export or table.source.snapshot_export:
        return export_forecast(table.facts)
    allowed = table.source.snapshot_units or table.facts.units * table.source.snapshot_share
    return forecast(table.facts, wish.units or allowed, wish.segments or segments_for(table.facts.size))


def new(table: SnapshotTable, wish: Wish) -> Snapshot:
    """Return a snapshot to ask for, with an ID that says when, and is no other's."""
    snapshot_id = f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{secrets.token_hex(3)}"
    found = plan_snapshot(table.facts, snapshot_id, table.source, wish.segments)
    return msgspec.structs.replace(found, units=wish.units or found.units, export=wish.export or found.export)


def ask_for(settings: Settings, snapshots: Sequence[Snapshot]) -> None:
    """Write the wishes; the workers see them at once. Raise FatalError when there was never a worker to see them."""
    topics, client = Topics(settings), admin(settings.kafka.conf)
    wanted = [topic for topic in topics.all() if topic.name == topics.shards]
    if not all(found.partitions for found in look(client, wanted)):
        raise FatalError(f"there is no topic {topics.shards}: no worker has run yet", hint="headwater run")
    _write(settings, {snapshot.place.key: msgspec.json.encode(snapshot) for snapshot in snapshots})


def under_way(settings: Settings, newest_gaps: Mapping[str, float]) -> list[Snapshot]:
    """Return the snapshots of these tables that will still begin, or began after their newest gaps, and have not ended."""
    return [
        one
        for one in of(settings).all.values()
        if one.state == "wanted" or (one.state == "running" and one.began > newest_gaps.get(one.table, 0.0))
        if one.table in newest_gaps
    ]


def cancel(settings: Settings, names: Sequence[str]) -> list[Snapshot]:
    """Ask for the end of all snapshots of these tables that have not ended; return them."""
    known = of(settings)
    found = [one for one in known.all.values() if one.table in names and one.state in {"wanted", "running"}]
    _write(settings, {f"{one.stream}/{CANCEL}".encode(): b"true" for one in found})
    return found


def _write(settings: Settings, records: dict[bytes, bytes]) -> None:
    topic = Topics(settings).shards
    failures: list[str] = []
    producer = clients.producer(settings.kafka.conf, logger=silent)  # what fails is said below, in one line

    def delivered(error: Any, _: Message) -> None:
        if error is not None:
            failures.append(str(error))

    for key, value in records.items():
        stream, _, shard_id = key.decode().rpartition("/")
        owner = f"{stream}/".encode() if shard_id == CANCEL else key
        producer.produce(topic, value, key, partition_of(owner, FENCE_PARTITIONS), on_delivery=delivered)
    if producer.flush(SNAPSHOTS_TIMEOUT_S) or failures:
        raise FatalError(
            f"the topic {topic} cannot be written: {', '.join(failures) or 'it timed out'}", hint="headwater check"
        )


def of(settings: Settings) -> Snapshots:
    """Return all snapshots that there ever were; raise FatalError when the cluster cannot be reached."""
    found = Snapshots()
    with reading(settings) as consumer:
        records = read_topic(
            consumer, Topics(settings).shards, dict.fromkeys(range(FENCE_PARTITIONS), OFFSET_BEGINNING), None
        )
    _take(found, records)
    return found


def _take(snapshots: Snapshots, records: Iterable[Message]) -> None:
    for record in records:
        stream, _, shard_id = (record.key() or b"").decode().rpartition("/")
        if is_snapshot(stream):
            snapshots.take(stream, shard_id, record.value())


@dataclass(frozen=True, slots=True)
class SnapshotProgress:
    """How far a snapshot is."""

    snapshot: Snapshot
    rows: int
    units: float

    def json(self) -> dict[str, Any]:
        """Return it as plain data."""
        builtins: dict[str, Any] = msgspec.to_builtins(self.snapshot)
        return builtins | {"rows": self.rows, "consumed_units": self.units}


@contextmanager
def watching(settings: Settings, wanted: Sequence[Snapshot]) -> Iterator[Callable[[], list[SnapshotProgress]]]:
    """Follow snapshots; yields a function that says how far each is now."""
    known = Snapshots({one.stream: one for one in wanted})
    follower = Follower(settings.kafka.conf, Topics(settings).shards, lambda records: _take(known, records))
    follower.start()
    try:
        yield lambda: [progress(known, known.all[one.stream]) for one in wanted]
    finally:
        follower.stop()


def progress(known: Snapshots, snapshot: Snapshot) -> SnapshotProgress:
    """Return how far a snapshot is."""
    return SnapshotProgress(snapshot, known.rows(snapshot), sum(segment.units for segment in known.scanned(snapshot)))
