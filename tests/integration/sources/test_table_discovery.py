"""Which tables are captured: by name, by pattern, by tag, on a stand-in that has all three."""

from __future__ import annotations

import uuid

import pytest
from mypy_boto3_dynamodb import DynamoDBClient

from headwater.lab.stack import Endpoints
from pipeline.settings.sources import DynamoDBStreamSettings
from pipeline.sources.dynamodb.streams import DynamoDBStreams

pytestmark = pytest.mark.kafka  # the stand-in comes with the stack


@pytest.fixture
def prefix(stack: Endpoints, dynamodb: DynamoDBClient, monkeypatch: pytest.MonkeyPatch) -> str:
    """Three tables of this prefix, two of them tagged; no other test's tables carry the tag."""
    for name, value in stack.environment().items():
        monkeypatch.setenv(name, value)
    prefix = f"d{uuid.uuid4().hex[:8]}"
    for name in ("eu-orders", "eu-customers", "us-orders"):
        dynamodb.create_table(
            TableName=f"{prefix}-{name}",
            KeySchema=[{"AttributeName": "id", "KeyType": "HASH"}],
            AttributeDefinitions=[{"AttributeName": "id", "AttributeType": "S"}],
            BillingMode="PAY_PER_REQUEST",
            Tags=[{"Key": prefix, "Value": "on" if name.endswith("orders") else "off"}],
        )
    return prefix


def found(known: set[str], **source: object) -> list[str]:
    return DynamoDBStreams(DynamoDBStreamSettings.model_validate(source)).tables(known)


def test_names_are_taken_as_they_are_whether_the_tables_exist_or_not(prefix: str) -> None:
    assert found(set(), tables=["nowhere", f"{prefix}-eu-orders"]) == ["nowhere", f"{prefix}-eu-orders"]


def test_a_pattern_finds_the_tables_that_match_it_now(prefix: str) -> None:
    assert found(set(), tables=[f"{prefix}-eu-*"]) == [f"{prefix}-eu-customers", f"{prefix}-eu-orders"]
    assert found(set(), tables=[f"{prefix}-?s-orders"]) == [f"{prefix}-us-orders"]


def test_a_table_that_was_deleted_is_read_to_its_end(prefix: str) -> None:
    """AWS keeps its stream for a day."""
    gone = f"{prefix}-eu-gone"
    assert gone in found({gone, "of another source"}, tables=[f"{prefix}-eu-*"])
    assert "of another source" not in found({gone, "of another source"}, tables=[f"{prefix}-eu-*"])


def test_a_tag_finds_the_tables_that_carry_it(prefix: str) -> None:
    assert found(set(), tags={prefix: "on"}) == [f"{prefix}-eu-orders", f"{prefix}-us-orders"]
