"""Sources: bring changes in from AWS, and write with them how far each shard was read.

`base.py` is their contract; `stream_source.py` follows the slices, `discovery.py` finds shards, `shard_reader.py` reads one.
What AWS is asked is in `dynamodb`, `kinesis` and `snapshots`. Not here: dropping what came twice (`agents/deduplicate.py`).
"""
