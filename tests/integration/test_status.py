"""`headwater status` before anything has happened."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import Headwater

from pipeline.lab.stack import Stack


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
