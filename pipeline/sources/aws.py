"""AWS as the sources see it: clients, streams of tables, and errors in our three meanings.

Credentials, Region and endpoints come from boto3's default chain, nowhere else.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError, NoRegionError

from pipeline.errors import FatalError, HeadwaterError, TransientError
from pipeline.sources.shards import Shard

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient
    from mypy_boto3_dynamodbstreams import DynamoDBStreamsClient

VIEW_TYPES = {"NEW_AND_OLD_IMAGES", "NEW_IMAGE", "OLD_IMAGE"}
CREDENTIALS = {
    "ExpiredToken",
    "ExpiredTokenException",
    "UnrecognizedClientException",
    "InvalidClientTokenId",
    "InvalidSignatureException",
}
THROTTLES = {
    "LimitExceededException",
    "ThrottlingException",
    "ProvisionedThroughputExceededException",
    "InternalServerError",
}


@dataclass(frozen=True, slots=True)
class Stream:
    """The stream of a table."""

    table: str
    arn: str
    view_type: str


class StreamsApi:
    """The calls that the source needs. Thread-safe; every error comes as a HeadwaterError that names the thing."""

    def __init__(self, region: str | None, threads: int) -> None:
        config = Config(
            max_pool_connections=threads,
            connect_timeout=5,
            read_timeout=20,
            retries={"mode": "standard", "total_max_attempts": 3},
        )
        session = boto3.session.Session(region_name=region)
        try:
            self._tables: DynamoDBClient = session.client("dynamodb", config=config)
            self._streams: DynamoDBStreamsClient = session.client("dynamodbstreams", config=config)
        except NoRegionError as error:
            raise explain(error, "AWS") from error
        # The body of GetRecords is taken before botocore parses it: 1.5 us a record instead of 200.
        self._streams.meta.events.register("before-parse.dynamodb-streams.GetRecords", _take_body)

    def stream_of(self, table: str) -> Stream:
        """Return the table's stream; raise FatalError when there is none, or when it does not carry images."""
        try:
            found = self._tables.describe_table(TableName=table)["Table"]
        except (ClientError, BotoCoreError) as error:
            raise explain(error, f"the table {table}") from error
        view = found.get("StreamSpecification", {}).get("StreamViewType", "")
        arn = found.get("LatestStreamArn", "")
        enable = (
            f"aws dynamodb update-table --table-name {table} "
            "--stream-specification StreamEnabled=true,StreamViewType=NEW_AND_OLD_IMAGES"
        )
        if not arn or not found.get("StreamSpecification", {}).get("StreamEnabled"):
            raise FatalError(f"the table {table} has no stream, or it is disabled", hint=enable)
        if view not in VIEW_TYPES:
            raise FatalError(
                f"the stream of the table {table} is {view}: it carries no images, so there is nothing to deliver",
                hint=f"disable the stream, then: {enable}",
            )
        return Stream(table, arn, view)

    def shards_of(self, arn: str) -> list[Shard]:
        """Return the whole listing of a stream's shards, all pages of it."""
        shards, start = [], None
        while True:
            try:
                page = self._streams.describe_stream(
                    StreamArn=arn, **cast("Any", {"ExclusiveStartShardId": start} if start else {})
                )["StreamDescription"]
            except (ClientError, BotoCoreError) as error:
                raise explain(error, f"the stream {arn}") from error
            for shard in page.get("Shards", []):
                parent = shard.get("ParentShardId")
                shards.append(Shard(shard["ShardId"], (parent,) if parent else ()))
            start = page.get("LastEvaluatedShardId")
            if not start:
                return shards

    def iterator(self, arn: str, shard_id: str, after: str | None) -> str:
        """Return an iterator after a sequence number, or at the first record that is there."""
        where: dict[str, Any] = (
            {"ShardIteratorType": "AFTER_SEQUENCE_NUMBER", "SequenceNumber": after}
            if after is not None
            else {"ShardIteratorType": "TRIM_HORIZON"}
        )
        try:
            return self._streams.get_shard_iterator(StreamArn=arn, ShardId=shard_id, **where)["ShardIterator"]
        except (ClientError, BotoCoreError) as error:
            raise explain(error, f"the shard {shard_id} of {arn}") from error

    def records(self, iterator: str, what: str) -> bytes:
        """Return the body of a GetRecords answer, unparsed; its checksum has been checked."""
        try:
            answer = cast("dict[str, Any]", self._streams.get_records(ShardIterator=iterator, Limit=1000))
        except (ClientError, BotoCoreError) as error:
            raise explain(error, what) from error
        body, checksum = answer["Body"], answer["Checksum"]
        if checksum is not None and zlib.crc32(body) != int(checksum):
            raise TransientError(f"{what}: the answer's checksum does not fit")
        return cast("bytes", body)


def _take_body(response_dict: dict[str, Any], customized_response_dict: dict[str, Any], **_: Any) -> None:
    if response_dict["status_code"] < 300:
        customized_response_dict["Body"] = response_dict["body"]
        customized_response_dict["Checksum"] = response_dict["headers"].get("x-amz-crc32")
        response_dict["body"] = b"{}"


class ExpiredIteratorError(TransientError):
    """The iterator is too old: ask for a new one at the position."""


class TrimmedError(HeadwaterError):
    """The records at the position are gone: older than the stream keeps them."""


class VanishedError(HeadwaterError):
    """AWS does not know the shard or the stream any more."""


class CredentialsError(FatalError):
    """AWS does not accept the credentials; they may be refreshed."""


def explain(error: ClientError | BotoCoreError, what: str) -> HeadwaterError:
    """Return an AWS error in our meanings: what, where, and what to type next."""
    if isinstance(error, NoCredentialsError):
        return CredentialsError(
            f"{what}: there are no AWS credentials", hint="aws configure; aws sts get-caller-identity"
        )
    if isinstance(error, NoRegionError):
        return FatalError(f"{what}: there is no AWS Region", hint="export AWS_DEFAULT_REGION=eu-west-1")
    if not isinstance(error, ClientError):
        return TransientError(f"{what}: AWS cannot be reached: {error}", hint="headwater check")
    code, message = error.response.get("Error", {}).get("Code", ""), error.response.get("Error", {}).get("Message", "")
    if code == "ExpiredIteratorException":
        return ExpiredIteratorError(f"{what}: the iterator has expired")
    if code == "TrimmedDataAccessException":
        return TrimmedError(f"{what}: the records at the position have been trimmed")
    if code == "ResourceNotFoundException":
        return VanishedError(f"{what} does not exist", hint="aws dynamodb list-tables; headwater check")
    if code in CREDENTIALS:
        return CredentialsError(
            f"{what}: AWS does not accept the credentials ({code}: {message})", hint="aws sts get-caller-identity"
        )
    if code.startswith("AccessDenied") or code == "UnauthorizedOperation":
        return CredentialsError(
            f"{what}: permission is missing: {message}", hint="headwater check; see README, IAM policy"
        )
    if code in THROTTLES or error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0) >= 500:
        return TransientError(f"{what}: {code}: {message}")
    return FatalError(f"{what}: {code}: {message}", hint="headwater check")
