"""The map of the flow. One agent a file, all of one shape: topic in, pure steps, topic out.

    DynamoDB Streams, Kinesis           Lambda
          |  pipeline/sources/streams.py  |  pipeline/sources/lambda_handler.py: writes <p>.ingest as the agent does
          |  and snapshots: snapshot.py   |
          v                               v
    ingest        @<kind>               -> <p>.ingest, <p>.shards     agents/ingest.py
          |
    deduplicate   <p>.ingest            -> <p>.raw, <p>.seen, <p>.delivered  agents/deduplicate.py
          |
    transform     <p>.raw               -> <p>.sink.*, <p>.reference.*  agents/transform.py
          |
    lake          <p>.sink.*            -> Parquet files              agents/lake.py

What a step rejects goes to <p>.dead-letter; changes known to be lost are written to <p>.gaps.
"""
