"""pubsub: the sink topics -> Google Pub/Sub."""

from __future__ import annotations

from faust import Stream

from pipeline.runtime.worker import Worker
from pipeline.sinks.carrier import Carrier
from pipeline.sinks.pubsub import PubSub
from pipeline.transport import Batch


def attach(worker: Worker) -> None:
    """Attach the agent, for the one of [[pubsubs]] that this worker runs."""
    settings = worker.settings
    _, name = settings.destination or ("", "")
    (chosen,) = [pubsub for pubsub in settings.pubsubs if pubsub.name == name]
    sink = PubSub(chosen, worker.topics.sinks)
    worker.preflights.append(sink.prepare)
    carrier = Carrier(worker, sink, sink.topics)

    @worker.agent("pubsub", *sink.topics)
    async def publish(stream: Stream[Batch]) -> None:
        await worker.process(stream, "pubsub", carrier.gather)
