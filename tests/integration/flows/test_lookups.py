"""Look-ups in a DynamoDB table, and mask keys from KMS, on the stand-in."""

from __future__ import annotations

import base64
import os
from decimal import Decimal
from pathlib import Path
from typing import Any

import boto3
import pytest
from mypy_boto3_dynamodb import DynamoDBClient
from support.made_events import done, outcome, record

from headwater.lab.stack import Endpoints
from pipeline.errors import FatalError, TransientError
from pipeline.services.keys import mask_key
from pipeline.services.lookups import lookup
from pipeline.settings.enrich import LookupSettings
from pipeline.steps.lookup import LookupFailedError
from pipeline.steps.secrecy import MaskKey

pytestmark = pytest.mark.kafka
PRICE: Any = {"sku": {"S": "s-1"}, "size": {"N": "1"}, "price": {"N": "9.99"}, "seal": {"B": b"\x00\xff"}}


@pytest.fixture(autouse=True)
def aws(stack: Endpoints, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in stack.environment().items():
        monkeypatch.setenv(name, value)


def settings(table: str) -> LookupSettings:
    key = {"sku": "product", "size": "size"}
    return LookupSettings.model_validate({"kind": "lookup", "table": table, "key": key, "into": "price"})


def order(sku: str, size: str) -> bytes:
    return record({"id": {"S": "o"}, "product": {"S": sku}, "size": {"N": size}})


def test_items_are_found_by_their_whole_key_a_hundred_at_a_time(dynamodb: DynamoDBClient) -> None:
    table = f"prices-{os.getpid()}"
    dynamodb.create_table(
        TableName=table,
        KeySchema=[{"AttributeName": "sku", "KeyType": "HASH"}, {"AttributeName": "size", "KeyType": "RANGE"}],
        AttributeDefinitions=[
            {"AttributeName": "sku", "AttributeType": "S"},
            {"AttributeName": "size", "AttributeType": "N"},
        ],
        BillingMode="PAY_PER_REQUEST",
    )
    dynamodb.put_item(TableName=table, Item=PRICE)
    for number in range(120):
        dynamodb.put_item(TableName=table, Item={"sku": {"S": f"n-{number}"}, "size": {"N": "2"}})
    values = [order(f"n-{number}", "2") for number in range(120)]
    found = [outcome(one)["added"]["price"] for one in done(lookup(settings(table), {}), order("s-1", "1"), *values)]
    assert found[0]["M"]["price"] == {"N": "9.99"}
    assert found[0]["M"]["seal"] == {"B": base64.b64encode(b"\x00\xff").decode()}
    assert [one["M"]["sku"]["S"] for one in found[1:]] == [f"n-{number}" for number in range(120)]
    (missing,) = done(lookup(settings(table), {}), order("nothing", "1"))
    assert outcome(missing)["added"] == {"price": {"NULL": True}}
    assert Decimal(found[0]["M"]["size"]["N"]) == 1


def test_a_table_that_is_not_there_is_a_failure_that_is_tried_again() -> None:
    with pytest.raises(TransientError, match="ResourceNotFoundException"):
        done(lookup(settings("nothing-of-the-kind"), {}), order("s-1", "1"))
    rejecting = settings("nothing-of-the-kind").model_copy(update={"on_failure": "reject"})
    (one,) = done(lookup(rejecting, {}), order("s-1", "1"))
    assert isinstance(one.error, LookupFailedError)


def test_a_mask_key_that_kms_has_encrypted(tmp_path: Path) -> None:
    client = boto3.client("kms")
    key_id = client.create_key()["KeyMetadata"]["KeyId"]
    made = client.generate_data_key(KeyId=key_id, NumberOfBytes=32)
    file = tmp_path / "data.key"
    file.write_bytes(base64.b64encode(made["CiphertextBlob"]))
    assert mask_key(f"kms:{file}").fingerprint == MaskKey(made["Plaintext"]).fingerprint
    (tmp_path / "odd.key").write_bytes(base64.b64encode(b"no ciphertext"))
    with pytest.raises(FatalError, match="mask_key: the data key"):
        mask_key(f"kms:{tmp_path / 'odd.key'}")
