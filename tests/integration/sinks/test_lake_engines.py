"""Six engines read one lake: in both layouts and both modes of Iceberg, of hostile items, after all that happens to a lake."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Producer
from conftest import Headwater, headwater_in
from pyiceberg.catalog import load_catalog
from pyiceberg.schema import make_compatible_name
from support.fleet import Fleet, ready
from support.lake_engines import FILES, Rows
from support.spark_session import missing, spark
from support.transform_workers import Flowing
from support.waiting import until

from headwater.lab.recorder import lag
from headwater.lab.stack import Endpoints
from pipeline.sinks.lake.iceberg.columns import columns_of
from pipeline.sinks.lake.layouts.columns import Kind, item_of

pytestmark = [
    pytest.mark.kafka,
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # sockets of pyspark
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
CHANGES, KEYS, PARTITIONS = 5_000, 700, 2
NAMES = ["date", "hour", "table", "Date", "größe", "a b", "select", "a-b", "a_x2Db", "name", "NAME", "emoji 😀"]
ODD_NAMES = ["_offset", "_event_id", "a.b", "", "x" * 300, 'q"uote', "back\\slash", "_partition", "changed_date"]
NUMBERS = [
    "0",
    "-1",
    "10",
    "10.5",
    "0.1",
    "9007199254740993",
    "9.999999999",
    "-0.000000001",
    "1E+3",
    "99999999999999999999",
]
ODD_NUMBERS = ["1" * 38, "1E-130", "9.9999999999E+125", "0.0000000001", "-12345678901234567890123456789.123456789"]
Item = dict[str, Any]


def value_of(rand: random.Random) -> Item:
    """Return a value of any type; most numbers fit a column."""
    number = rand.choice(NUMBERS if rand.random() < 0.9 else ODD_NUMBERS)
    word = rand.choice(["", "paid", "ß", "a'b\"c", "\\", "null", "日本", "x" * 50])
    values: list[Item] = [
        {"S": word},
        {"N": number},
        {"N": number},
        {"N": number},
        {"BOOL": rand.random() < 0.5},
        {"NULL": True},
        {"B": "AAEC/w=="},
        {"SS": ["a", word or "b"]},
        {"NS": ["1", number]} if number != "1" else {"NS": ["1"]},
        {"BS": ["AA==", "/w=="]},
        {"M": {"x": {"N": number}, "": {"S": word}}},
        {"L": [{"N": number}, {"L": []}, {"NULL": True}]},
    ]
    return rand.choice(values)


@dataclass
class Truth:
    """What was written to raw."""

    changes: dict[str, tuple[str, Item, int, str]] = field(default_factory=dict)
    """By event ID: the kind, the item after it (of a deletion its key), its time in microseconds, its sequence."""
    items: dict[str, Item] = field(default_factory=dict)
    """As they are at the end, by their message's key."""


def write(flowing: Flowing) -> Truth:
    """Write changes as deduplicate does."""
    rand, truth, alive = random.Random(7), Truth(), set[int]()  # noqa: S311 - no secret
    producer = Producer({**flowing.fleet.conf, "partitioner": "murmur2_random"})
    for number in range(CHANGES):
        key = rand.randrange(KEYS)
        keys = {"id": {"S": f"k{key}"}}
        attributes = {name: value_of(rand) for name in rand.sample(NAMES, 4)} | {"n": {"N": rand.choice(NUMBERS)}}
        if rand.random() < 0.2:
            attributes |= {name: value_of(rand) for name in rand.sample(ODD_NAMES, 2)}
        event = "REMOVE" if key in alive and rand.random() < 0.15 else "MODIFY" if key in alive else "INSERT"
        (alive.discard if event == "REMOVE" else alive.add)(key)
        item = keys if event == "REMOVE" else {**keys, **attributes}
        at, sequence = 1_764_500_000 + number * 2, f"{10**20 + number}"
        body: Item = {"Keys": keys, "SequenceNumber": sequence, "ApproximateCreationDateTime": at}
        body |= {"OldImage": keys} if event == "REMOVE" else {"NewImage": item}
        change = {
            "eventID": f"e{number}",
            "eventName": event,
            "eventSourceARN": "arn:aws:dynamodb:eu-west-1:123456789012:table/orders/stream/2026-11-01T00:00:00.000",
            "dynamodb": body,
        }
        message_key = json.dumps(keys, separators=(",", ":"))
        value = json.dumps(change, ensure_ascii=False, separators=(",", ":"))
        producer.produce(flowing.topics.raw, value.encode(), message_key.encode())
        producer.poll(0)
        truth.changes[f"e{number}"] = (event, item, at * 1_000_000, sequence)
        if event == "REMOVE":
            truth.items.pop(message_key, None)
        else:
            truth.items[message_key] = item
    assert producer.flush(30) == 0
    return truth


@dataclass
class Lakes:
    """The four lakes of a deployment, full, and what should be in them."""

    directory: Path
    flowing: Flowing
    truth: Truth
    replay: str

    def catalog(self, name: str) -> Any:
        return load_catalog(
            "headwater", **catalog_of(self.directory, name), warehouse=f"file://{self.directory}/{name}"
        )


def catalog_of(directory: Path, name: str) -> dict[str, str]:
    return {"type": "sql", "uri": f"sqlite:///{directory}/{name}.db"}


def settings_of(directory: Path, name: str) -> dict[str, Any]:
    """Return the settings of a lake."""
    place = {"name": name, "url": f"file://{directory}/{name}", "max_rows": 400, "max_age": 2.0}
    if name in {"envelope", "columns"}:
        return {**place, "layout": name}
    return {**place, "layout": "columns", "table": "iceberg", "mode": name, "catalog": catalog_of(directory, name)}


LAKES = ("envelope", "columns", "append", "upsert")


@pytest.fixture(scope="module")
def lakes(kafka_stack: Endpoints, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lakes]:
    directory = tmp_path_factory.mktemp("lakes")
    headwater = headwater_in(tmp_path_factory.mktemp("commands"))
    given = {"HEADWATER_LAKES": json.dumps([settings_of(directory, name) for name in LAKES])}
    flowing = Flowing(kafka_stack, directory / "transform", [{"name": "f", "to": "all"}], variables=given)
    with flowing.fleet.running():
        truth = write(flowing)
        sink = flowing.topics.sink("all")
        fill(flowing, directory, sink, 1)
        done = headwater("replay", "--json", "--from", "earliest", "--into", "again", **flowing.environment())
        assert done.returncode == 0, done.stderr
        replay = json.loads(done.stdout.splitlines()[-1])["id"]
        promoted = headwater("replay", "promote", replay, "--json", **flowing.environment())
        assert promoted.returncode == 0, promoted.stderr
        fill(flowing, directory, sink, 2)
    kept = headwater("lake", "maintain", "--older-than", "0", "--json", **flowing.environment())
    assert kept.returncode == 0, kept.stderr
    checked = headwater("lake", "verify", **flowing.environment())
    assert checked.returncode == 0, checked.stdout
    yield Lakes(directory, flowing, truth, replay)


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Return a session of Spark."""
    if (why := missing()) is not None:
        (pytest.fail if os.environ.get("HEADWATER_REQUIRE_KAFKA") == "1" else pytest.skip)(why)
    with spark(tmp_path_factory.mktemp("spark")) as session:
        yield session


def read_by(session: Any, statements: str, table: str) -> Rows:
    """Return the rows of a table that statements make in Spark."""
    for statement in statements.split(";"):
        if words := "\n".join(line for line in statement.splitlines() if not line.lstrip().startswith("--")).strip():
            session.sql(words)
    rows = session.table(f"`{table}`").collect()
    session.sql(f"DROP TABLE `{table}`")
    return [row_of(row) for row in rows]


def row_of(row: Any) -> dict[str, Any]:
    """Return a row of Spark with Python's own values."""
    return {name: plain(value) for name, value in row.asDict().items()}


def plain(value: Any) -> Any:
    return (
        bytes(value) if isinstance(value, bytearray) else list(map(plain, value)) if isinstance(value, list) else value
    )


def fill(flowing: Flowing, directory: Path, sink: str, times: int) -> None:
    """Have two workers of each lake carry all that is there, and kill one of them in the middle."""
    wanted = CHANGES * times
    for name in LAKES:
        variables = {**flowing.fleet.settings, "HEADWATER_AGENTS": json.dumps([f"lake.{name}"])}
        fleet = Fleet(
            flowing.fleet.endpoints, directory / f"{name}{times}", variables, PARTITIONS, prefix=flowing.fleet.prefix
        )
        group = f"{fleet.prefix}.lake.{name}"

        ends = {sink: ends_of(flowing, sink, wanted)}

        def left(group: str = group, ends: Any = ends) -> int:
            return lag(flowing.fleet.conf, group, ends)

        workers = fleet.workers(2)
        for worker in workers.all:
            worker.most_starts = 10
        workers.start()
        try:
            until(lambda workers=workers: all(map(ready, workers.all)), "workers that are ready")  # type: ignore[misc]
            until(lambda left=left: left() < CHANGES * 0.9, "the first flushes")  # type: ignore[misc]
            workers.kill(0)

            def through(workers: Any = workers, left: Any = left) -> bool:
                workers.watch()
                return bool(left() == 0)

            until(through, f"all changes in {name}", 150)
        finally:
            workers.stop()


def ends_of(flowing: Flowing, topic: str, wanted: int) -> dict[int, int]:
    """Return the offset after the last record of each partition, when so many records are there."""
    with flowing.recorded(topic) as seen:
        until(lambda: len(seen) >= wanted, f"{wanted} records")
        return {partition: max(one.offset() or 0 for one in some) + 1 for partition, some in seen.records.items()}


# -- what is held against the truth -----------------------------------------------------------------------------------


def comparable(item: Mapping[str, Any]) -> Item:
    """Return an item in which equal numbers are equal."""
    return {
        name: {"N": Decimal(value["N"])} if isinstance(value, dict) and "N" in value else value
        for name, value in item.items()
    }


def micros(at: datetime) -> int:
    since = at.replace(tzinfo=at.tzinfo or UTC) - datetime(1970, 1, 1, tzinfo=UTC)
    return (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds


def hold(rows: Rows, lakes: Lakes, kinds: Mapping[str, Kind]) -> None:
    """Hold the rows of changes against the truth: each change once, and once by the replay."""
    sink, truth = lakes.flowing.topics.sink("all"), lakes.truth
    prefix = "_" if kinds else ""
    seen: dict[str | None, set[str]] = {None: set(), lakes.replay: set()}
    places = set()
    for row in rows:
        event_id = row[f"{prefix}event_id"]
        event, item, at, sequence = truth.changes[event_id]
        found = item_of(row, kinds) if kinds else json.loads(row["after"] or row["key"])
        assert comparable(found) == comparable(item), event_id
        assert (row[f"{prefix}op"], row[f"{prefix}sequence"]) == (
            {"INSERT": "c", "MODIFY": "u"}.get(event, "d"),
            sequence,
        )
        assert micros(row[f"{prefix}changed_at"]) == at
        assert row[f"{prefix}topic"] == sink
        places.add((row["_topic_partition" if kinds else "partition"], row[f"{prefix}offset"]))
        seen[row[f"{prefix}replay"]].add(event_id)
    assert seen == {None: set(truth.changes), lakes.replay: set(truth.changes)}
    assert len(places) == len(rows) == 2 * CHANGES


def hold_items(rows: Rows, lakes: Lakes, kinds: Mapping[str, Kind]) -> None:
    """Hold the rows of items against the truth."""
    found = {row["_key"]: comparable(item_of(row, kinds)) for row in rows}
    assert found == {key: comparable(item) for key, item in lakes.truth.items.items()}
    assert len(rows) == len(found)


def kinds_of(lakes: Lakes, headwater: Headwater) -> Mapping[str, Kind]:
    """Return the columns of the lake of files, as the topic of schemas has them."""
    with lakes.flowing.recorded(lakes.flowing.topics.lake_schemas) as seen:
        until(lambda: seen.is_at_end(lakes.flowing.fleet.conf), "the end of the schemas")
        return dict(json.loads([one.value() or b"" for one in seen][-1]))


@pytest.mark.parametrize("engine", [*FILES, "spark"])
@pytest.mark.parametrize("layout", ["envelope", "columns"])
def test_an_engine_reads_files(
    lakes: Lakes, layout: str, engine: str, request: pytest.FixtureRequest, headwater: Headwater
) -> None:
    place = f"{lakes.directory}/{layout}/source_table=orders"
    kinds = kinds_of(lakes, headwater) if layout == "columns" else {}
    if engine == "spark":
        made = headwater("lake", "ddl", "--lake", layout, "--engine", "spark", **lakes.flowing.environment())
        rows = read_by(request.getfixturevalue("session"), made.stdout, "orders")
    else:
        rows = FILES[engine](place)
    hold(rows, lakes, kinds)


@pytest.mark.parametrize("engine", [*FILES, "pyiceberg", "spark"])
@pytest.mark.parametrize("mode", ["append", "upsert"])
def test_an_engine_reads_a_table(lakes: Lakes, mode: str, engine: str, request: pytest.FixtureRequest) -> None:
    table = lakes.catalog(mode).load_table(("headwater", "orders"))
    if engine == "pyiceberg":
        rows = table.scan().to_arrow().to_pylist()
    elif engine == "spark":
        session = request.getfixturevalue("session")
        rows = [row_of(row) for row in session.read.format("iceberg").load(table.metadata_location).collect()]
    else:  # the files of the table as it is now
        files = [file.removeprefix("file://") for file in table.inspect.data_files().column("file_path").to_pylist()]
        rows = [renamed(row, columns_of(table).columns) for row in FILES[engine](files)]
    (hold if mode == "append" else hold_items)(rows, lakes, columns_of(table).columns)


def renamed(row: Mapping[str, Any], kinds: Mapping[str, Kind]) -> dict[str, Any]:
    """Return a row of a file of an Iceberg table: there names are spelled as Avro's are."""
    known = {make_compatible_name(name): name for name in kinds}
    return {known.get(name, name): value for name, value in row.items()}
