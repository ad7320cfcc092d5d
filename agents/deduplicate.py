"""deduplicate: the ingest topic -> the raw topic, every change once."""

from __future__ import annotations

from functools import partial

from faust import Stream

from models.dead_letter import LATE
from pipeline.runtime.worker import Worker
from pipeline.state.delivered import Delivered, DeliveredItems
from pipeline.state.newest import NewestTimes
from pipeline.state.seen import SeenTable
from pipeline.steps.deduplicate import deduplicate as deduplicate_step
from pipeline.steps.late import late_ones, marked
from pipeline.steps.snapshot import admit
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
    worker.transport.add_participant(seen)
    delivered = Delivered(worker.transport, topics.ingest, topics.delivered, settings.state_dir)
    worker.transport.add_participant(delivered)
    newest = NewestTimes(topics.ingest)
    worker.transport.add_participant(newest)

    @worker.agent("deduplicate", topics.ingest)
    async def deduplicate(stream: Stream[Batch]) -> None:
        await worker.process(stream, "deduplicate", partial(write, worker, seen, delivered, newest))


def write(worker: Worker, seen: SeenTable, delivered: Delivered, newest: NewestTimes, batch: Batch) -> None:
    """Write the changes of a batch that were not seen. Ingest and raw have equal partitions: an item stays in its own."""
    remember = partial(seen.add_new, batch.partition)
    fresh, duplicates, rejected, snapshot = deduplicate_step(batch.values(), remember)
    changes = batch.where(fresh)
    memory = delivered.memory(batch.partition)
    if snapshot or memory.active:
        changes = join_snapshots(worker, memory, changes)
    write_raw(worker, newest, changes)
    for index, error in rejected:
        worker.reject(batch, index, "deduplicate", error)
    worker.metrics.count(worker.metrics.changes, len(batch), "deduplicate")
    worker.metrics.count(worker.metrics.duplicates, duplicates)


def join_snapshots(worker: Worker, memory: DeliveredItems, batch: Batch) -> Batch:
    """Return what is left of a batch while snapshots run: without their marks, and the rows that the stream is ahead of."""
    joined = admit(zip(batch.keys(), batch.values(), strict=True), memory)
    worker.metrics.count(worker.metrics.snapshot_rows, joined.written, "written")
    worker.metrics.count(worker.metrics.snapshot_rows, joined.superseded, "superseded")
    return batch.where(joined.keep)


def write_raw(worker: Worker, newest: NewestTimes, batch: Batch) -> None:
    """Write changes in the order in which they came; one that came late says so in the header `late`.

    Late is what Kinesis delivered after a newer change of its item, and what was a dead letter meanwhile.
    """
    raw, partition, records = worker.topics.raw, batch.partition, batch.copies()
    pairs = ((record["key"], record["value"] or b"") for record in records)
    late = {**marked(batch.headers()), **late_ones(pairs, partial(newest.take, partition))}
    written = 0
    for index, before in sorted(late.items()):
        worker.produce_batch(raw, records[written:index], partition)
        record = records[index]
        worker.produce(raw, record["key"], record["value"], partition, [(LATE, str(before).encode())])
        written = index + 1
    worker.produce_batch(raw, records[written:], partition)
