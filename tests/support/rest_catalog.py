"""A REST catalog for tests: what pyiceberg asks of one, answered by an SQL catalog on local files."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from pyiceberg.catalog import load_catalog
from pyiceberg.exceptions import (
    CommitFailedException,
    NamespaceAlreadyExistsError,
    NoSuchNamespaceError,
    NoSuchTableError,
    TableAlreadyExistsError,
)
from pyiceberg.schema import Schema
from pyiceberg.table import CommitTableRequest, Table

STATUSES: dict[type[Exception], int] = {
    NoSuchTableError: 404,
    NoSuchNamespaceError: 404,
    NamespaceAlreadyExistsError: 409,
    TableAlreadyExistsError: 409,
    CommitFailedException: 409,
}


class RestCatalog:
    """The service; `commits` counts those to tables, by name."""

    def __init__(self, directory: Path) -> None:
        settings = {"type": "sql", "uri": f"sqlite:///{directory}/behind.db", "warehouse": f"file://{directory}/wh"}
        self.catalog: Any = load_catalog("behind", **settings)
        self.commits: list[str] = []
        self._lock = threading.Lock()

    def answer(self, method: str, path: list[str], body: bytes) -> tuple[int, Any]:
        """Return status and answer."""
        with self._lock:
            try:
                return 200, self._answer(method, path, body)
            except tuple(STATUSES) as error:
                status = next(status for kind, status in STATUSES.items() if isinstance(error, kind))
                return status, {"error": {"message": str(error), "type": type(error).__name__, "code": status}}

    def _answer(self, method: str, path: list[str], body: bytes) -> Any:
        match method, path:
            case "GET", ["config"]:
                return {"defaults": {}, "overrides": {}}
            case "POST", ["namespaces"]:
                asked = json.loads(body)
                self.catalog.create_namespace(tuple(asked["namespace"]))
                return {"namespace": asked["namespace"], "properties": {}}
            case "POST", ["namespaces", namespace, "tables"]:
                asked = json.loads(body)
                assert asked["stage-create"], "a table that is there before its rows"
                name = (namespace, asked["name"])
                if self.catalog.table_exists(name):
                    raise TableAlreadyExistsError(asked["name"])
                schema = Schema.model_validate(asked["schema"])
                staged = self.catalog._create_staged_table(name, schema, properties=asked["properties"])
                return {"metadata": staged.metadata.model_dump(mode="json", by_alias=True, exclude_none=True)}
            case "GET", ["namespaces", namespace, "tables", name]:
                return self._told(self.catalog.load_table((namespace, name)))
            case "POST", ["namespaces", namespace, "tables", name]:
                commit = CommitTableRequest.model_validate_json(body)
                to: Any = Table((namespace, name), None, "", None, self.catalog)  # type: ignore[arg-type]
                self.catalog.commit_table(to, commit.requirements, commit.updates)
                self.commits.append(f"{namespace}.{name}")
                return self._told(self.catalog.load_table((namespace, name)))
        raise AssertionError(f"{method} {path}")

    def _told(self, table: Table) -> Any:
        metadata = table.metadata.model_dump(mode="json", by_alias=True, exclude_none=True)
        return {"metadata-location": table.metadata_location, "metadata": metadata, "config": {}}

    @contextmanager
    def running(self) -> Iterator[str]:
        """Serve until the end of the block; the address."""
        rest = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            wbufsize = -1  # an answer is one packet

            def do_GET(self) -> None:
                self.tell("GET")

            def do_POST(self) -> None:
                self.tell("POST")

            def tell(self, method: str) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"] or 0))
                status, answer = rest.answer(method, self.path.partition("?")[0].split("/")[2:], body)
                told = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(told)))
                self.end_headers()
                self.wfile.write(told)

            def log_message(self, *_: object) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            server.server_close()
            thread.join()
