"""A Schema Registry over HTTP, in this process: what of Confluent's API our client asks for, and how it refuses.

The mock of confluent-kafka has neither the client's caches nor any rule of compatibility; this has both. Its rules are those of
Confluent's JSON Schema provider for members that come and go, and what a test says.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

ANNOTATIONS = {"kind", "wide", "connect.index"}
"""What says nothing about which values are allowed."""


class Registry:
    """Subjects and their schemas."""

    def __init__(self) -> None:
        self.subjects: dict[str, list[dict[str, Any]]] = {}
        self.refuses: Callable[[str], bool] = lambda schema: False
        """Whether a schema is refused as incompatible."""
        self.before_register: Callable[[], object] | None = None
        """Called once, before the next schema is registered: what another worker does just then."""
        self.away = False
        self.url = ""

    def answer(self, method: str, path: list[str], body: dict[str, Any]) -> tuple[int, Any]:
        """Return the status and the body of an answer."""
        if self.away:
            return 503, {"error_code": 50300, "message": "away"}
        if path[0] == "schemas":
            found = [one for many in self.subjects.values() for one in many if one["id"] == int(path[2])]
            return (200, found[0]) if found else (404, {"error_code": 40403, "message": "Schema not found"})
        if path[:2] == ["apis", "registry"]:
            return self._as_apicurio(path[5:])
        if path[0] != "subjects":  # a registry of some years ago
            return 404, {"error_code": 404, "message": "HTTP 404 Not Found"}
        versions = self.subjects.get(path[1], [])
        if method == "GET":
            number = len(versions) if path[3] == "latest" else int(path[3])
            if not 0 < number <= len(versions):
                return 404, {"error_code": 40401, "message": "Subject or version not found"}
            return 200, versions[number - 1]
        same = [version for version in versions if version["schema"] == body["schema"]]
        if len(path) == 2:
            return (200, same[0]) if same else (404, {"error_code": 40403, "message": "Schema not found"})
        if (happens := self.before_register) is not None:
            self.before_register = None
            happens()
            return self.answer(method, path, body)
        return (200, {"id": same[0]["id"]}) if same else self._register(path[1], body)

    def _as_apicurio(self, path: list[str]) -> tuple[int, Any]:
        """Answer what Apicurio's client asks for: a schema by its ID, and what it refers to."""
        if path[1:] == ["references"]:
            return 200, []
        found = [one for many in self.subjects.values() for one in many if one["id"] == int(path[0])]
        return (200, json.loads(found[0]["schema"])) if found else (404, {"error_code": 404, "message": "not there"})

    def _register(self, subject: str, body: dict[str, Any]) -> tuple[int, Any]:
        versions = self.subjects.setdefault(subject, [])
        old = json.loads(versions[-1]["schema"]) if versions and body.get("schemaType") == "JSON" else None
        if self.refuses(body["schema"]) or (old and not goes_with(old, json.loads(body["schema"]))):
            return 409, {"error_code": 409, "message": "incompatible"}
        number = 1 + sum(map(len, self.subjects.values()))
        versions.append({**body, "subject": subject, "version": len(versions) + 1, "id": number})
        return 200, {"id": number}


def goes_with(old: dict[str, Any], new: dict[str, Any]) -> bool:
    """Say whether what the old JSON Schema allows, the new one does, as Confluent's registry decides it (BACKWARD)."""
    if not set(new) - ANNOTATIONS or old == new:
        return True  # anything goes
    if "oneOf" in new:
        branches = old.get("oneOf", [old])
        return all(any(goes_with(branch, other) for other in new["oneOf"]) for branch in branches)
    if old.get("type") != new.get("type") or "oneOf" in old:
        return False
    before, after = old.get("properties", {}), new.get("properties", {})
    others_before, others_after = old.get("additionalProperties", {}), new.get("additionalProperties", {})
    return (
        all(goes_with(before.get(name, others_before), after[name]) for name in after)
        and all(goes_with(before[name], others_after) for name in before.keys() - after.keys())
        and goes_with(others_before, others_after)
    )


@contextmanager
def serve() -> Iterator[Registry]:
    """Run a registry."""
    registry = Registry()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._do("GET")

        def do_POST(self) -> None:
            self._do("POST")

        def _do(self, method: str) -> None:
            size = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(size) or b"{}")
            path = [unquote(part) for part in urlsplit(self.path).path.strip("/").split("/")]
            status, answer = registry.answer(method, path, body)
            content = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/vnd.schemaregistry.v1+json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *args: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    registry.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield registry
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
