"""lake: the sink topics -> Parquet files."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import partial

from faust import Stream
from faust.types import TP

from models.change import decode
from pipeline.app import Worker
from pipeline.errors import UsageError
from pipeline.sinks.objects import Objects
from pipeline.sinks.parquet import Lake, row
from pipeline.transport import Batch
from pipeline.transport.consumer import Consumer

UPLOADS = 2
"""Files made and uploaded at once in a worker."""


def attach(worker: Worker) -> None:
    """Attach the agent, with the lake of the settings."""
    settings, sinks = worker.settings.lake, worker.topics.lake_sinks
    if settings.url is None or not sinks:
        raise UsageError("the agent lake needs lake.url and a flow with the envelope dynamodb", hint="headwater check")

    def hold(tp: TP, held: bool) -> None:
        consumer: Consumer = worker.app.consumer  # type: ignore[assignment]  # Faust types it by its interface
        change = consumer.hold if held else consumer.release
        worker.app.loop.call_soon_threadsafe(change, {tp}, "lake")

    lake = Lake(
        Objects(settings.url),
        sinks,
        worker.metrics,
        max_rows=settings.max_rows,
        max_age=settings.max_age,
        submit=ThreadPoolExecutor(UPLOADS, "lake").submit,
        hold=hold,
    )
    worker.transport.join(lake)

    @worker.agent("lake", *sinks.values())
    async def write_files(stream: Stream[Batch]) -> None:
        await worker.process(stream, "lake", partial(gather, worker, lake))


def gather(worker: Worker, lake: Lake, batch: Batch) -> None:
    """Gather the rows of a batch; the lake writes them when a file is due."""
    rows = []
    for index, (key, value) in enumerate(zip(batch.keys(), batch.values(), strict=True)):
        try:
            rows.append(row(decode(value), key or b"", batch.partition, batch.records[index].offset() or 0))
        except Exception as error:  # noqa: BLE001 - whatever is wrong with one change, the others go on
            worker.reject(batch, index, "lake", error)
    lake.add(TP(batch.topic, batch.partition), rows, batch.last_offset + 1)
    worker.metrics.count(worker.metrics.changes, len(batch), "lake")
