"""deduplicate: the ingest topic -> the raw topic, every change once."""

from __future__ import annotations

from functools import partial

from faust import Stream

from pipeline.app import Worker
from pipeline.state.newest import NewestTimes
from pipeline.state.seen import SeenTable
from pipeline.steps.deduplicate import deduplicate as deduplicate_step
from pipeline.steps.late import late_ones
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
    newest = NewestTimes(topics.ingest)
    worker.transport.join(newest)

    @worker.agent("deduplicate", topics.ingest)
    async def deduplicate(stream: Stream[Batch]) -> None:
        await worker.process(stream, "deduplicate", partial(write, worker, seen, newest))


def write(worker: Worker, seen: SeenTable, newest: NewestTimes, batch: Batch) -> None:
    """Write the changes of a batch that were not seen. Ingest and raw have equal partitions: an item stays in its own."""
    remember = partial(seen.add_new, batch.partition, at=batch.last_timestamp)
    fresh, duplicates, rejected = deduplicate_step(batch.values(), remember)
    write_raw(worker, newest, batch.where(fresh))
    for index, error in rejected:
        worker.reject(batch, index, "deduplicate", error)
    worker.metrics.count(worker.metrics.changes, len(batch), "deduplicate")
    worker.metrics.count(worker.metrics.duplicates, duplicates)


def write_raw(worker: Worker, newest: NewestTimes, batch: Batch) -> None:
    """Write changes in the order in which they came; one that came late says so in the header `late`."""
    raw, partition, records = worker.topics.raw, batch.partition, batch.copies()
    pairs = ((record["key"], record["value"] or b"") for record in records)
    written = 0
    for index, before in late_ones(pairs, partial(newest.take, partition)).items():
        worker.produce_batch(raw, records[written:index], partition)
        late = records[index]
        worker.produce(raw, late["key"], late["value"], partition, [("late", str(before).encode())])
        written = index + 1
    worker.produce_batch(raw, records[written:], partition)
