"""The map of the flow. One agent a file, all of one shape: topic in, pure steps, topic out.

    DynamoDB Streams, Kinesis, snapshots        Lambda
          |  pipeline/sources/stream_source.py    |  pipeline/sources/lambda_handler.py: writes <p>.ingest, as the agent does
          v                                       v
    ingest        @<kind>               -> <p>.ingest, <p>.shards     agents/ingest.py
          |
    deduplicate   <p>.ingest            -> <p>.raw, <p>.seen, <p>.delivered  agents/deduplicate.py
          |
    transform   <p>.raw+<p>.retry -> <p>.sink.*, <p>.enriched.*, <p>.reference.*, <p>.flow-state, <p>.flows  agents/transform.py
          |  pipeline/flows/runner.py: the flows, compiled by pipeline/flows/compile.py, their steps in pipeline/steps/
          |
    lake          <p>.sink.*            -> <p>.lake-schemas, Parquet files or Iceberg tables  agents/lake.py
    mirror        <p>.sink.*            -> another Kafka cluster      agents/mirror.py
    replica       <p>.sink.*            -> another DynamoDB table     agents/replica.py
    pubsub        <p>.sink.*            -> Google Pub/Sub             agents/pubsub.py

<p> is the setting `prefix`. Kafka has no topic @<kind>: it is how a source delivers (`Source` in
pipeline/transport/participant.py, `Consumer.offer` in pipeline/transport/consumer.py). `headwater dlq retry`, `edit` and
`skip` write <p>.retry; the first two write <p>.ingest for what `ingest` and `deduplicate` have rejected.

The functions at each hop:

    stream -> slice      DynamoDBStreams.records, cut_answer -> ShardReader.read -> StreamSource.offer -> Consumer.offer
    slice -> <p>.ingest  `write` in agents/ingest.py -> Worker.produce_batch, which is Transaction.produce_batch;
                         then StreamSource.finish writes the position
    <p>.ingest -> raw    `write` in agents/deduplicate.py -> `deduplicate` in pipeline/steps/deduplicate.py -> write_raw
    raw -> sink topics   FlowRunner.write -> Flow.run -> FlowOutput.send -> Transaction.produce_many
    sink -> destination  Carrier.gather -> SinkRunner.gather, then `committed` -> `_work` in the sink's thread
    the lake's `_work`   LakeWriter.add -> OpenFile.add -> ColumnsLayout.table; LakeWriter.flush -> OpenFile.close ->
                         Objects.create; the offset follows in SinkRunner.finish

What a step rejects goes to <p>.dead-letter, what was done about it to <p>.dead-letter-states;
changes known to be lost are written to <p>.gaps; why a lake, a mirror, a replica or Pub/Sub waits, to <p>.sink-states.
The sinks keep one contract: pipeline/sinks/base.py. A replay reads <p>.raw again, into topics of its own, and says on
<p>.replays how far it is: pipeline/replay/.
"""

from __future__ import annotations

from typing import Any


def __getattr__(name: str) -> Any:
    """Say what is wrong to a program that looks for a class of OpenAI's Agents SDK: its package has the same name."""
    if name[:1].isupper():
        raise ImportError(
            f"agents has no {name}: this is the package of Headwater. That of openai-agents has the same name: each needs an "
            "environment of its own (try: uv tool install headwater; here: pip install --force-reinstall openai-agents)"
        )
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
