"""A real HTTP proxy before an object store in trouble: it slows down, breaks uploads off, loses answers, or has no bucket."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from itertools import cycle
from threading import Lock

import urllib3

from support.http_server import listening

SLOW_DOWN = b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
NO_BUCKET = b"<Error><Code>NoSuchBucket</Code><Message>The specified bucket does not exist</Message></Error>"
OURS = {"host", "connection", "transfer-encoding", "content-length"}


class TroubledStore:
    """What the store does: one of so many calls is in trouble, each kind of trouble in its turn; 0: none is."""

    def __init__(self, upstream: str, every: int) -> None:
        self.upstream, self.every = upstream, every
        self.bucket_is_gone = False
        self.done: Counter[str] = Counter()
        self.http = urllib3.PoolManager(maxsize=16, retries=False)
        self._troubles, self._lock, self._calls = cycle(("slow", "broken off", "no answer")), Lock(), 0
        self.url = ""

    def fate(self, method: str) -> str:
        """Say what becomes of a call."""
        with self._lock:
            self._calls += 1
            fate = "done"
            if self.bucket_is_gone:
                fate = "gone"
            elif self.every and self._calls % self.every == 0:
                fate = next(self._troubles)
            self.done[fate] += 1
            self.done[method] += 1
            return fate


@contextmanager
def troubled_store(upstream: str, every: int) -> Iterator[TroubledStore]:
    """Serve on a free port until the end of the block."""
    store = TroubledStore(upstream, every)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def forward(self) -> None:
            fate, length = store.fate(self.command), int(self.headers.get("Content-Length", 0))
            if fate == "broken off":
                self.rfile.read(length // 2)
                self.close_connection = True
                return
            body = self.rfile.read(length)
            if fate == "slow":
                self.answer(503, {}, SLOW_DOWN)
            elif fate == "gone":
                self.answer(404, {}, NO_BUCKET)
            else:
                headers = {name: value for name, value in self.headers.items() if name.lower() not in OURS}
                url = f"{store.upstream}{self.path}"
                found = store.http.request(self.command, url, body=body, headers=headers, decode_content=False)
                if fate == "no answer":  # it was done, and nobody is told
                    self.close_connection = True
                    return
                kept = {name: value for name, value in found.headers.items() if name.lower() not in OURS}
                self.answer(found.status, kept, found.data, int(found.headers.get("Content-Length") or 0))

        do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = forward  # noqa: N815 - as http.server names them

        def answer(self, status: int, headers: dict[str, str], body: bytes, length: int = 0) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(length if self.command == "HEAD" else len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - as http.server names it
            pass

    with listening(Handler) as store.url:
        yield store
