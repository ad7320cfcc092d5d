"""replica: the sink topics -> another DynamoDB table."""

from __future__ import annotations

from functools import partial

from faust import Stream

from pipeline.errors import UsageError
from pipeline.runtime.worker import Worker
from pipeline.sinks.carrier import Carrier
from pipeline.sinks.replica.client import connect, replica_preflight
from pipeline.sinks.replica.sink import Replica, calls
from pipeline.sinks.replica.table import ReplicaTable
from pipeline.sources.preflight import made_patiently, patiently
from pipeline.transport import Batch


def attach(worker: Worker) -> None:
    """Attach the agent, for the one of the replicas that this worker runs."""
    settings, sinks = worker.settings, worker.topics.lake_sinks
    _, name = settings.destination or ("", "")
    (chosen,) = [replica for replica in settings.replicas if replica.name == name]
    if missing := [sink for sink in chosen.sinks if sink not in sinks]:
        raise UsageError(
            f"the replica {name}: no flow with the envelope dynamodb in JSON has the sink {', '.join(missing)}; "
            f"such sinks: {', '.join(sinks) or 'none'}",
            hint="set sinks of [[replicas]] to some of them; headwater check",
        )
    what = f"the replica {name}"
    client = made_patiently(partial(connect, chosen, calls(chosen)), what)
    worker.preflights.append(partial(patiently, [partial(replica_preflight, settings, chosen, client)], what))
    topics = [sinks[sink] for sink in chosen.sinks]
    carrier = Carrier(worker, Replica(chosen, ReplicaTable(client, chosen)), topics)

    @worker.agent("replica", *topics)
    async def apply_changes(stream: Stream[Batch]) -> None:
        await worker.process(stream, "replica", carrier.gather)
