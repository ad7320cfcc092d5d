"""The local stack for tests: started once, when the first test asks for it.

Tests marked `kafka` need Apache Kafka. Where it cannot run they skip with the reason; with HEADWATER_REQUIRE_KAFKA=1,
as in CI, they fail instead.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from pipeline.lab import kafka
from pipeline.lab.stack import Endpoints, Stack


def require_kafka() -> None:
    """Skip the test where Apache Kafka cannot run, or fail it where it must."""
    if (why := kafka.missing()) is None:
        return
    if os.environ.get("HEADWATER_REQUIRE_KAFKA") == "1":
        pytest.fail(f"HEADWATER_REQUIRE_KAFKA=1, but Apache Kafka cannot run here: {why}", pytrace=False)
    pytest.skip(f"Apache Kafka cannot run here: {why}")


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("kafka") is not None:
        require_kafka()


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Endpoints]:
    """Apache Kafka and ministack, shared by all tests of the session: name topics, tables and buckets uniquely."""
    require_kafka()
    with Stack(tmp_path_factory.mktemp("stack"), broker="kafka", progress=print) as started:
        assert started.endpoints is not None
        yield started.endpoints


@pytest.fixture(scope="session")
def kafka_stack(stack: Endpoints) -> Endpoints:
    """The same, by the name that says why a test wants it."""
    return stack
