"""Kinesis Data Streams: polled (`api.py`) or pushed by enhanced fan-out; records, aggregates and their order."""
