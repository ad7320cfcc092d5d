"""ingest: what the sources read -> the ingest topic."""

from __future__ import annotations

from functools import partial

from faust import Stream

from models.dead_letter import DeadLetter
from pipeline.app import Worker
from pipeline.errors import UsageError
from pipeline.sources.dynamodb import DynamoDBStreams, Reading


def attach(worker: Worker) -> None:
    """Attach the agent, with a source for each entry of the settings."""
    if not worker.settings.sources:
        raise UsageError("the agent ingest needs [[sources]]", hint="headwater check")
    names = [f"@{settings.kind}-{number}" for number, settings in enumerate(worker.settings.sources)]
    for name, settings in zip(names, worker.settings.sources, strict=True):
        source = DynamoDBStreams(worker.transport, settings, name, worker.topics.shards, worker.topics.gaps)
        worker.transport.join(source)
        worker.preflights.append(source.preflight)

    @worker.agent("ingest", *names)
    async def ingest(stream: Stream[Reading]) -> None:
        await worker.process(stream, "ingest", partial(write, worker))


def write(worker: Worker, reading: Reading) -> None:
    """Write what one GetRecords answer brought, in its order."""
    for key, value in reading.cut.records:
        worker.produce(worker.topics.ingest, key, value)
    for unreadable in reading.cut.unreadable:
        shard = reading.shard
        worker.reject_letter(
            DeadLetter(f"{shard.arn}/{shard.shard_id}", -1, -1, "ingest", unreadable.error, None, unreadable.value, [])
        )
    worker.metrics.count(worker.metrics.changes, len(reading.cut.records), "ingest")
