"""A canned stream of DynamoDB: what GetRecords answers is made beforehand, so that serving it costs next to nothing.

As a program: `python -m headwater.lab.bench.canned PORT SHARDS RECORDS`, so many records a shard. `GET /` tells the calls.
"""

from __future__ import annotations

import json
import sys
import threading
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from headwater.lab.bench.load import NOISE
from headwater.lab.processes import LOOPBACK

TABLE = "orders"
ARN = f"arn:aws:dynamodb:eu-west-1:123456789012:table/{TABLE}/stream/2026-11-23T00:00:00.000"
MOST_RECORDS, MOST_BYTES = 1_000, 1_000_000
"""In a GetRecords answer."""
ITEMS = 500
"""Items that the changes of a shard are of."""
NOTE = 96
FIRST, APART = 10**20, 10**12
"""The first sequence number, and how far those of the shards are apart."""
ODD = 0x9E3779B97F4A7C15F39CC0605CEDC835
"""Times an odd number, modulo a power of two: as good as random, and never twice the same."""
IMAGE = (
    b'{"order_id":{"S":"%(order)s"},"line":{"N":"%(line)d"},"status":{"S":"%(status)s"},"customer":{"S":"c-%(item)07d"},'
    b'"total":{"N":"%(number)08d.95"},"tags":{"SS":["gift","express"]},"paid":{"BOOL":true},'
    b'"ship_to":{"M":{"city":{"S":"Lisboa"},"zip":{"S":"%(item)05d"}}},"lines":{"L":[{"M":{"sku":{"S":"A-%(item)05d"},'
    b'"quantity":{"N":"2"}}}]},"note":{"S":"%(note)s"}}'
)
RECORD = (
    b'{"eventID":"%(id)s","eventName":"MODIFY","eventVersion":"1.1","eventSource":"aws:dynamodb","awsRegion":"eu-west-1",'
    b'"dynamodb":{"ApproximateCreationDateTime":1700000000,"Keys":{"order_id":{"S":"%(order)s"},"line":{"N":"%(line)d"}},'
    b'"NewImage":%(new)s,"OldImage":%(old)s,"SequenceNumber":"%(sequence)d","SizeBytes":620,'
    b'"StreamViewType":"NEW_AND_OLD_IMAGES"}}'
)


def shard_id(shard: int) -> str:
    """Return the ID of a shard."""
    return f"shardId-{1_700_000_000_000 + shard:020d}-{shard:08x}"


def event_id(shard: int, number: int) -> str:
    """Return the event ID of a shard's record."""
    return f"{(shard << 64 | number) * ODD % 2**128:032x}"


def sequence(shard: int, number: int) -> int:
    """Return the sequence number of a shard's record."""
    return FIRST + shard * APART + number


def number_of(sequence_number: str) -> int:
    """Return which record of its shard has this sequence number."""
    return (int(sequence_number) - FIRST) % APART


def record(shard: int, number: int) -> bytes:
    """Return a record as GetRecords gives it; all have the same size."""
    item = number * 7919 % ITEMS
    at = number * 37 % (len(NOISE) - NOTE)
    facts = {b"order": b"o-%04d-%06d" % (shard, item), b"line": 1000 + item, b"item": item, b"number": number}
    facts[b"note"] = NOISE[at : at + NOTE]
    images = {b"new": IMAGE % (facts | {b"status": b"paid"}), b"old": IMAGE % (facts | {b"status": b"open"})}
    return RECORD % (facts | images | {b"id": event_id(shard, number).encode(), b"sequence": sequence(shard, number)})


PER_ANSWER = min(MOST_RECORDS, MOST_BYTES // (len(record(0, 0)) + 1))
"""Records in a full answer."""


def get_records(shard: int, first: int, end: int) -> bytes:
    """Return the body of the answer with the records from `first` to the next answer's, or to the shard's `end`."""
    upto = min(first + PER_ANSWER, end)
    records = b",".join(record(shard, number) for number in range(first, upto))
    return b'{"Records":[%s],"NextShardIterator":"%s"}' % (records, iterator(shard, upto).encode())


def iterator(shard: int, number: int) -> str:
    """Return an iterator before a record, about as long as those of AWS."""
    return f"{ARN}|{shard}|{number}|{'A' * 180}"


def response(body: bytes) -> bytes:
    """Return a whole HTTP response."""
    head = (
        "HTTP/1.1 200 OK\r\nContent-Type: application/x-amz-json-1.0\r\nx-amzn-RequestId: CANNED\r\n"
        f"x-amz-crc32: {zlib.crc32(body)}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


class Canned:
    """A stream with so many shards, all open, and so many records in each."""

    def __init__(self, shards: int, records: int) -> None:
        self.calls: Counter[str] = Counter()
        self._shards, self._records = shards, records
        starts = [*range(0, records, PER_ANSWER), records]
        self._answers = {
            f"{shard}|{first}": response(get_records(shard, first, records))
            for shard in range(shards)
            for first in starts
        }

    def answer(self, call: str, request: dict[str, Any]) -> bytes:
        """Return the HTTP response to a call."""
        self.calls[call] += 1
        if call == "GetRecords":
            _, shard, number, _ = request["ShardIterator"].split("|")
            return self._answers[f"{shard}|{number}"]
        calls = {
            "DescribeTable": self._describe_table,
            "DescribeStream": self._describe_stream,
            "GetShardIterator": self._get_shard_iterator,
        }
        return response(json.dumps(calls[call](request)).encode())

    def _describe_table(self, request: dict[str, Any]) -> dict[str, Any]:
        specification = {"StreamEnabled": True, "StreamViewType": "NEW_AND_OLD_IMAGES"}
        table = {"TableName": TABLE, "TableStatus": "ACTIVE", "LatestStreamArn": ARN}
        return {"Table": table | {"StreamSpecification": specification}}

    def _describe_stream(self, request: dict[str, Any]) -> dict[str, Any]:
        shards = [
            {"ShardId": shard_id(shard), "SequenceNumberRange": {"StartingSequenceNumber": str(sequence(shard, 0))}}
            for shard in range(self._shards)
        ]
        return {
            "StreamDescription": {"StreamArn": ARN, "StreamStatus": "ENABLED", "TableName": TABLE, "Shards": shards}
        }

    def _get_shard_iterator(self, request: dict[str, Any]) -> dict[str, Any]:
        shard = int(request["ShardId"].rpartition("-")[2], 16)
        after = request["ShardIteratorType"] == "AFTER_SEQUENCE_NUMBER"
        number = number_of(request["SequenceNumber"]) + after if "SequenceNumber" in request else 0
        return {"ShardIterator": iterator(shard, number)}


class Server(ThreadingHTTPServer):
    """Serves a canned stream on the loopback."""

    daemon_threads = True

    def __init__(self, canned: Canned, port: int = 0) -> None:
        super().__init__((LOOPBACK, port), _Handler)
        self.canned = canned

    @property
    def url(self) -> str:
        """What AWS_ENDPOINT_URL must be."""
        return f"http://{LOOPBACK}:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        call = self.headers["X-Amz-Target"].rpartition(".")[2]
        self.wfile.write(self.server.canned.answer(call, request))

    def do_GET(self) -> None:
        self.wfile.write(response(json.dumps(self.server.canned.calls).encode()))

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def serving(canned: Canned) -> Iterator[Server]:
    """Serve in a thread."""
    with Server(canned) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


if __name__ == "__main__":
    Server(Canned(int(sys.argv[2]), int(sys.argv[3])), int(sys.argv[1])).serve_forever()
