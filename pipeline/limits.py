"""Bounds that hold everywhere."""

MESSAGE_MAX = 16 << 20
"""Bytes of a record at most: a change with both images can be many times its 400 kB in DynamoDB, as JSON."""
