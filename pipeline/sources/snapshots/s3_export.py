"""Rows of a snapshot from an export of the table to S3, for tables too big to scan: it takes none of their read units.

The export is asked for after the snapshot has begun, so it holds nothing older. Its form (DynamoDB JSON, gzip, a manifest
that lists the files) is AWS's: developer guide, "DynamoDB table export output format". Blocking, thread-safe.
"""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from functools import cached_property
from hashlib import sha256
from itertools import islice
from typing import TYPE_CHECKING, Any

import msgspec
from botocore.exceptions import BotoCoreError, ClientError

from pipeline.errors import FatalError, HeadwaterError, TransientError
from pipeline.services.aws import ERRORS, client, explained_aws
from pipeline.sources.base import Cut
from pipeline.sources.snapshots.known import Export, Segment, Snapshot
from pipeline.sources.snapshots.scan import PageRows, ScanPage

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient
    from mypy_boto3_s3 import S3Client

LINES = 1_000
"""Items of a page at most."""
PAGE_BYTES = 1 << 20
"""Bytes of a page after which it takes no further item."""
Place = tuple[int, int]
"""The file among those of a segment, and how many of its lines were read."""


class ExportFailedError(FatalError):
    """AWS has given an export up."""


class Exports:
    """Asks for exports and reads them. Raises HeadwaterErrors that name the table or the file."""

    def __init__(self, region: str | None, threads: int) -> None:
        self._region, self._threads = region, threads
        self._files: dict[str, list[str]] = {}
        """By the key of the manifest."""
        self._open: dict[tuple[str, int], tuple[Place, Iterator[tuple[Place, bytes]]]] = {}
        """The file that a segment is reading, and where it is."""

    @cached_property
    def _tables(self) -> DynamoDBClient:
        found: DynamoDBClient = client("dynamodb", self._region, self._threads)
        return found

    @cached_property
    def _s3(self) -> S3Client:
        found: S3Client = client("s3", self._region, self._threads)
        return found

    def begin(self, snapshot: Snapshot, table_arn: str) -> str:
        """Ask for the export of a snapshot; asked again, it is the same. Returns its ARN."""
        bucket, prefix = bucket_and_prefix(snapshot.export)
        more: dict[str, Any] = {"S3Prefix": prefix} if prefix else {}
        try:
            answer = self._tables.export_table_to_point_in_time(
                TableArn=table_arn,
                S3Bucket=bucket,
                ExportFormat="DYNAMODB_JSON",
                ClientToken=token(snapshot),
                **more,
            )
        except ERRORS as error:
            raise _explain(error, snapshot.table) from error
        return answer["ExportDescription"]["ExportArn"]

    def complete(self, table: str, export_arn: str) -> Export | None:
        """Return where the files are, None while the export is under way; raise ExportFailedError when it has failed."""
        try:
            found = self._tables.describe_export(ExportArn=export_arn)["ExportDescription"]
            if found["ExportStatus"] == "FAILED":
                reason = found.get("FailureMessage", found.get("FailureCode", "AWS gives no reason"))
                raise ExportFailedError(
                    f"the export of the table {table} has failed: {reason}",
                    hint=f"headwater snapshot {table}",
                )
            if found["ExportStatus"] != "COMPLETED":
                return None
            body = self._s3.get_object(Bucket=found["S3Bucket"], Key=found["ExportManifest"])["Body"].read()
        except ERRORS as error:
            raise _explain(error, table) from error
        return Export(export_arn, _decode_summary(body).files, found["ExportTime"].timestamp())

    def leave(self, snapshot: Snapshot, number: int) -> None:
        """Let go of the file that a segment is reading."""
        self._open.pop((snapshot.stream, number), None)

    def page(self, snapshot: Snapshot, export: Export, number: int, at: Segment, keys: tuple[str, ...]) -> ScanPage:
        """Read some items of a segment, which is every so-manieth file of the export, from where it is."""
        bucket, _ = bucket_and_prefix(snapshot.export)
        place, segment = export_place(at), (snapshot.stream, number)
        opened, lines = self._open.pop(segment, (None, iter(())))
        cut_rows = PageRows(snapshot, keys, self._tables.meta.region_name, export.at)
        try:
            if opened != place:
                files = self._listed(bucket, export.files)[number :: snapshot.segments]
                lines = self._lines(bucket, files, place)
            items, size = [], 0
            for behind, line in islice(lines, LINES):
                place = behind
                items.append(_decode_line(line).item)
                size += len(line)
                if size > PAGE_BYTES:
                    break
            records = cut_rows.of(items)
        except (ClientError, BotoCoreError, RuntimeError) as error:
            raise _explain(error, snapshot.table) from error
        except (OSError, EOFError, msgspec.DecodeError) as error:  # a connection that broke off, a file cut short
            raise TransientError(f"the export of the table {snapshot.table}: {error}") from error
        ended = len(items) < LINES and size <= PAGE_BYTES
        if not ended:
            self._open[segment] = place, lines
        after = None if ended else {"file": {"N": str(place[0])}, "line": {"N": str(place[1])}}
        return ScanPage(Cut(records, [], None, None), Segment(after, at.rows + len(records), 0.0, ended), 0.0)

    def _listed(self, bucket: str, manifest: str) -> list[str]:
        if manifest not in self._files:
            body = self._s3.get_object(Bucket=bucket, Key=manifest)["Body"].read()
            self._files[manifest] = [_decode_file(line).key for line in body.splitlines() if line]
        return self._files[manifest]

    def _lines(self, bucket: str, files: list[str], start: Place) -> Iterator[tuple[Place, bytes]]:
        """Yield the lines behind a place, each with the place after it."""
        for index in range(start[0], len(files)):
            skipped = start[1] if index == start[0] else 0
            body: Any = self._s3.get_object(Bucket=bucket, Key=files[index])["Body"]
            with gzip.GzipFile(fileobj=body) as lines:
                for number, line in enumerate(lines):
                    if number >= skipped:
                        yield (index, number + 1), line


def token(snapshot: Snapshot) -> str:
    """Return what makes asking again harmless: no other's, not even that of the same first snapshot in another deployment.

    With a token that it has seen within 8 hours AWS answers the export of that time, which may be from before this snapshot.
    """
    return sha256(f"{snapshot.stream}:{snapshot.began}:{snapshot.asked}".encode()).hexdigest()[:32]


def bucket_and_prefix(url: str) -> tuple[str, str]:
    """Return what an `s3://bucket/prefix` names."""
    bucket, _, prefix = url.removeprefix("s3://").partition("/")
    return bucket, prefix.rstrip("/")


def export_place(at: Segment) -> Place:
    """Return where a segment is."""
    return (0, 0) if at.after is None else (int(at.after["file"]["N"]), int(at.after["line"]["N"]))


def _explain(error: Exception, table: str) -> HeadwaterError:
    if isinstance(error, ClientError):
        code = error.response.get("Error", {}).get("Code", "")
        if code == "PointInTimeRecoveryUnavailableException":
            return FatalError(
                f"the table {table} cannot be exported: point-in-time recovery is off",
                hint=f"aws dynamodb update-continuous-backups --table-name {table} "
                "--point-in-time-recovery-specification PointInTimeRecoveryEnabled=true",
            )
        if code in {"NoSuchBucket", "NoSuchKey"}:
            return FatalError(f"the export of the table {table}: {error}", hint="aws s3 ls")
    return explained_aws(error, f"the export of the table {table}")


class _Summary(msgspec.Struct):
    files: str = msgspec.field(name="manifestFilesS3Key")


class _File(msgspec.Struct):
    key: str = msgspec.field(name="dataFileS3Key")


class _Line(msgspec.Struct):
    item: msgspec.Raw = msgspec.field(name="Item")


_decode_summary = msgspec.json.Decoder(_Summary).decode
_decode_file = msgspec.json.Decoder(_File).decode
_decode_line = msgspec.json.Decoder(_Line).decode
