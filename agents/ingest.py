"""ingest: what the sources read -> the ingest topic."""

from __future__ import annotations

import time
from datetime import datetime
from functools import partial

from faust import Stream

from pipeline.app import Worker
from pipeline.errors import UsageError
from pipeline.settings import Kinesis
from pipeline.sources.kinds import snapshotter, stream_api
from pipeline.sources.preflight import Looked, preflight
from pipeline.sources.reading import Reading
from pipeline.sources.streams import StreamSource


def attach(worker: Worker) -> None:
    """Attach the agent, with a source for each entry of the settings."""
    if not worker.settings.sources:
        raise UsageError("the agent ingest needs [[sources]]", hint="headwater check")
    looked: list[Looked] = []
    names = [f"@{settings.kind}-{number}" for number, settings in enumerate(worker.settings.sources)]
    for name, settings in zip(names, worker.settings.sources, strict=True):
        api = stream_api(settings)
        source = StreamSource(
            worker.transport,
            api,
            settings,
            worker.metrics,
            name,
            worker.topics.shards,
            worker.topics.gaps,
            since=partial(since, settings.start),
            start_after=settings.start_after if isinstance(settings, Kinesis) else None,
            snapshots=snapshotter(settings),
        )
        worker.transport.join(source)
        looked.append(Looked(settings, api, source.snapshots))
    worker.preflights.append(partial(preflight, looked))

    @worker.agent("ingest", *names)
    async def ingest(stream: Stream[Reading]) -> None:
        await worker.process(stream, "ingest", partial(write, worker))


def since(start: str | datetime) -> float | None:
    """Return the time from which on the changes of a stream that is found now are wanted; None: all it holds."""
    if isinstance(start, datetime):
        return start.timestamp()
    return time.time() if start == "latest" else None


def write(worker: Worker, reading: Reading) -> None:
    """Write what one answer of AWS brought, in its order."""
    for mark in reading.marks:
        for partition in range(worker.settings.partitions):
            worker.produce(worker.topics.ingest, None, mark, partition)
    worker.produce_batch(worker.topics.ingest, reading.cut.records)
    shard = reading.shard
    for unreadable in reading.cut.unreadable:
        worker.reject_letter(unreadable.letter(shard.arn, shard.shard_id, shard.table))
    worker.metrics.count(worker.metrics.changes, len(reading.cut.records), "ingest")
