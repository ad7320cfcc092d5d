"""What goes wrong at 3 a.m. gets one clear line that names the thing and the next command."""

from __future__ import annotations

import json
import os
import resource
import socket
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from conftest import Headwater
from mypy_boto3_dynamodb import DynamoDBClient

from headwater.lab.stack import Endpoints

pytestmark = pytest.mark.kafka


def one_line(done: subprocess.CompletedProcess[str], code: int, *words: str) -> str:
    """Return stderr, which must be one line with these words and what to try next, and no traceback."""
    assert done.returncode == code, (done.stdout, done.stderr)
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("headwater: ")
    assert "(try: " in lines[0]
    for word in words:
        assert word in lines[0]
    return lines[0]


def settings(directory: Path, *, table: str = "orders", servers: str = "127.0.0.1:9092", **more: str) -> None:
    """Write a headwater.toml."""
    lines = [
        f'prefix = "t{uuid.uuid4().hex[:8]}"',
        "partitions = 2",
        f'kafka = {{ bootstrap_servers = "{servers}", replication_factor = 1 }}',
        f'sources = [{{ tables = ["{table}"] }}]',
        *(f"{name} = {value}" for name, value in more.items()),
    ]
    (directory / "headwater.toml").write_text("\n".join(lines))


def make_table(dynamodb: DynamoDBClient, name: str, view: str | None) -> None:
    """Make a table with a stream of this view type, or without a stream."""
    dynamodb.create_table(
        TableName=name,
        KeySchema=[{"AttributeName": "id", "KeyType": "HASH"}],
        AttributeDefinitions=[{"AttributeName": "id", "AttributeType": "S"}],
        BillingMode="PAY_PER_REQUEST",
        StreamSpecification={"StreamEnabled": True, "StreamViewType": view} if view else {"StreamEnabled": False},  # type: ignore[typeddict-item]
    )


def test_a_mistyped_key_is_named_with_the_one_that_was_meant(headwater: Headwater, tmp_path: Path) -> None:
    (tmp_path / "headwater.toml").write_text('[kafka]\nbootstrap_server = "a:1"\n')
    one_line(headwater("check"), 2, "headwater.toml", "kafka.bootstrap_server", "did you mean bootstrap_servers?")


def test_a_mistyped_variable_is_named_with_the_one_that_was_meant(headwater: Headwater) -> None:
    one_line(headwater("check", HEADWATER_PREFX="x"), 2, "HEADWATER_PREFX", "did you mean HEADWATER_PREFIX?")


def test_a_file_that_is_not_toml_is_named_with_the_line(headwater: Headwater, tmp_path: Path) -> None:
    (tmp_path / "headwater.toml").write_text("prefix = \n")
    one_line(headwater("status"), 2, "headwater.toml", "line 1")


def test_an_unknown_agent_is_a_usage_error(headwater: Headwater) -> None:
    one_line(headwater("run", "ingets"), 2, "'ingets'", "headwater run")


def test_the_traceback_is_there_for_who_asks(headwater: Headwater, tmp_path: Path) -> None:
    (tmp_path / "headwater.toml").write_text("nonsense = 1\n")
    assert "Traceback" in headwater("-v", "check").stderr


def test_an_unreachable_broker_is_named(headwater: Headwater) -> None:
    def attempt(command: str) -> subprocess.CompletedProcess[str]:
        return headwater(command, HEADWATER_KAFKA__BOOTSTRAP_SERVERS="127.0.0.1:1", HEADWATER_WEB__ENABLED="false")

    with ThreadPoolExecutor() as threads:  # at once: each tries for twenty seconds
        for done in threads.map(attempt, ("run", "status", "topics")):
            one_line(done, 1, "Kafka cannot be reached", "headwater check")


def test_check_says_of_each_thing_what_to_type_next(headwater: Headwater) -> None:
    done = headwater("check", "--json", HEADWATER_KAFKA__BOOTSTRAP_SERVERS="127.0.0.1:1")
    assert done.returncode == 1
    findings = {finding["what"]: finding for finding in json.loads(done.stdout)}
    assert findings["settings"]["ok"]
    assert not findings["Kafka 127.0.0.1:1"]["ok"]
    assert "headwater local up" in findings["Kafka 127.0.0.1:1"]["hint"]


def test_a_missing_table_is_named(headwater: Headwater, tmp_path: Path, stack: Endpoints) -> None:
    settings(tmp_path, table="nowhere", servers=stack.bootstrap_servers)
    done = headwater("run", "ingest", "--without-web", **stack.environment())
    one_line(done, 1, "the table nowhere does not exist", "aws dynamodb list-tables")


@pytest.mark.parametrize(
    ("view", "words"), [(None, "has no stream, or it is disabled"), ("KEYS_ONLY", "is KEYS_ONLY: it carries no images")]
)
def test_a_stream_that_cannot_be_captured_is_named_with_the_command_that_fixes_it(
    headwater: Headwater, tmp_path: Path, stack: Endpoints, dynamodb: DynamoDBClient, view: str | None, words: str
) -> None:
    table = f"t{uuid.uuid4().hex[:8]}"
    make_table(dynamodb, table, view)
    settings(tmp_path, table=table, servers=stack.bootstrap_servers)
    done = headwater("run", "ingest", "--without-web", **stack.environment())
    one_line(done, 1, table, words, "aws dynamodb update-table")


class Refusal(BaseHTTPRequestHandler):
    """Answers every request as AWS refuses."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        body = json.dumps({"__type": f"com.amazon.coral.service#{self.server.code}", "message": "no"}).encode()  # type: ignore[attr-defined]
        self.send_response(400)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def refusing() -> Iterator[ThreadingHTTPServer]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Refusal) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("AccessDeniedException", "permission is missing"),
        ("ExpiredTokenException", "AWS does not accept the credentials: they have expired"),  # tried for a minute
    ],
)
def test_refused_credentials_and_permissions_are_named(
    headwater: Headwater, tmp_path: Path, stack: Endpoints, refusing: ThreadingHTTPServer, code: str, words: str
) -> None:
    refusing.code = code  # type: ignore[attr-defined]
    settings(tmp_path, servers=stack.bootstrap_servers)
    url = f"http://127.0.0.1:{refusing.server_port}"
    environment = {name: value for name, value in stack.environment().items() if "ENDPOINT_URL" not in name}
    done = headwater("run", "ingest", "--without-web", **environment, AWS_ENDPOINT_URL=url)
    one_line(done, 1, "the table orders", words)


def test_a_profile_that_is_not_there_is_said_in_one_line_by_run_and_by_check(
    headwater: Headwater, tmp_path: Path, stack: Endpoints
) -> None:
    settings(tmp_path, servers=stack.bootstrap_servers)
    environment = stack.environment() | {"AWS_PROFILE": "nope"}
    one_line(headwater("run", "ingest", "--without-web", **environment), 1, "nope", "aws configure list-profiles")
    checked = headwater("check", **environment)
    assert (checked.returncode, "Traceback" in checked.stderr + checked.stdout) == (1, False)
    assert "list-profiles" in checked.stdout


def test_check_says_of_a_credential_process_that_fails_that_it_does(
    headwater: Headwater, tmp_path: Path, stack: Endpoints
) -> None:
    settings(tmp_path, servers=stack.bootstrap_servers)
    (tmp_path / "config").write_text("[default]\nregion = eu-west-1\ncredential_process = /no/such/program\n")
    environment = {k: v for k, v in stack.environment().items() if not k.startswith(("AWS_ACCESS", "AWS_SECRET"))}
    environment |= {"AWS_CONFIG_FILE": str(tmp_path / "config"), "AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}
    environment |= {"AWS_EC2_METADATA_DISABLED": "true"}
    checked = headwater("check", "--json", **environment)
    assert (checked.returncode, "Traceback" in checked.stderr) == (1, False)
    found = [load for load in json.loads(checked.stdout) if not load["ok"]]
    assert {"AWS identity", "table orders"} <= {one["what"] for one in found}
    for one in found:
        assert "there are no AWS credentials" in one["detail"]
        assert one["hint"]


def test_a_port_in_use_is_named(headwater: Headwater, tmp_path: Path, stack: Endpoints) -> None:
    settings(tmp_path, servers=stack.bootstrap_servers)
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        port = server.getsockname()[1]
        done = headwater("run", "deduplicate", **stack.environment(), HEADWATER_WEB__PORT=str(port))
    one_line(done, 1, f"the port {port}", "HEADWATER_WEB__PORT")


def test_topics_with_another_number_of_partitions_are_refused(
    headwater: Headwater, tmp_path: Path, stack: Endpoints
) -> None:
    settings(tmp_path, servers=stack.bootstrap_servers)
    assert headwater("topics", "--create", **stack.environment()).returncode == 0
    done = headwater("run", "deduplicate", "--without-web", **stack.environment(), HEADWATER_PARTITIONS="3")
    one_line(done, 1, "has 2 partitions, the settings say 3", "drain")


@pytest.mark.parametrize("most", [0, 100])  # before the transactional ID is written; when RocksDB is opened
def test_a_disk_that_refuses_to_write_stops_the_worker_with_the_path(
    tmp_path: Path, stack: Endpoints, most: int
) -> None:
    settings(tmp_path, servers=stack.bootstrap_servers)

    def no_room() -> None:  # what a full disk does to a write, without filling one: no file may grow beyond this
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))

    done = subprocess.run(
        [sys.executable, "-m", "headwater.cli", "run", "deduplicate", "--without-web"],
        cwd=tmp_path,
        env={**os.environ, **stack.environment()},
        capture_output=True,
        text=True,
        timeout=120,
        preexec_fn=no_room,
        check=False,
    )
    assert done.returncode == 1
    said = [line for line in done.stderr.splitlines() if "headwater: " in line]
    assert len(said) == 1, done.stderr
    assert ".headwater/state" in said[0]
    assert "(try: df -h" in said[0]
    assert "Traceback" not in done.stderr
