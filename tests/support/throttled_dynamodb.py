"""A real HTTP proxy before a DynamoDB that throttles: it refuses writes, or breaks connections after the write was done."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from threading import Lock

import urllib3

from support.http_server import listening

WRITES = {"PutItem", "DeleteItem", "TransactWriteItems"}
KEPT = {"content-type", "x-amz-target", "x-amz-date", "authorization", "x-amz-security-token", "user-agent"}


class Throttling:
    """What a proxy does: each write is refused, answered by a 5xx, or done without an answer, with this probability."""

    def __init__(self, upstream: str, share: float, seed: int = 1) -> None:
        self.upstream, self.share = upstream, share
        self.done: Counter[str] = Counter()
        self.http = urllib3.PoolManager(maxsize=64, retries=False)
        self._random, self._lock = random.Random(seed), Lock()  # noqa: S311 - trouble
        self.url = ""

    def fate(self, operation: str) -> str:
        """Draw what becomes of a call."""
        with self._lock:
            trouble = operation in WRITES and self._random.random() < self.share
            fate = self._random.choice(["throttled", "failed", "broken"]) if trouble else "done"
            self.done[fate] += 1
            self.done[operation] += 1
            return fate


@contextmanager
def throttling(upstream: str, share: float) -> Iterator[Throttling]:
    """Serve on a free port until the end of the block."""
    proxy = Throttling(upstream, share)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            operation = self.headers.get("X-Amz-Target", "").rpartition(".")[2]
            fate = proxy.fate(operation)
            if fate == "throttled":
                self.answer(400, error("ProvisionedThroughputExceededException"))
                return
            if fate == "failed":
                self.answer(500, error("InternalServerError"))
                return
            headers = {name: value for name, value in self.headers.items() if name.lower() in KEPT}
            found = proxy.http.request("POST", proxy.upstream, body=body, headers=headers)
            if fate == "broken":  # it was done, and nobody is told
                self.close_connection = True
                return
            self.answer(found.status, found.data)

        def answer(self, status: int, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", "application/x-amz-json-1.0")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - as http.server names it
            pass

    with listening(Handler) as proxy.url:
        yield proxy


def error(code: str) -> bytes:
    """Return the body of an error as DynamoDB has it."""
    return json.dumps({"__type": f"com.amazonaws.dynamodb.v20120810#{code}", "message": "injected"}).encode()
