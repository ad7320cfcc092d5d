"""lake: the sink topics -> Parquet files, or Iceberg tables."""

from __future__ import annotations

import time
from collections.abc import Mapping

from faust import Stream

from pipeline.errors import UsageError
from pipeline.runtime.worker import Worker
from pipeline.settings.sinks import LakeSettings
from pipeline.sinks.base import Sink
from pipeline.sinks.carrier import Carrier
from pipeline.sinks.lake.known_gaps import KnownGaps
from pipeline.sinks.lake.layouts import Layout
from pipeline.sinks.lake.layouts.columns import ColumnsLayout
from pipeline.sinks.lake.layouts.envelope import EnvelopeLayout
from pipeline.sinks.lake.objects import Objects
from pipeline.sinks.lake.schemas import Schemas
from pipeline.sinks.lake.sink import LakeSink, Rotation
from pipeline.transport import Batch


def attach(worker: Worker) -> None:
    """Attach the agent, with the lake of the settings."""
    settings = worker.settings.chosen_lake
    sinks = worker.topics.sinks_of(settings)
    if settings.url is None or not sinks:
        raise UsageError("the agent lake needs lake.url and a flow with the envelope dynamodb", hint="headwater check")
    rotation = Rotation(settings.max_rows, settings.max_size, settings.max_age, settings.max_span)
    make = iceberg if settings.table == "iceberg" else parquet
    carrier = Carrier(worker, make(worker, settings, settings.url, sinks, rotation), sinks.values())

    @worker.agent("lake", *sinks.values())
    async def lake(stream: Stream[Batch]) -> None:
        await worker.process(stream, "lake", carrier.gather)


def parquet(worker: Worker, settings: LakeSettings, url: str, sinks: Mapping[str, str], rotation: Rotation) -> Sink:
    """Return the lake of files, with the schemas that their columns follow."""
    schemas = Schemas(worker.transport, worker.topics.lake_schemas)
    gaps = KnownGaps(worker.transport, worker.topics.gaps)
    columns = settings.layout == "columns"
    layout: Layout = ColumnsLayout(schemas.of, schemas.grow) if columns else EnvelopeLayout()

    def ready() -> None:
        gaps.read()
        if columns:
            schemas.read()

    return LakeSink(
        Objects(url),
        layout,
        sinks,
        rotation,
        path=settings.path,
        clock=time.monotonic,
        memory=settings.memory,
        gaps=gaps.of,
        ready=ready,
    )


def iceberg(worker: Worker, settings: LakeSettings, url: str, sinks: Mapping[str, str], rotation: Rotation) -> Sink:
    """Return the lake of tables."""
    from pipeline.sinks.lake.iceberg.sink import IcebergSink  # noqa: PLC0415 - an extra

    return IcebergSink(
        {"warehouse": url, **settings.catalog},
        settings.namespace,
        rotation,
        layout=settings.layout,
        mode=settings.mode,
        clock=time.monotonic,
        memory=settings.memory,
        sinks=sinks,
    )
