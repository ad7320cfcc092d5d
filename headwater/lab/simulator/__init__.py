"""A simulator of AWS streams: what the stand-ins do not do, on purpose and from a seed.

`history` is a stream as AWS keeps it, `world` writes tables into streams and reshapes them, `faults` says which call fails,
`dynamodb` and `kinesis` are the two APIs, `server` serves them over HTTP to boto3.
"""
