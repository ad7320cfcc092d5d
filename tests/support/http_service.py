"""An HTTP service for tests."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Service:
    """An HTTP service that answers what it is told, and remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, Mapping[str, str]]] = []
        self.status, self.body = 200, b'{"tier": "gold", "score": 0.1234567890123456789}'
        self.statuses: dict[str, int] = {}
        """By path, those that differ."""
        self.hangs_up = False
        """Whether it closes connections without saying so, as a service does with those that were idle for long."""
        self.posted: Callable[[bytes], tuple[int, bytes]] | None = None
        """Answers a POST: takes its body, returns status and body."""

    @contextmanager
    def running(self) -> Iterator[str]:
        service = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                service.asked.append((self.path, dict(self.headers)))
                self.answer(service.statuses.get(self.path, service.status), service.body)
                self.close_connection = service.hangs_up

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                assert service.posted is not None
                self.answer(*service.posted(body))

            def answer(self, status: int, body: bytes) -> None:
                self.send_response(status)
                self.send_header("Content-Length", str(0 if status == 204 else len(body)))
                self.end_headers()
                self.wfile.write(b"" if status == 204 else body)

            def log_message(self, *_: object) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads = True  # those of connections that clients keep
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            server.server_close()
            thread.join()
