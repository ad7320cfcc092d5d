"""ingest: what the sources read -> the ingest topic."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from functools import partial

from faust import Stream

from pipeline.errors import UsageError
from pipeline.runtime.worker import Worker
from pipeline.services import aws
from pipeline.settings.sources import KinesisSettings
from pipeline.sources.base import Reading, Unreadable
from pipeline.sources.dynamodb.records import refused_record, too_large
from pipeline.sources.kinds import snapshotter, stream_api
from pipeline.sources.preflight import Looked, preflight
from pipeline.sources.stream_source import StreamSource


def attach(worker: Worker) -> None:
    """Attach the agent, with a source for each entry of the settings."""
    if not worker.settings.sources:
        raise UsageError("the agent ingest needs [[sources]]", hint="headwater check")
    looked: list[Looked] = []
    names = [f"@{settings.kind}-{number}" for number, settings in enumerate(worker.settings.sources)]
    for name, settings in zip(names, worker.settings.sources, strict=True):
        api = stream_api(settings, worker.settings.kafka.max_message_bytes)
        source = StreamSource(
            worker.transport,
            api,
            settings,
            worker.metrics,
            name,
            worker.topics.shards,
            worker.topics.gaps,
            since=partial(since, settings.start),
            start_after=settings.start_after if isinstance(settings, KinesisSettings) else None,
            snapshots=snapshotter(settings),
        )
        worker.transport.add_participant(source)
        looked.append(Looked(settings, api, source.snapshots))
    worker.preflights.append(partial(preflight, looked))

    @worker.agent("ingest", *names)
    async def ingest(stream: Stream[Reading]) -> None:
        await worker.process(stream, "ingest", partial(write, worker))


def since(start: str | datetime) -> float | None:
    """Return the time from which on the changes of a stream that is found now are wanted; None: all it holds."""
    if isinstance(start, datetime):
        return start.timestamp()
    return aws.now() if start == "latest" else None


def write(worker: Worker, reading: Reading) -> None:
    """Write what one answer of AWS brought, in its order."""
    for mark in reading.marks:
        for partition in range(worker.settings.partitions):
            worker.produce(worker.topics.ingest, None, mark, partition)
    places, rejected = taken(worker, reading)
    records = reading.cut.records if not rejected else [reading.cut.records[place] for place in places]
    worker.produce_batch(worker.topics.ingest, records, origin=lambda n: (id(reading), places[n]))
    shard = reading.shard
    for unreadable in [*reading.cut.unreadable, *rejected]:
        worker.write_dead_letter(unreadable.letter(shard.arn, shard.shard_id, shard.table))
    worker.metrics.count(worker.metrics.changes, len(records), "ingest")


def taken(worker: Worker, reading: Reading) -> tuple[Sequence[int], list[Unreadable]]:
    """Return the places of the records that the ingest topic takes; and those that are too large, or that were refused."""
    records, most = reading.cut.records, worker.settings.kafka.max_message_bytes
    errors: dict[int, Exception] = {
        place: too_large(len(record["value"]), most)
        for place, record in enumerate(records)
        if len(record["value"]) > most
    }
    if known := worker.transport.transaction.refused:
        found = ((n, known.of((id(reading), n))) for n in range(len(records)))
        errors |= {n: error for n, error in found if error is not None}
    places = range(len(records)) if not errors else [n for n in range(len(records)) if n not in errors]
    return places, [refused_record(records[place], error) for place, error in sorted(errors.items())]
