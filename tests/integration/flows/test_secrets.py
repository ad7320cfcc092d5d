"""Secrets are planted wherever a deployment has some, and looked for wherever it leaves something: they must be nowhere."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import pytest
from confluent_kafka import Message
from confluent_kafka.admin import AdminClient
from conftest import Headwater
from support.fleet import log_of
from support.http_service import Service
from support.schema_registry import serve
from support.transform_workers import Flowing
from support.waiting import until

from headwater.lab.stack import Endpoints
from pipeline.settings.root import Settings
from pipeline.topics.read import each_record, reading

pytestmark = pytest.mark.kafka
PLANTED = {
    "header": "planted-header-1f3a",
    "cookie": "planted-cookie-77b0",
    "query": "planted-query-9c2d",
    "kafka": "planted-kafka-55e1",
    "registry": "planted-registry-a48c",
    "aws": "planted-aws-0b6f",
}


def left(record: Message) -> Iterator[bytes]:
    """Yield all that a record holds."""
    yield bytes(record.key() or b"")
    yield record.value() or b""
    for name, value in cast("list[tuple[str, bytes | None]]", record.headers() or []):
        yield name.encode() + b"=" + (value or b"")


def settings_of(flowing: Flowing) -> Settings:
    kafka = {"bootstrap_servers": flowing.fleet.endpoints.bootstrap_servers}
    return Settings.model_validate({"prefix": flowing.fleet.prefix, "kafka": kafka})


def topics_of(settings: Settings, conf: Mapping[str, Any]) -> dict[str, bytes]:
    """Return all that the topics of a deployment hold."""
    found: dict[str, bytes] = {}
    described = AdminClient(dict(conf)).list_topics(timeout=20).topics
    with reading(settings) as consumer:
        for name, topic in described.items():
            if name.startswith(f"{settings.prefix}."):
                records = each_record(consumer, name, dict.fromkeys(topic.partitions, 0))
                found[name] = b"\n".join(part for record in records for part in left(record))
    return found


def test_no_secret_is_on_a_topic_in_a_log_in_an_output_or_in_a_file_of_the_state(
    kafka_stack: Endpoints, tmp_path: Path, headwater: Headwater
) -> None:
    (tmp_path / "query").write_text(PLANTED["query"])
    service = Service()
    with service.running() as address, serve() as registry:
        headers = {"Authorization": "Bearer env:PROFILES_TOKEN", "Cookie": "session=${PROFILES_COOKIE}"}
        url = f"{address}/{{name}}?api_key=file:{tmp_path / 'query'}"
        step = {"kind": "lookup", "url": url, "headers": headers, "into": "found", "on_failure": "reject"}
        flow = {"name": "f", "to": "a", "enrich": [step], "envelope": "plain", "format": "json-schema"}
        plain = {**flow, "envelope": "plain"}
        del plain["format"]
        flowing = Flowing(kafka_stack, tmp_path, [plain])
        properties = {"sasl.username": "headwater", "sasl.password": PLANTED["kafka"]}
        flowing.fleet.settings = {
            **flowing.fleet.settings,
            "HEADWATER_FLOWS": json.dumps([flow]),
            "HEADWATER_KAFKA__PROPERTIES": json.dumps(properties),
            "HEADWATER_SCHEMA_REGISTRY__URL": registry.url,
            "HEADWATER_SCHEMA_REGISTRY__PROPERTIES": json.dumps(
                {"basic.auth.user.info": f"headwater:{PLANTED['registry']}"}
            ),
            "AWS_SECRET_ACCESS_KEY": PLANTED["aws"],
            "PROFILES_TOKEN": PLANTED["header"],
            "PROFILES_COOKIE": PLANTED["cookie"],
        }
        said: dict[str, str] = {}

        def run(*command: str) -> None:
            done = headwater(*command, **flowing.environment())
            said[" ".join(command)] = done.stdout + done.stderr
            assert "Traceback" not in done.stderr, done.stderr

        run("flows", "apply")
        with (
            flowing.recorded(flowing.topics.sink("a")) as sink,
            flowing.recorded(flowing.topics.dead_letter) as dead,
            flowing.fleet.running() as workers,
        ):
            flowing.change("k1", {"name": "one"})
            until(lambda: len(sink) >= 1, "the change, with what was looked up")
            path, sent = service.asked[0]
            assert PLANTED["query"] in path, "it is sent"
            assert PLANTED["header"] in sent["Authorization"]
            assert PLANTED["cookie"] in sent["Cookie"]
            service.status = 400
            flowing.change("k2", {"name": "two"})
            until(lambda: len(dead) >= 1, "a dead letter of the look-up")
            registry.away, service.status = True, 500
            flowing.change("k3", {"name": "three"})
            until(lambda: len(dead) >= 2, "another one")
            for command in ("check", "status", "topics"):
                run(command, "--json")
            run("dlq", "list", "--json")
            run("dlq", "show", "0-0", "1-0", "--json")
            run("flows", "apply", "--json")
            run("-v", "check")
            said["log"] = "".join(map(log_of, workers.all))
        settings = settings_of(flowing)
        kept = topics_of(settings, flowing.fleet.conf)
    assert b"env:PROFILES_TOKEN" in kept[flowing.topics.flows], "the flows are there, and name where it is"
    files = {f"{path}": path.read_bytes() for path in tmp_path.rglob("*") if path.is_file() and path.name != "query"}
    assert any("state" in name for name in files)
    for what, secret in PLANTED.items():
        for place, content in {**kept, **files, **{k: v.encode() for k, v in said.items()}}.items():
            assert secret.encode() not in content, f"{what} is in {place}"


def test_flows_apply_refuses_a_secret_that_is_written_out_and_publishes_nothing(
    kafka_stack: Endpoints, tmp_path: Path, headwater: Headwater
) -> None:
    step = {"kind": "lookup", "url": "http://127.0.0.1:9/{name}", "into": "found"}
    flowing = Flowing(kafka_stack, tmp_path, [{"name": "f", "to": "a", "enrich": [step]}])
    literal = {**step, "headers": {"Authorization": f"Bearer {PLANTED['header']}"}}
    done = headwater("flows", "apply", **flowing.environment([{"name": "f", "to": "a", "enrich": [literal]}]))
    assert done.returncode == 2
    assert "the flow f, lookup found: the header Authorization is in plain text" in done.stderr
    assert PLANTED["header"] not in done.stdout + done.stderr
    settings = settings_of(flowing)
    assert topics_of(settings, flowing.fleet.conf)[flowing.topics.flows] == b""
