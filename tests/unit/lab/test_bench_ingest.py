"""The pure parts of the benchmark `ingest`: the canned stream, the plain loop's changes, figures."""

from __future__ import annotations

import json
from collections.abc import Iterator

import boto3
import msgspec
import pytest

from headwater.lab.bench import canned, ingest, ingest_report, plain_boto3
from headwater.lab.bench.load import LoadOutcome
from pipeline.sources.dynamodb.records import cut_answer
from pipeline.sources.shard_positions import ShardPosition

RECORDS = canned.PER_ANSWER + 5


@pytest.fixture(scope="module")
def server() -> Iterator[canned.Server]:
    with canned.serving(canned.Canned(2, RECORDS)) as server:
        yield server


def client(server: canned.Server, service: str) -> object:
    return boto3.client(  # type: ignore[call-overload]
        service,
        endpoint_url=server.url,
        region_name="eu-west-1",
        aws_access_key_id="none",
        aws_secret_access_key="none",
    )


def test_boto3_reads_a_canned_shard_from_any_answer_to_its_open_end(server: canned.Server) -> None:
    streams = client(server, "dynamodbstreams")
    description = streams.describe_stream(StreamArn=canned.ARN)  # type: ignore[attr-defined]
    shard = description["StreamDescription"]["Shards"][1]["ShardId"]
    after = str(canned.sequence(1, canned.PER_ANSWER - 1))
    read = []
    for start in ({"ShardIteratorType": "TRIM_HORIZON"}, _after(after)):
        found = streams.get_shard_iterator(StreamArn=canned.ARN, ShardId=shard, **start)  # type: ignore[attr-defined]
        iterator = found["ShardIterator"]
        sizes: list[int] = []
        while not sizes or sizes[-1]:
            answer = streams.get_records(ShardIterator=iterator)  # type: ignore[attr-defined]
            iterator, records = answer["NextShardIterator"], answer["Records"]
            sizes.append(len(records))
        read.append(sizes)
    assert read == [[canned.PER_ANSWER, 5, 0], [5, 0]]


def _after(sequence: str) -> dict[str, str]:
    return {"ShardIteratorType": "AFTER_SEQUENCE_NUMBER", "SequenceNumber": sequence}


def test_the_plain_loop_writes_the_keys_and_values_of_headwater(server: canned.Server) -> None:
    streams = client(server, "dynamodbstreams")
    answer = streams.get_records(ShardIterator=canned.iterator(0, 0))  # type: ignore[attr-defined]
    plain = [plain_boto3.change(record, canned.ARN) for record in answer["Records"]]
    ours = cut_answer(canned.get_records(0, 0, RECORDS), canned.ARN).records
    assert [key.encode() for key, _ in plain] == [record["key"] for record in ours]
    assert [json.loads(value) for _, value in plain] == [json.loads(record["value"]) for record in ours]


def test_canned_records_have_one_size_of_about_a_kilobyte_and_event_ids_of_their_own() -> None:
    assert {len(canned.record(shard, number)) for shard in (0, 63) for number in (0, 1, 999_999)} == {
        len(canned.record(0, 0))
    }
    assert 1_000 < len(canned.record(0, 0)) < 1_300
    ids = {canned.event_id(shard, number) for shard in range(3) for number in range(1_000)}
    assert len(ids) == 3_000
    assert ingest.event_id_of(b'{"eventSourceARN":"x",' + canned.record(2, 7)[1:]).decode() == canned.event_id(2, 7)


def test_an_answer_is_as_large_as_aws_makes_it() -> None:
    body = canned.get_records(0, 0, 10_000)
    assert 900_000 < len(body) < 1_010_000
    assert cut_answer(body, canned.ARN).last == str(canned.sequence(0, canned.PER_ANSWER - 1))


def test_results_are_medians_and_name_what_is_wrong() -> None:
    rounds = [ingest.IngestRound(pace, 14.0, 0.5, LoadOutcome(0, 0)) for pace in (60_000.0, 70_000.0, 80_000.0)]
    plain = [ingest.IngestRound(4_000.0, 240.0, 0.5, LoadOutcome(1, 0))]
    results = ingest.IngestResults("Kafka", rounds={"plain_boto3": plain, "8": rounds, "64": rounds})
    results.idle = ingest.Idle(19.2, 0.02)
    assert results.as_json() == {
        "plain_boto3": {"changes_per_s": 4_000, "cpu_s_per_million": 240.0},
        "headwater": {
            "8": {"changes_per_s": 70_000, "cpu_s_per_million": 14.0},
            "64": {"changes_per_s": 70_000, "cpu_s_per_million": 14.0},
        },
        "idle_calls_per_s": 19.2,
        "idle_cpu_share": 0.02,
        "broker": "Kafka",
    }
    assert results.failures == ["Plain boto3 loop, 8 shards: 1 missing, 0 doubled"]
    assert "17.5 times" in ingest_report.facts(results)[0]
    assert "60,000 to 80,000" in ingest_report.markdown(results)


def test_positions_tell_how_many_changes_were_committed() -> None:
    progress = ingest.Positions()
    progress.take(b"arn/", b'{"table":"orders"}')
    for shard, number in ((0, 41), (1, 9), (0, 99)):
        value = msgspec.json.encode(ShardPosition("orders", str(canned.sequence(shard, number))))
        progress.take(b"arn/%d" % shard, value)
    assert progress.done == 110
