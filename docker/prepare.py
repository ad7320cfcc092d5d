"""Makes what compose.yaml's workers expect to find: two tables with streams, and a bucket. It may run again."""
# ruff: noqa: INP001 - a script, mounted into a container

from __future__ import annotations

import boto3
from botocore.exceptions import ClientError

TABLES = ("orders", "customers")
BUCKET = "headwater"
THERE_ALREADY = {"ResourceInUseException", "BucketAlreadyOwnedByYou"}


def main() -> None:
    """Make what is missing."""
    dynamodb, s3 = boto3.client("dynamodb"), boto3.client("s3")
    for table in TABLES:
        try:
            dynamodb.create_table(
                TableName=table,
                AttributeDefinitions=[{"AttributeName": "id", "AttributeType": "S"}],
                KeySchema=[{"AttributeName": "id", "KeyType": "HASH"}],
                BillingMode="PAY_PER_REQUEST",
                StreamSpecification={"StreamEnabled": True, "StreamViewType": "NEW_AND_OLD_IMAGES"},
            )
        except ClientError as error:
            _unless_there(error)
    try:
        s3.create_bucket(Bucket=BUCKET, CreateBucketConfiguration={"LocationConstraint": "eu-west-1"})
    except ClientError as error:
        _unless_there(error)
    dynamodb.close()
    s3.close()


def _unless_there(error: ClientError) -> None:
    if error.response["Error"]["Code"] not in THERE_ALREADY:
        raise error


if __name__ == "__main__":
    main()
