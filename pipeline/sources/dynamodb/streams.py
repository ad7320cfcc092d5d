"""DynamoDB Streams as AWS offers them: which tables, their streams and shards, their records."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast

import msgspec
from botocore.exceptions import ClientError

from pipeline.errors import FatalError, TransientError
from pipeline.services.aws import ERRORS, client, explained_aws, take_body, taken_body
from pipeline.settings.sources import DynamoDBStreamSettings
from pipeline.sources.base import Cut, ShardStart, Stream, StreamApi
from pipeline.sources.dynamodb.records import cut_answer
from pipeline.sources.shard_positions import ShardOf
from pipeline.sources.shards import Shard

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient
    from mypy_boto3_dynamodbstreams import DynamoDBStreamsClient
    from mypy_boto3_resourcegroupstaggingapi import ResourceGroupsTaggingAPIClient

VIEW_TYPES = {"NEW_AND_OLD_IMAGES", "NEW_IMAGE", "OLD_IMAGE"}
ANSWER_RECORDS = 1_000
"""Records in a GetRecords answer: the most that AWS gives."""


class DynamoDBStreams(StreamApi):
    """The calls that the source needs (see `sources.base.StreamApi`)."""

    def __init__(self, settings: DynamoDBStreamSettings) -> None:
        self._settings = settings

    @cached_property
    def _tables(self) -> DynamoDBClient:
        found: DynamoDBClient = client("dynamodb", self._settings.region, self._settings.threads)
        return found

    @cached_property
    def _streams(self) -> DynamoDBStreamsClient:
        found: DynamoDBStreamsClient = client("dynamodbstreams", self._settings.region, self._settings.threads)
        # The body of GetRecords is taken before botocore parses it: 1.5 us a record instead of 200.
        found.meta.events.register("before-parse.dynamodb-streams.GetRecords", take_body)
        return found

    # -- which tables -------------------------------------------------------------------------------------------------

    def tables(self, known: set[str]) -> list[str]:
        """Return the tables: those named, those that match a pattern, those that carry the tags.

        A known table that is no longer listed counts as well where patterns or tags decide: its stream can still be read.
        """
        patterns = [name for name in self._settings.tables if is_pattern(name)]
        found = self.named()
        if patterns:
            listed = known.union(self._listed())
            found += sorted(name for name in listed if any(fnmatchcase(name, pattern) for pattern in patterns))
        if self._settings.tags:
            found += sorted(known.union(self._tagged()))
        return list(dict.fromkeys(found))

    def named(self) -> list[str]:
        """Return those that the settings name."""
        return list(dict.fromkeys(name for name in self._settings.tables if not is_pattern(name)))

    def _listed(self) -> Iterator[str]:
        try:
            for page in self._tables.get_paginator("list_tables").paginate():
                yield from page["TableNames"]
        except ERRORS as error:
            raise explained_aws(error, "the list of tables") from error

    def _tagged(self) -> Iterator[str]:
        tagging: ResourceGroupsTaggingAPIClient = client("resourcegroupstaggingapi", self._settings.region, 1)
        filters: Any = [{"Key": key, "Values": [value]} for key, value in self._settings.tags.items()]
        try:
            pages = tagging.get_paginator("get_resources")
            for page in pages.paginate(TagFilters=filters, ResourceTypeFilters=["dynamodb:table"]):
                yield from (found["ResourceARN"].rpartition("/")[2] for found in page["ResourceTagMappingList"])
        except ERRORS as error:
            raise explained_aws(error, f"the tables with the tags {self._settings.tags}") from error

    # -- their streams ------------------------------------------------------------------------------------------------

    def stream_of(self, table: str) -> Stream:
        """Return the table's stream; raise FatalError when there is none, or when it does not carry images."""
        try:
            found = self._tables.describe_table(TableName=table)["Table"]
        except ERRORS as error:
            raise explained_aws(error, f"the table {table}") from error
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
        return Stream(table, arn)

    def owns(self, arn: str) -> bool:
        """Say whether a stream is one of DynamoDB's, of a table that the settings may mean."""
        _, _, resource = arn.partition(":table/")
        table = resource.partition("/")[0]
        return bool(table) and captures_table(self._settings, table)

    def shards_of(self, arn: str) -> list[Shard]:
        """Return the whole listing of a stream's shards, all pages of it."""
        shards, start = [], None
        while True:
            try:
                page = self._streams.describe_stream(
                    StreamArn=arn, **cast("Any", {"ExclusiveStartShardId": start} if start else {})
                )["StreamDescription"]
            except ERRORS as error:
                raise explained_aws(error, f"the stream {arn}") from error
            for shard in page.get("Shards", []):
                parent = shard.get("ParentShardId")
                first = shard.get("SequenceNumberRange", {}).get("StartingSequenceNumber")
                shards.append(Shard(shard["ShardId"], (parent,) if parent else (), first))
            start = page.get("LastEvaluatedShardId")
            if not start:
                return shards

    # -- reading ------------------------------------------------------------------------------------------------------

    def iterator(self, arn: str, shard_id: str, start: ShardStart) -> str:
        """Return an iterator; raise TrimmedError when what it should begin at is gone."""
        for where in _places(start):
            try:
                answer = self._streams.get_shard_iterator(StreamArn=arn, ShardId=shard_id, **where)
            except ClientError as error:
                # The starting number of a shard serves to notice what was trimmed; where it is refused, read what is there.
                refused = error.response.get("Error", {}).get("Code") == "ValidationException"
                if not (refused and start.first):
                    raise explained_aws(error, f"the shard {shard_id} of {arn}") from error
            except ERRORS as error:
                raise explained_aws(error, f"the shard {shard_id} of {arn}") from error
            else:
                return answer["ShardIterator"]
        raise FatalError(f"the shard {shard_id} of {arn}: there is no position to start from")

    def records(self, iterator: str, shard: ShardOf) -> Cut:
        """Return a GetRecords answer, cut into changes; its checksum has been checked."""
        try:
            answer = self._streams.get_records(ShardIterator=iterator, Limit=ANSWER_RECORDS)
        except ERRORS as error:
            raise explained_aws(error, str(shard)) from error
        body = taken_body(answer, str(shard))
        try:
            return cut_answer(body, shard.arn)
        except msgspec.DecodeError as error:
            raise TransientError(f"{shard}: the answer of GetRecords cannot be read: {error}") from error


def captures_table(settings: DynamoDBStreamSettings, table: str) -> bool:
    """Say whether the settings may mean a table; which tags it carries only AWS knows."""
    return bool(settings.tags) or any(fnmatchcase(table, name) for name in settings.tables)


def is_pattern(name: str) -> bool:
    """Say whether a table's name in the settings is a pattern."""
    return "*" in name or "?" in name


def _places(start: ShardStart) -> Iterator[dict[str, Any]]:
    if start.after is not None:
        yield {"ShardIteratorType": "AFTER_SEQUENCE_NUMBER", "SequenceNumber": start.after}
    elif start.since is not None:
        yield {"ShardIteratorType": "AT_TIMESTAMP", "Timestamp": datetime.fromtimestamp(start.since, UTC)}
    else:
        if start.first is not None:
            yield {"ShardIteratorType": "AT_SEQUENCE_NUMBER", "SequenceNumber": start.first}
        yield {"ShardIteratorType": "TRIM_HORIZON"}
