"""`headwater status` before anything has happened."""

from __future__ import annotations

import json
import uuid
from pathlib import Path

import pytest
from confluent_kafka import Producer
from conftest import Headwater

from headwater.lab.stack import Endpoints, Stack
from models.dead_letter import DeadLetter


@pytest.mark.kafka
def test_a_broker_on_which_nothing_has_happened_yet_can_be_looked_at(tmp_path: Path, headwater: Headwater) -> None:
    with Stack(tmp_path / "stack", broker="kafka", progress=print) as stack:
        assert stack.endpoints is not None
        environment = stack.endpoints.environment() | {"HEADWATER_SOURCES": '[{"tables": ["orders"]}]'}
        shown = headwater("status", "--json", **environment)
        assert shown.returncode == 0, shown.stderr
        found = json.loads(shown.stdout)
        assert (found["workers"], found["shards"], found["gaps"]) == (0, [], 0)
        asked = headwater("gaps", **environment)
        assert asked.returncode == 0, asked.stderr


@pytest.mark.kafka
def test_all_open_dead_letters_are_counted_also_more_than_ten_thousand(stack: Endpoints, headwater: Headwater) -> None:
    prefix = f"t{uuid.uuid4().hex[:8]}"
    sources = '[{"tables": ["orders"]}]'
    environment = {**stack.environment(), "HEADWATER_PREFIX": prefix, "HEADWATER_SOURCES": sources}
    assert headwater("topics", "--create", **environment).returncode == 0
    producer = Producer({"bootstrap.servers": stack.bootstrap_servers, "queue.buffering.max.messages": 100_000})
    for number in range(12_345):
        letter = DeadLetter(f"{prefix}.sink.o", 0, number, "lake", ValueError("made up"), b"k", b"no change", [])
        producer.produce(f"{prefix}.dead-letter", letter.value, letter.key, headers=letter.headers)  # type: ignore[arg-type]
    assert producer.flush(60) == 0

    def counted() -> int:
        count: int = json.loads(headwater("status", "--json", **environment).stdout)["dead_letters"]
        return count

    def listed() -> list[str]:
        return headwater("dlq", "list", **environment).stdout.splitlines()

    assert counted() == len(listed()) == 12_345
    assert headwater("dlq", "skip", json.loads(listed()[0])["id"], **environment).returncode == 0
    assert counted() == len(listed()) == 12_344
    assert headwater("dlq", "skip", "--stage", "lake", "--yes", **environment).returncode == 0
    assert (counted(), listed()) == (0, [])
