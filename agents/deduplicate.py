"""deduplicate: the ingest topic -> the raw topic, every change once."""

from __future__ import annotations

from functools import partial

from faust import Stream

from pipeline.app import Worker
from pipeline.state.seen import SeenTable
from pipeline.steps.deduplicate import deduplicate as deduplicate_step
from pipeline.transport import Batch


def attach(worker: Worker) -> None:
    """Attach the agent, with its seen table."""
    topics = worker.topics
    settings = worker.settings
    seen = SeenTable(
        worker.transport,
        topics.ingest,
        topics.seen,
        settings.state_dir,
        settings.dedup_window,
        standby_replicas=settings.standby_replicas,
    )
    worker.transport.join(seen)

    @worker.agent("deduplicate", topics.ingest)
    async def deduplicate(stream: Stream[Batch]) -> None:
        await worker.process(stream, "deduplicate", partial(write, worker, seen))


def write(worker: Worker, seen: SeenTable, batch: Batch) -> None:
    """Write the changes of a batch that were not seen. Ingest and raw have equal partitions: an item stays in its own."""
    remember = partial(seen.add_new, batch.partition, at=batch.last_timestamp)
    fresh, duplicates, rejected = deduplicate_step(batch.values(), remember)
    worker.produce_batch(worker.topics.raw, batch.where(fresh).copies(), batch.partition)
    for index, error in rejected:
        worker.reject(batch, index, "deduplicate", error)
    worker.metrics.count(worker.metrics.changes, len(batch), "deduplicate")
    worker.metrics.count(worker.metrics.duplicates, duplicates)
