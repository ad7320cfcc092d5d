"""lake: the sink topics -> Parquet files."""

from __future__ import annotations

import time

from faust import Stream

from pipeline.app import Worker
from pipeline.errors import UsageError
from pipeline.sinks.attach import Carrier
from pipeline.sinks.lake import LakeSink, Rotation
from pipeline.sinks.layouts import Layout
from pipeline.sinks.layouts.columns import ColumnsLayout
from pipeline.sinks.layouts.envelope import EnvelopeLayout
from pipeline.sinks.objects import Objects
from pipeline.sinks.schemas import Schemas
from pipeline.transport import Batch


def attach(worker: Worker) -> None:
    """Attach the agent, with the lake of the settings."""
    settings, sinks = worker.settings.lake, worker.topics.lake_sinks
    if settings.url is None or not sinks:
        raise UsageError("the agent lake needs lake.url and a flow with the envelope dynamodb", hint="headwater check")
    schemas = Schemas(worker.transport, worker.topics.lake_schemas)
    layout: Layout = EnvelopeLayout()
    if settings.layout == "columns":
        layout = ColumnsLayout(schemas.of, schemas.grow)
        worker.transport.join(schemas)
    lake = LakeSink(
        Objects(settings.url),
        layout,
        sinks,
        Rotation(settings.max_rows, settings.max_size, settings.max_age, settings.max_span),
        path=settings.path,
        clock=time.monotonic,
        memory=settings.memory,
        ready=schemas.read if settings.layout == "columns" else lambda: None,
    )
    carrier = Carrier(worker, lake)

    @worker.agent("lake", *sinks.values())
    async def write_files(stream: Stream[Batch]) -> None:
        await worker.process(stream, "lake", carrier.gather)
