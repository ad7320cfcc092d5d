"""transform: the raw topic -> the sink topics, by the flows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

from faust import Stream

from models.change import decode
from pipeline.app import Worker
from pipeline.errors import UsageError
from pipeline.flows import compile_flow
from pipeline.state.reference import ReferenceTable
from pipeline.steps.enrich import reference_key
from pipeline.steps.route import FlowSteps, headers, run_flow
from pipeline.transport import Batch


def attach(worker: Worker) -> None:
    """Attach the agent, with the reference tables that its flows join."""
    if not worker.settings.flows:
        raise UsageError("the agent transform needs [[flows]]", hint="headwater check")
    topics, references = worker.topics, {}
    for table, topic in topics.references.items():
        references[table] = ReferenceTable(worker.transport, topic, topics.raw, worker.settings.state_dir)
        worker.transport.join(references[table])
    lookups = {table: reference.get for table, reference in references.items()}
    flows = [compile_flow(flow, lookups) for flow in worker.settings.flows]

    @worker.agent("transform", topics.raw)
    async def transform(stream: Stream[Batch]) -> None:
        await worker.process(stream, "transform", partial(write, worker, flows, references))


def write(worker: Worker, flows: Sequence[FlowSteps], references: Mapping[str, ReferenceTable], batch: Batch) -> None:
    """Run each change of a batch through every flow. Sinks have the partitions of raw: an item stays in its own."""
    metrics = worker.metrics
    for index, (key, value) in enumerate(zip(batch.keys(), batch.values(), strict=True)):
        try:
            change = decode(value)
            if change.table in references:
                references[change.table].put(reference_key(change), change.after, batch.partition)
            routed = [message for flow in flows for message in run_flow(flow, value, change)]
        except Exception as error:  # noqa: BLE001 - whatever is wrong with one change, the others go on
            worker.reject(batch, index, "transform", error)
            continue
        for message in routed:
            worker.produce(worker.topics.sink(message.sink), key, message.value, batch.partition, headers(change))
            metrics.count(metrics.sunk, 1, message.sink)
    metrics.count(metrics.changes, len(batch), "transform")
