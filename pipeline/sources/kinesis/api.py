"""Kinesis Data Streams as AWS offers them: which streams, their shards, their records.

A stream that is deleted and recreated has the same ARN, and its shards the same IDs, but nothing else in common. So here
a stream's ARN carries the second of its creation, `arn:aws:kinesis:region:account:stream/NAME/1795474571`: then the two
are two streams of one name, and what lies between them is a gap, as with a table's stream that was off.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from functools import cached_property
from typing import TYPE_CHECKING, Any, Self, cast

import msgspec
from botocore.exceptions import ClientError

from pipeline.errors import HeadwaterError, TransientError
from pipeline.limits import MESSAGE_MAX
from pipeline.services.aws import ERRORS, TrimmedError, VanishedError, client, explained_aws, take_body, taken_body
from pipeline.settings.sources import KinesisSettings
from pipeline.sources.base import Cut, ShardStart, Stream, StreamApi
from pipeline.sources.dynamodb.streams import is_pattern
from pipeline.sources.kinesis.records import Answer, cut_kinesis, plain_json, read_record, table_name
from pipeline.sources.kinesis.resequence import Window, Windowed
from pipeline.sources.shard_positions import ShardOf
from pipeline.sources.shards import Shard

if TYPE_CHECKING:
    from mypy_boto3_kinesis import KinesisClient

log = logging.getLogger(__name__)
KINESIS_ANSWER_RECORDS = 2_000
"""Records in a GetRecords answer: more than the 1,000 a second that a shard takes, and 2 MiB where each has 1 KiB."""
LIST = "aws kinesis list-streams; headwater check"


class At(str):
    """The text of an iterator at a position, and the sequence number of the record that must come first."""

    expected: str | None = None

    @classmethod
    def of(cls, text: str, expected: str | None) -> Self:
        """Return the text with the sequence number."""
        found = cls(text)
        found.expected = expected
        return found


class KinesisStreams(StreamApi):
    """The calls that the source needs (see `sources.base.StreamApi`)."""

    def __init__(self, settings: KinesisSettings, most: int = MESSAGE_MAX) -> None:
        """`most`: bytes of a record on the ingest topic; what makes a larger one is a dead letter."""
        self._settings, self._most = settings, most
        self._newest: dict[str, str] = {}
        """The ARN with the creation, by the ARN without."""
        self._warned: set[str] = set()

    @cached_property
    def _streams(self) -> KinesisClient:
        found: KinesisClient = client("kinesis", self._settings.region, self._settings.threads)
        # The body of GetRecords is taken before botocore parses it, as for DynamoDB.
        found.meta.events.register("before-parse.kinesis.GetRecords", take_body)
        return found

    # -- which streams ------------------------------------------------------------------------------------------------

    def tables(self, known: set[str]) -> list[str]:
        """Return the names of the streams: those named, and those that match a pattern."""
        patterns = [name for name in self._settings.streams if is_pattern(name)]
        found = self.named()
        if patterns:
            listed = known.union(self._listed())
            found += sorted(name for name in listed if any(fnmatchcase(name, pattern) for pattern in patterns))
        return list(dict.fromkeys(found))

    def named(self) -> list[str]:
        """Return those that the settings name."""
        return list(dict.fromkeys(name for name in self._settings.streams if not is_pattern(name)))

    def _listed(self) -> Iterator[str]:
        try:
            for page in self._streams.get_paginator("list_streams").paginate():
                yield from page["StreamNames"]
        except ERRORS as error:
            raise explained_aws(error, "the list of streams", listing=LIST) from error

    def stream_of(self, table: str) -> Stream:
        """Return the stream of this name as it is now."""
        try:
            found = self._streams.describe_stream_summary(StreamName=table)["StreamDescriptionSummary"]
        except ERRORS as error:
            raise explained_aws(error, f"the stream {table}", listing=LIST) from error
        arn = found["StreamARN"]
        self._newest[arn] = f"{arn}/{found['StreamCreationTimestamp'].timestamp():.0f}"
        if cast("dict[str, Any]", found).get("RecordDistributionStrategy") == "AUTO" and arn not in self._warned:
            self._warned.add(arn)
            log.warning(
                "The stream %s distributes its records automatically: Kinesis ignores their partition keys, so changes of "
                "one item come out of order. Try: aws kinesis update-stream-record-distribution-strategy help",
                table,
            )
        return Stream(table, self._newest[arn])

    def owns(self, arn: str) -> bool:
        """Say whether a stream is one of Kinesis, of a name that the settings mean."""
        name = table_name(arn)
        return bool(name) and captures_stream(self._settings, name)

    def shards_of(self, arn: str) -> list[Shard]:
        """Return the whole listing of a stream's shards, all pages of it; raise VanishedError when it was recreated."""
        self._require_newest(arn)
        shards: list[Shard] = []
        page: Any = {"StreamARN": plain_json(arn)}
        while page:
            try:
                answer = self._streams.list_shards(**page)
            except ERRORS as error:
                raise explained_aws(error, f"the stream {arn}", listing=LIST) from error
            shards += [_shard(cast("dict[str, Any]", shard)) for shard in answer.get("Shards", [])]
            page = {"NextToken": answer["NextToken"]} if answer.get("NextToken") else None
        return shards

    def _require_newest(self, arn: str) -> None:
        if plain_json(arn) not in self._newest:
            self.stream_of(table_name(arn))
        if self._newest.get(plain_json(arn)) != arn:
            raise VanishedError(f"the stream {arn} was deleted; another one has its name", hint=LIST)

    def _told(self, error: HeadwaterError, arn: str) -> HeadwaterError:
        """Return the error; when something is gone the stream may be another one now: the next call looks at that."""
        if isinstance(error, VanishedError):
            self._newest.pop(plain_json(arn), None)
        return error

    # -- reading ------------------------------------------------------------------------------------------------------

    def iterator(self, arn: str, shard_id: str, start: ShardStart) -> str:
        """Return an iterator that begins with the record at the position, which `records` expects and leaves out.

        When the record that it should continue after is gone, Kinesis itself says nothing: it begins with what is left.
        """
        self._require_newest(arn)
        where: Any
        if start.after is not None:
            where, kind = {"StartingSequenceNumber": start.after}, "AT_SEQUENCE_NUMBER"
        elif start.since is not None:
            where, kind = {"Timestamp": datetime.fromtimestamp(start.since, UTC)}, "AT_TIMESTAMP"
        else:
            where, kind = {}, "TRIM_HORIZON"
        return self._windowed(At.of(self._iterator(arn, shard_id, where, kind), start.after))

    def _iterator(self, arn: str, shard_id: str, where: Any, kind: Any) -> str:
        what = f"the shard {shard_id} of {arn}"
        try:
            answer = self._streams.get_shard_iterator(
                StreamARN=plain_json(arn), ShardId=shard_id, ShardIteratorType=kind, **where
            )
        except ERRORS as error:
            raise self._told(refused_stream(error, what, "StartingSequenceNumber" in where), arn) from error
        return answer["ShardIterator"]

    def records(self, iterator: str, shard: ShardOf) -> Cut:
        """Return a GetRecords answer, cut into changes; `wait` keeps to the calls and bytes a second that a shard gives.

        Raises TrimmedError when the first record is not the one at the position. An empty answer says nothing of that while
        Kinesis is behind: the next one is looked at as well.
        """
        expected = _expected(iterator)
        answer, expected = behind(expected, self._ask(iterator, shard, KINESIS_ANSWER_RECORDS), shard)
        following = answer.next_iterator
        if following is not None and expected is not None:
            answer = answer._replace(next_iterator=At.of(following, expected))
        return self._cut(answer, iterator)

    def _cut(self, answer: Answer, iterator: str) -> Cut:
        """Cut an answer that the iterator gave; with `resequence`, hold back what is not due."""
        if not isinstance(iterator, Windowed):
            return cut_kinesis(answer, self._settings, self._most)
        found = iterator.window.take(answer, self._settings, self._most)
        following = found.next_iterator
        return found._replace(next_iterator=None if following is None else Windowed.of(following, iterator.window))

    def _windowed(self, iterator: str) -> str:
        """Return a new iterator with a window of its own, where changes are to be held back."""
        seconds = self._settings.resequence
        return Windowed.of(iterator, Window(seconds)) if seconds else iterator

    def _ask(self, iterator: str, shard: ShardOf, most: int) -> Answer:
        asked = time.monotonic()
        try:
            answer = self._streams.get_records(ShardIterator=iterator, Limit=most)
        except ERRORS as error:
            raise self._told(explained_aws(error, str(shard), listing=LIST), shard.arn) from error
        body = taken_body(answer, str(shard))
        try:
            return read_record(body, plain_json(shard.arn), shard.shard_id)._replace(
                asked=asked, heard=time.monotonic()
            )
        except msgspec.DecodeError as error:
            raise TransientError(f"{shard}: the answer of GetRecords cannot be read: {error}") from error


def behind(expected: str | None, answer: Answer, shard: ShardOf) -> tuple[Answer, str | None]:
    """Return what comes after the record at the position, and which record is still expected there.

    When another one comes, the record was trimmed. When nothing is there at all, nothing was missed.
    """
    if expected is None or not answer.puts:
        return answer, expected if answer.behind else None
    if answer.puts[0].sequence != expected:
        raise TrimmedError(f"{shard}: the records at the position have been trimmed")
    return answer._replace(puts=answer.puts[1:]), None


def _expected(iterator: str) -> str | None:
    """Return the sequence number of the record that an iterator must begin with, or None."""
    text = iterator.text if isinstance(iterator, Windowed) else iterator
    return text.expected if isinstance(text, At) else None


def captures_stream(settings: KinesisSettings, stream: str) -> bool:
    """Say whether the settings mean a stream."""
    return any(fnmatchcase(stream, name) for name in settings.streams)


def _shard(found: dict[str, Any]) -> Shard:
    parents = [found[name] for name in ("ParentShardId", "AdjacentParentShardId") if found.get(name)]
    return Shard(found["ShardId"], tuple(parents), found.get("SequenceNumberRange", {}).get("StartingSequenceNumber"))


def refused_stream(error: Exception, what: str, at_a_number: bool) -> HeadwaterError:
    """Return an error in our meanings: a sequence number that Kinesis does not know any more was trimmed."""
    code = error.response.get("Error", {}).get("Code") if isinstance(error, ClientError) else ""
    if code == "InvalidArgumentException" and at_a_number:
        return TrimmedError(f"{what}: Kinesis no longer knows the position: {error}")
    return explained_aws(error, what, listing=LIST)
