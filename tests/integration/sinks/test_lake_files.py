"""The lake on Apache Kafka and an object store in trouble: every change in one file, whole, and the reason is seen."""

from __future__ import annotations

import io
import json
import uuid
from pathlib import Path
from typing import Any

import boto3
import pyarrow.parquet as pq
import pytest
from conftest import Headwater
from support.transform_workers import Flowing
from support.troubled_store import troubled_store
from support.waiting import until

from headwater.lab.stack import Endpoints
from pipeline.sinks.lake.layouts.columns import united
from pipeline.sinks.lake.manifests import read_manifests
from pipeline.sinks.lake.objects import Objects
from pipeline.sinks.lake.verify import verify_lake

pytestmark = pytest.mark.kafka
CHANGES = 900


@pytest.mark.parametrize("layout", ["envelope", "columns"])
def test_every_change_is_in_one_file_though_the_store_is_in_trouble_and_workers_are_killed(
    layout: str, kafka_stack: Endpoints, tmp_path: Path, headwater: Headwater, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in kafka_stack.environment().items():
        monkeypatch.setenv(name, value)
    bucket = f"lake-{uuid.uuid4().hex[:8]}"
    boto3.client("s3").create_bucket(Bucket=bucket, CreateBucketConfiguration={"LocationConstraint": "eu-west-1"})
    url = f"s3://{bucket}/files"
    flowing = Flowing(kafka_stack, tmp_path, [{"name": "f", "to": "all"}])
    with troubled_store(kafka_stack.s3_endpoint_url, every=2) as store:
        flowing.fleet.settings = {
            **flowing.fleet.settings,
            "HEADWATER_AGENTS": '["transform", "lake"]',
            "HEADWATER_LAKE__URL": url,
            "HEADWATER_LAKE__LAYOUT": layout,
            "HEADWATER_LAKE__MAX_ROWS": "40",
            "HEADWATER_LAKE__MAX_AGE": "1",
            "AWS_ENDPOINT_URL_S3": store.url,
        }
        objects = Objects(url)  # past the trouble
        with flowing.fleet.running(2) as workers, flowing.recorded(flowing.topics.sink_states) as states:
            for part in range(3):
                before = store.done["PUT"]
                for n in range(CHANGES // 3):
                    number = part * 1_000 + n
                    amount = number if part < 2 else f"{number} euro"  # of another type: it overflows
                    flowing.change(f"k{n % 50}", {"n": amount, f"extra{part}": "x"}, flush=False)
                flowing.change(f"k{part}", {"n": 1})
                until(lambda before=before: store.done["PUT"] > before, "a file on its way")  # type: ignore[misc]
                workers.kill(part % 2)
                workers.watch()
            written = CHANGES + 3

            def met_all_trouble() -> bool:
                nonlocal written
                flowing.change("more", {"n": 1})
                written += 1
                return {"slow", "broken off", "no answer"} <= set(store.done)

            until(met_all_trouble, "each kind of trouble")
            store.bucket_is_gone = True
            flowing.change("last", {"n": 7})
            until(lambda: _said(states), "the reason on the topic of states")
            shown = json.loads(headwater("status", "--json", **flowing.environment()).stdout)["sinks"]
            assert any("NoSuchBucket" in one["reason"] for one in shown), shown
            assert {one["sink"] for one in shown} == {"lake"}
            store.bucket_is_gone, store.every = False, 0
            wanted = written + 1
            until(lambda: sum(manifest.rows for manifest in read_manifests(objects)) == wanted, "all rows in files")
            until(lambda: not _said(states), "no reason any more")
        assert store.done["gone"]
    checked = verify_lake(objects)
    assert (checked.problems, checked.rows) == ((), wanted)
    column = "event_id" if layout == "envelope" else "_event_id"
    files = [pq.read_table(io.BytesIO(objects.read(p))) for p in objects.paths() if p.endswith(".parquet")]
    assert sorted(united(files).column(column).to_pylist()) == sorted(f"e{n + 1}" for n in range(wanted))


def _said(states: Any) -> bool:
    """Whether the newest word on any partition is that it does not go on."""
    latest = {record.key(): record.value() for record in list(states)}
    return any(latest.values())
