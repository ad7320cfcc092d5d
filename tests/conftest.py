"""The local stack for tests: started once, when the first test asks for it.

Tests marked `kafka` need Apache Kafka. Where it cannot run they skip with the reason; with HEADWATER_REQUIRE_KAFKA=1,
as in CI, they fail instead.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import boto3
import pytest
from mypy_boto3_dynamodb import DynamoDBClient
from support.commands import run_while_it_moves
from xdist.scheduler import LoadFileScheduling

from headwater.lab import kafka
from headwater.lab.stack import Endpoints, Stack

STACKS = {"test_bench", "test_chaos", "test_coordinator", "test_demo", "test_install", "test_soak"}
"""Files whose every test has brokers and workers of its own: two of those at once are too much for two cores."""


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With --dist loadfile, give all of STACKS to one process, as if they were one file."""
    if config.getvalue("dist") != "loadfile":
        return None
    scheduling = LoadFileScheduling(config, log)
    file_of = scheduling._split_scope
    scheduling._split_scope = lambda test: "stacks" if Path(file_of(test)).stem in STACKS else file_of(test)
    return scheduling


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


@pytest.fixture
def dynamodb(stack: Endpoints) -> DynamoDBClient:
    """A client of the shared stand-in."""
    return boto3.client(
        "dynamodb",
        endpoint_url=stack.aws_endpoint_url,
        region_name="eu-west-1",
        aws_access_key_id="headwater",
        aws_secret_access_key="headwater",
    )


class Headwater(Protocol):
    """Runs the command `headwater`."""

    def __call__(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Return exit code, stdout and stderr; `environment` is laid over this process's."""


@pytest.fixture
def headwater(tmp_path: Path) -> Headwater:
    """The command, in a directory of its own, with no settings but those given."""
    return headwater_in(tmp_path)


def headwater_in(directory: Path) -> Headwater:
    """Return the command, run in a directory."""

    def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return run_while_it_moves(
            [sys.executable, "-m", "headwater.cli", *arguments],
            directory,
            {**os.environ, "COLUMNS": "200", "NO_COLOR": "1", **environment},
        )

    return run
