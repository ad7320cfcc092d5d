"""Replays on Apache Kafka: into shadow topics that equal what is live, killed and resumed, compared, made live."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import TopicPartition
from conftest import Headwater
from support.commands import heeding
from support.transform_workers import Flowing
from support.waiting import until

from headwater.lab.recorder import Recorder, lag
from headwater.lab.stack import Endpoints
from models.dead_letter import SEALED
from pipeline.sinks.lake.manifests import entry_of, read_manifests
from pipeline.sinks.lake.objects import Objects
from pipeline.topics.admin import admin, ensure

pytestmark = pytest.mark.kafka
FLOWS: list[dict[str, Any]] = [
    {
        "name": "f",
        "from": ["orders"],
        "to": [{"sink": "large", "where": "after.n >= 500"}, "small"],
        "where": "after.n > 0",
        "reject_limit": 1.0,
    },
    {"name": "g", "from": ["orders"], "to": "plain", "envelope": "plain"},
]
CHANGES = 1_000


@pytest.fixture(scope="module")
def flowing(kafka_stack: Endpoints, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Flowing]:
    """A deployment that has made CHANGES changes live, one of which was rejected by one flow."""
    directory = tmp_path_factory.mktemp("replays")
    lake = f"file://{directory}/lake"
    flowing = Flowing(kafka_stack, directory, FLOWS)
    flowing.fleet.settings = {
        **flowing.fleet.settings,
        "HEADWATER_AGENTS": '["transform", "lake"]',
        "HEADWATER_LAKE__URL": lake,
        "HEADWATER_LAKE__MAX_AGE": "1",
    }
    for n in range(CHANGES - 1):
        flowing.change(f"k{n % 50}", {"n": n + 1}, flush=False)
    flowing.change("odd", {"n": "no number"})
    with (
        flowing.recorded(flowing.topics.sink("plain")) as plain,
        flowing.recorded(flowing.topics.sink("small")) as small,
        flowing.recorded(flowing.topics.sink("large")) as large,
        flowing.fleet.running(),
    ):
        until(lambda: len(plain) == CHANGES and len(small) + len(large) == CHANGES - 1, "all changes live")
        objects = Objects(lake)
        until(
            lambda: sum(manifest.rows for manifest in read_manifests(objects)) == CHANGES - 1,
            "all changes in files",
        )
        ends = {flowing.topics.sink("small"): small.ends, flowing.topics.sink("large"): large.ends}
        until(lambda: lag(flowing.fleet.conf, flowing.fleet.prefix, ends) == 0, "and committed")
    yield flowing


def replayed(headwater: Headwater, flowing: Flowing, *arguments: str, **more: str) -> dict[str, Any]:
    done = headwater("replay", "--json", *arguments, **{**flowing.environment(), **more})
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def difference(headwater: Headwater, flowing: Flowing, replay_id: str, expected: int = 0, **more: str) -> Any:
    done = headwater("replay", "diff", replay_id, "--json", **{**flowing.environment(), **more})
    assert done.returncode == expected, done.stderr
    return {load["topic"].removeprefix(f"{flowing.fleet.prefix}."): load for load in json.loads(done.stdout)}


def listed(headwater: Headwater, flowing: Flowing) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(headwater("replay", "list", "--json", **flowing.environment()).stdout)
    return found


def contents(flowing: Flowing, topic: str, by: str = "") -> list[tuple[Any, ...]]:
    """What a topic holds, partition by partition: of the flows, or of the replay that was made live."""
    with Recorder(flowing.fleet.conf, topic) as recorder:
        until(lambda: recorder.is_at_end(flowing.fleet.conf), f"the end of {topic}")
        found = [(record.partition(), record.key(), record.value(), record.headers() or []) for record in recorder]
    return [one for one in found if dict(one[3]).get("replay", b"") == by.encode()]


def test_a_replay_equals_what_is_live_and_can_be_made_live(flowing: Flowing, headwater: Headwater) -> None:
    planned = replayed(headwater, flowing, "--from", "earliest", "--dry-run")
    assert planned["records_at_most"] >= CHANGES
    assert planned["seconds_about"] > 0
    assert planned["id"] not in {one["id"] for one in listed(headwater, flowing)}

    stranger = flowing.topics.late(f"other-{flowing.topics.sink('small')}.again")  # of a deployment beside this one
    ensure(admin(flowing.fleet.conf), [stranger], 1)
    done = replayed(headwater, flowing, "--from", "earliest", "--into", "again")
    assert (done["state"], done["progress"]["read"], done["progress"]["rejected"]) == ("done", CHANGES, 1)
    for sink in ("large", "small", "plain"):
        live = flowing.topics.sink(sink)
        assert contents(flowing, f"{live}.again") == contents(flowing, live) != []
    assert len(contents(flowing, f"{flowing.topics.dead_letter}.again")) == 1
    found = difference(headwater, flowing, done["id"])
    assert {topic: one["same"] for topic, one in found.items()} == {
        topic: len(contents(flowing, flowing.topics.sink(topic.removeprefix("sink."))))
        for topic in ("sink.large", "sink.small", "sink.plain")
    }
    taken = headwater("replay", "--from", "earliest", "--into", "again", **flowing.environment())
    assert (taken.returncode, "another replay has written there" in taken.stderr) == (2, True)

    promoted = headwater("replay", "promote", done["id"], "--json", **flowing.environment())
    assert promoted.returncode == 0, promoted.stderr
    for sink in ("large", "small", "plain"):
        live = flowing.topics.sink(sink)
        copies = [content[:3] for content in contents(flowing, live, done["id"])]
        assert copies == [content[:3] for content in contents(flowing, live)]
    states = json.loads(headwater("status", "--json", **flowing.environment()).stdout)["replays"]
    assert {state["id"]: state["state"] for state in states}[done["id"]] == "promoted"
    assert headwater("replay", "promote", done["id"], **flowing.environment()).returncode == 2


def test_other_flows_differ_change_by_change(flowing: Flowing, headwater: Headwater) -> None:
    other = [{**FLOWS[0], "where": "after.n > 100"}, {**FLOWS[1], "rename": {"n": "m"}}]
    changed = {"HEADWATER_FLOWS": json.dumps(other)}
    done = replayed(headwater, flowing, "--from", "earliest", **changed)
    found = difference(headwater, flowing, done["id"], expected=1, **changed)
    assert found["sink.small"]["missing"] == 100
    assert found["sink.plain"]["different"] == CHANGES
    (example, *_) = found["sink.plain"]["examples"]
    assert ('"n":' in example["live"], '"m":' in example["shadow"]) == (True, True)


def test_what_a_masking_flow_rejects_is_sealed(flowing: Flowing, headwater: Headwater, tmp_path: Path) -> None:
    headwater("flows", "new-key", str(tmp_path / "mask.key"))
    masks = {"mask": [{"path": "n", "how": "hash"}], "mask_key": f"file:{tmp_path / 'mask.key'}"}
    flows = {"HEADWATER_FLOWS": json.dumps([{**FLOWS[0], **masks}])}
    replayed(headwater, flowing, "--from", "earliest", "--into", "sealed", **flows)
    ((_, _, value, headers),) = contents(flowing, f"{flowing.topics.dead_letter}.sealed")
    assert dict(headers)[SEALED]
    assert b"no number" not in value + repr(headers).encode()


def test_a_replay_that_is_killed_continues_where_it_was(flowing: Flowing, headwater: Headwater, tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "headwater.cli",
        "replay",
        "--from",
        "earliest",
        "--into",
        "killed",
        "--rate",
        "200",
    ]
    topics = [f"{flowing.topics.sink(sink)}.killed" for sink in ("large", "small", "plain")]
    before = 0
    for number, fault in enumerate((signal.SIGKILL, signal.SIGINT, signal.SIGKILL)):
        running = subprocess.Popen(
            heeding(command),
            cwd=tmp_path,
            env=flowing.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        with flowing.recorded(flowing.topics.replays) as states:
            until(
                lambda before=before, states=states: progress(states) > before,  # type: ignore[misc]
                "a transaction of the replay",
            )
        running.send_signal(fault)
        _, said = running.communicate(timeout=60)
        (one,) = (one for one in listed(headwater, flowing) if one["suffix"] == "killed")
        assert one["state"] in {"running", "stopped"}, f"{number}: {said}"
        before = one["progress"]["read"]
        command = [sys.executable, "-m", "headwater.cli", "replay", "--resume", one["id"], "--rate", "200"]
    done = replayed(headwater, flowing, "--resume", one["id"], "--rate", "100000")
    assert (done["state"], done["progress"]["read"]) == ("done", CHANGES)
    for topic in topics:
        assert contents(flowing, topic) == contents(flowing, topic.removesuffix(".killed")) != []


def progress(states: Recorder) -> int:
    """How many records a replay has read, as it says itself."""
    said = [json.loads(record.value() or b"") for record in list(states)]
    return max((one["progress"]["read"] for one in said if one["suffix"] == "killed"), default=0)


def test_a_part_of_the_range_and_the_live_topics(flowing: Flowing, headwater: Headwater) -> None:
    key = '{"id": {"S": "k7"}}'
    done = replayed(headwater, flowing, "--from", "earliest", "--key", key, "--flow", "g", "--into", "one")
    of_key = [
        content for content in contents(flowing, flowing.topics.sink("plain")) if content[1] == b'{"id":{"S":"k7"}}'
    ]
    assert contents(flowing, f"{flowing.topics.sink('plain')}.one") == of_key != []
    assert done["progress"]["taken"] == len(of_key)
    assert difference(headwater, flowing, done["id"], expected=1)["sink.plain"]["missing"] >= 0

    nothing = replayed(headwater, flowing, "--from", "earliest", "--table", "others", "--into", "none")
    assert nothing["progress"]["taken"] == 0

    live = replayed(headwater, flowing, "--from", "earliest", "--key", key, "--flow", "g", "--publish")
    assert [content[:3] for content in contents(flowing, flowing.topics.sink("plain"), live["id"])] == [
        o[:3] for o in of_key
    ]


def test_the_lake_is_replayed_when_kafka_no_longer_has_the_changes(flowing: Flowing, headwater: Headwater) -> None:
    done = replayed(headwater, flowing, "--from", "earliest", "--source", "lake", "--flow", "g", "--into", "lake")
    assert done["progress"]["read"] == CHANGES - 1
    live = {key: value for _, key, value, _ in contents(flowing, flowing.topics.sink("plain"))}
    found = {key: value for _, key, value, _ in contents(flowing, f"{flowing.topics.sink('plain')}.lake")}
    live.pop(b'{"id":{"S":"odd"}}')
    assert found.keys() == live.keys()


def gone_from(flowing: Flowing, offsets: dict[int, int]) -> None:
    """Delete the records of raw before these offsets, as retention does."""
    places = [TopicPartition(flowing.topics.raw, partition, offset) for partition, offset in offsets.items()]
    for future in admin(flowing.fleet.conf).delete_records(places).values():
        future.result(20)


def test_a_replay_says_what_retention_took_and_its_diff_counts_it(
    kafka_stack: Endpoints, tmp_path: Path, headwater: Headwater
) -> None:
    flowing = Flowing(kafka_stack, tmp_path, [{"name": "f", "to": "all"}])
    for n in range(40):
        flowing.change(f"k{n}", {"n": n}, flush=False)
    flowing.change("last", {"n": 1})
    with flowing.fleet.running(), flowing.recorded(flowing.topics.sink("all")) as live:
        until(lambda: len(live) == 41, "all changes live")
        until(lambda: live.is_at_end(flowing.fleet.conf), "the end")
        counts = {partition: len(live.records[partition]) for partition in range(2)}
    gone_from(flowing, dict.fromkeys(range(2), 5))
    refused = headwater("replay", "--from", "2020-01-01T00:00Z", "--into", "gone", **flowing.environment())
    assert refused.returncode == 1, refused.stderr
    assert (
        f"{flowing.topics.raw}[0]: offsets up to 4 (5 at most) are deleted, the first record that is left is of 20"
        in (refused.stderr)
    )
    assert "--source lake" in refused.stderr
    assert listed(headwater, flowing) == []

    done = replayed(headwater, flowing, "--from", "2020-01-01T00:00Z", "--into", "gone", "--partial")
    assert done["progress"]["read"] == sum(counts.values()) - 10
    assert {gone["before"] for gone in done["gone"].values()} == {5}
    assert difference(headwater, flowing, done["id"], expected=1)["sink.all"]["missing"] == 10

    earliest = replayed(headwater, flowing, "--from", "earliest", "--into", "left")
    gone_from(flowing, {0: 7})
    found = difference(headwater, flowing, earliest["id"], expected=0)["sink.all"]
    assert (found["same"], found["missing"]) == (sum(counts.values()) - 10, 0)

    gone_from(flowing, {1: -1})
    nothing = headwater("replay", "--from", "2020-01-01T00:00Z", **flowing.environment())
    assert nothing.returncode == 1
    assert (
        f"{flowing.topics.raw}[1]: offsets up to {counts[1] - 1} ({counts[1]} at most) are deleted, nothing is left"
        in (nothing.stderr)
    )


def test_a_replay_does_not_continue_in_a_raw_that_was_recreated(
    kafka_stack: Endpoints, tmp_path: Path, headwater: Headwater
) -> None:
    flowing = Flowing(kafka_stack, tmp_path, [{"name": "f", "to": "all"}])
    for n in range(400):
        flowing.change(f"k{n}", {"n": n}, flush=False)
    flowing.change("last", {"n": 1})
    command = [sys.executable, "-m", "headwater.cli", "replay", "--from", "earliest", "--into", "x", "--rate", "50"]
    running = subprocess.Popen(
        heeding(command), cwd=tmp_path, env=flowing.environment(), stderr=subprocess.PIPE, text=True
    )
    with flowing.recorded(flowing.topics.replays) as states:
        until(lambda: len(states) > 0, "a transaction of the replay")
    running.send_signal(signal.SIGINT)
    running.communicate(timeout=60)
    (one,) = listed(headwater, flowing)
    assert one["state"] == "stopped"

    client, raw = admin(flowing.fleet.conf), flowing.topics.raw
    (wanted,) = [topic for topic in flowing.topics.all() if topic.name == raw]
    client.delete_topics([raw], operation_timeout=20)[raw].result(20)
    until(lambda: raw not in client.list_topics(timeout=10).topics, "raw gone")
    ensure(client, [wanted], 1)
    for n in range(500):
        flowing.change(f"k{n}", {"n": n}, flush=False)
    flowing.change("last", {"n": 1})
    resumed = headwater("replay", "--resume", one["id"], **flowing.environment())
    assert (resumed.returncode, len(resumed.stderr.splitlines())) == (1, 1), resumed.stderr
    assert f"has offsets of the topic {raw}, and the topic was ID" in resumed.stderr
    compared = headwater("replay", "diff", one["id"], **flowing.environment())
    assert (compared.returncode, "it was recreated" in compared.stderr) == (1, True)


def test_a_replay_of_a_lake_that_lacks_some_of_it_says_so(
    flowing: Flowing, headwater: Headwater, tmp_path: Path
) -> None:
    directory = Path(flowing.fleet.settings["HEADWATER_LAKE__URL"].removeprefix("file://"))
    ask = ("replay", "--from", "earliest", "--source", "lake", "--flow", "g")

    def said(url: str, *more: str) -> str:
        done = headwater(*ask, *more, **{**flowing.environment(), "HEADWATER_LAKE__URL": url})
        assert done.returncode == 1, done.stderr
        assert len(done.stderr.splitlines()) == 1, done.stderr
        return done.stderr

    assert "there is no such directory" in said(f"file://{tmp_path}/mistyped")
    (tmp_path / "empty").mkdir()
    assert "there is no file in the lake" in said(f"file://{tmp_path}/empty")
    copy = tmp_path / "copy"
    shutil.copytree(directory, copy)
    (first, *_) = sorted(copy.rglob("*+0+00000000000000000000.parquet"))
    first.unlink()
    assert f"{first.relative_to(copy)} is not there" in said(f"file://{copy}")
    (copy / entry_of(str(first.relative_to(copy)))).unlink()
    assert "offsets 0 to " in said(f"file://{copy}")
    done = replayed(headwater, flowing, *ask[1:], "--partial", "--into", "part", HEADWATER_LAKE__URL=f"file://{copy}")
    assert 0 < done["progress"]["read"] < CHANGES - 1
