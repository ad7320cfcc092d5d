"""transform: the raw topic -> the sink topics, by the flows."""

from __future__ import annotations

from faust import Stream

from pipeline.errors import UsageError
from pipeline.flows.runner import FlowRunner
from pipeline.runtime.worker import Worker
from pipeline.transport import Batch


def attach(worker: Worker) -> None:
    """Attach the agent, with what its flows need."""
    if not worker.settings.flows:
        raise UsageError("the agent transform needs [[flows]]", hint="headwater check")
    runner = FlowRunner(worker)

    @worker.agent("transform", worker.topics.raw, worker.topics.retry)
    async def transform(stream: Stream[Batch]) -> None:
        await worker.process(stream, "transform", runner.write)
