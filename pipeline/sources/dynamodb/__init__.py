"""DynamoDB Streams: `streams.py` talks to AWS, `records.py` cuts answers into changes and is pure."""
