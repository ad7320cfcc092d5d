"""Exports of the simulated tables to S3: the calls, and the objects in the form that AWS gives them."""

from __future__ import annotations

import gzip
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import boto3
import msgspec

from headwater.lab.simulator.faults import ApiError
from headwater.lab.simulator.world import REGION, World, image

FILES = 5
LOOKS = 3
"""From which look on an export is complete."""
Request = dict[str, Any]
encode = msgspec.json.encode


class SimulatedExports:
    """Answers `ExportTableToPointInTime` and `DescribeExport`. The items are those of the moment of the first call."""

    def __init__(self, world: World, s3_endpoint: str) -> None:
        self._world, self._s3_endpoint = world, s3_endpoint
        self._described: dict[str, dict[str, Any]] = {}
        """By ARN, as it is when it is complete."""
        self._by_token: dict[str, str] = {}
        self._looks: Counter[str] = Counter()
        tables = "DynamoDB_20120810."
        self.calls: dict[str, Callable[[Request], bytes]] = {
            f"{tables}ExportTableToPointInTime": self._export,
            f"{tables}DescribeExport": self._describe,
        }

    def _export(self, request: Request) -> bytes:
        token = request.get("ClientToken", "")
        if token not in self._by_token:
            self._by_token[token] = self._make(request)
        return self._describe({"ExportArn": self._by_token[token]})

    def _make(self, request: Request) -> str:
        if not self._s3_endpoint:
            raise ApiError("ValidationException", "the simulator has no S3 endpoint to export to")
        table_arn, bucket = request["TableArn"], request["S3Bucket"]
        number = f"{len(self._described):014d}-simulated"
        folder = "/".join(filter(None, (request.get("S3Prefix"), "AWSDynamoDB", number)))
        s3 = boto3.client("s3", endpoint_url=self._s3_endpoint, region_name=REGION)
        for key, body in self.objects(table_arn.rpartition("/")[2], folder):
            s3.put_object(Bucket=bucket, Key=key, Body=body)
        arn = f"{table_arn}/export/{number}"
        self._described[arn] = {
            "ExportArn": arn,
            "ExportStatus": "COMPLETED",
            "ExportTime": round(self._world.clock(), 3),
            "ExportManifest": f"{folder}/manifest-summary.json",
            "TableArn": table_arn,
            "S3Bucket": bucket,
            "ExportFormat": "DYNAMODB_JSON",
        }
        return arn

    def objects(self, table: str, folder: str) -> Iterator[tuple[str, bytes]]:
        """Yield the keys and bodies of an export: its files, some of them empty, and the two manifests."""
        items = list(self._world.items(table))
        listed = []
        for number in range(FILES):
            part = items[number :: FILES - 1] if number < FILES - 1 else []
            lines = [encode({"Item": image(f"item-{n}", version)}) + b"\n" for n, version in part]
            key = f"{folder}/data/{number}.json.gz"
            yield key, gzip.compress(b"".join(lines))
            listed.append(encode({"itemCount": len(part), "dataFileS3Key": key}) + b"\n")
        yield f"{folder}/manifest-files.json", b"".join(listed)
        summary = {"version": "2020-06-30", "manifestFilesS3Key": f"{folder}/manifest-files.json"}
        yield f"{folder}/manifest-summary.json", encode({**summary, "itemCount": len(items)})

    def _describe(self, request: Request) -> bytes:
        arn = request["ExportArn"]
        found = self._described.get(arn)
        if found is None:
            raise ApiError("ExportNotFoundException", f"Export not found: {arn}")
        self._looks[arn] += 1
        under_way = {"ExportStatus": "IN_PROGRESS"} if self._looks[arn] < LOOKS else {}
        return encode({"ExportDescription": {**found, **under_way}})
