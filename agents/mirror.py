"""mirror: the sink topics -> another Kafka cluster."""

from __future__ import annotations

from faust import Stream

from pipeline.runtime.worker import Worker
from pipeline.sinks.carrier import Carrier
from pipeline.sinks.mirror.sink import Mirror, copied
from pipeline.transport import Batch


def attach(worker: Worker) -> None:
    """Attach the agent, for the one of the mirrors that this worker runs."""
    settings = worker.settings
    _, name = settings.destination or ("", "")
    (chosen,) = [mirror for mirror in settings.mirrors if mirror.name == name]
    wanted = copied(chosen, worker.topics.sinks, settings.partitions)
    mirror = Mirror(chosen, worker.transport.client_conf(), settings.group, wanted)
    worker.preflights.append(mirror.prepare)
    carrier = Carrier(worker, mirror, wanted)

    @worker.agent("mirror", *wanted)
    async def carry(stream: Stream[Batch]) -> None:
        await worker.process(stream, "mirror", carrier.gather)
