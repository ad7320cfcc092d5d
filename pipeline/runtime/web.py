"""The worker's pages: /livez, /readyz, /metrics, beside Faust's own."""

from __future__ import annotations

from typing import Any

from faust.web import Request, Response, View
from prometheus_client import generate_latest

from pipeline.runtime.worker import Worker
from pipeline.sources.stream_source import StreamSource

NOT_READY_AFTER_S = 60.0
"""Seconds without a commit after which a worker with work to do is not ready."""


def add_pages(worker: Worker) -> None:
    """Add the pages to the worker's app."""

    @worker.app.page("/livez")
    async def livez(web: View, request: Request) -> Response:
        return web.text("ok\n")

    @worker.app.page("/readyz")
    async def readyz(web: View, request: Request) -> Response:
        reason = why_not_ready(worker)
        return web.text(f"{reason or 'ok'}\n", status=503 if reason else 200)

    @worker.app.page("/metrics")
    async def metrics(web: View, request: Request) -> Response:
        consumer: Any = worker.app.consumer
        worker.metrics.partitions.set(len(consumer.worked_on(consumer.assignment())))
        worker.metrics.open_shards.set(
            sum(source.reading for source in worker.transport.sources if hasattr(source, "reading"))
        )
        return web.bytes(generate_latest(worker.metrics.registry), content_type="text/plain")


def why_not_ready(worker: Worker) -> str:
    """Return why the worker is not at work, or ''."""
    consumer: Any = worker.app.consumer
    if worker.app.rebalancing or not consumer.flow_active:
        return "partitions are being assigned"
    if not getattr(consumer, "reader", None) or consumer.reader.membership is None:
        return "not a member of the consumer group"
    for source in worker.transport.sources:
        if isinstance(source, StreamSource) and (reason := source.silent()):
            return reason
    if (seconds := consumer.seconds_without_commit()) > NOT_READY_AFTER_S:
        return f"there is work, and no slice was committed for {seconds:.0f} s"
    if stopped := [reason for stands in worker.pause_reasons for reason in stands().values()]:
        return "; ".join(stopped)
    if consumer.backlog.held:
        holders = sorted({holder for held in list(consumer.backlog.held.values()) for holder in held})
        return f"{len(consumer.backlog.held)} partitions are held, by {', '.join(holders)}"
    return ""
