"""Where the demo's changes go beyond the first lake, and the proof that each of them has what it must have."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any, cast

import boto3
import duckdb
from pyiceberg.catalog import load_catalog

from headwater.lab.proof import Item, Truth, json_item
from headwater.lab.recorder import Recorder, lag
from headwater.lab.workers import WorkerProcess, Workers, stop_all
from headwater.lab.workload import KEYS, ORDERS
from pipeline.errors import FatalError, HeadwaterError
from pipeline.settings.root import Settings
from pipeline.settings.sinks import group_of
from pipeline.sinks.lake.iceberg.columns import columns_of
from pipeline.sinks.lake.layouts.columns import item_of
from pipeline.sinks.lake.objects import Objects
from pipeline.sinks.lake.paths import origin_of
from pipeline.sinks.lake.verify import verify_lake
from pipeline.sinks.replica.verify import verify_replica
from pipeline.topics.names import Topics

MIRROR, LAKE, REPLICA = "mirror", "items", "replica"
COPIED = "orders-all"
MIRRORED_FROM = "mirrored_from"
SECONDS = 120.0


@dataclass(frozen=True)
class Copies:
    """What was found at each destination, and how much of it is not as it must be."""

    mirrored: int
    """Messages on the other cluster."""
    mirror_differences: int
    lake_rows: int
    """Rows of the Parquet files, as DuckDB counts them, each event ID once."""
    lake_differences: int
    """Faults of the files against their manifests, and rows that DuckDB has more or less."""
    iceberg_items: int
    iceberg_differences: int
    replica_items: int
    replica_differences: int
    replayed: int
    """Messages that a replay of everything has written to topics of its own."""
    replay_differences: int

    @property
    def differences(self) -> int:
        """All that is not as it must be."""
        lakes = self.lake_differences + self.iceberg_differences
        return self.mirror_differences + lakes + self.replica_differences + self.replay_differences


def destination_settings(directory: Path, other_servers: str) -> dict[str, str]:
    """Return the settings that demo.toml cannot have: they are others each time. Without a second cluster there are none."""
    mirror = {"name": MIRROR, "bootstrap_servers": other_servers, "replication_factor": 1}
    if not other_servers:
        return {"HEADWATER_MIRRORS": "[]", "HEADWATER_LAKES": "[]"}
    lake = {
        "name": LAKE,
        "url": f"file://{directory}/iceberg",
        "table": "iceberg",
        "mode": "upsert",
        "sinks": [COPIED],
        "max_age": 5,
        "catalog": {"type": "sql", "uri": f"sqlite:///{directory}/iceberg.db"},
    }
    return {"HEADWATER_MIRRORS": json.dumps([mirror]), "HEADWATER_LAKES": json.dumps([lake])}


def create_replica() -> None:
    """Make the table that the replica writes to, and that of versions beside it."""
    client = boto3.client("dynamodb")
    name = f"{ORDERS}-replica"
    client.create_table(
        TableName=name,
        KeySchema=[
            {"AttributeName": attribute, "KeyType": "HASH" if number == 0 else "RANGE"}
            for number, attribute in enumerate(KEYS[ORDERS])
        ],
        AttributeDefinitions=[{"AttributeName": one, "AttributeType": kind} for one, kind in KEYS[ORDERS].items()],
        BillingMode="PAY_PER_REQUEST",
    )
    client.create_table(
        TableName=f"{name}.versions",
        KeySchema=[{"AttributeName": "item", "KeyType": "HASH"}],
        AttributeDefinitions=[{"AttributeName": "item", "AttributeType": "S"}],
        BillingMode="PAY_PER_REQUEST",
    )
    for one in (name, f"{name}.versions"):
        client.get_waiter("table_exists").wait(TableName=one, WaiterConfig={"Delay": 1, "MaxAttempts": 60})


class Destinations:
    """A mirror, a replica and a lake of items, each in a worker of its own, as it must be."""

    def __init__(self, settings: Settings, directory: Path, environment: Mapping[str, str], *, detached: bool) -> None:
        self._settings, self._topics = settings, Topics(settings)
        self.exist = bool(settings.mirrors)
        """Whether there are any: with the fallback broker there are none."""
        kinds = (("mirror", MIRROR), ("replica", REPLICA), ("items", f"lake.{LAKE}"))
        self._workers = [
            Workers(1, directory / kind, {**environment, "HEADWATER_AGENTS": json.dumps([agent])}, detached=detached)
            for kind, agent in (kinds if self.exist else ())
        ]

    @property
    def all(self) -> list[WorkerProcess]:
        """The workers."""
        return [worker for workers in self._workers for worker in workers.all]

    def start(self) -> None:
        """Start them."""
        for workers in self._workers:
            workers.start()

    def watch(self) -> None:
        """Start again what has ended."""
        for workers in self._workers:
            workers.watch()

    def stop(self) -> None:
        """Stop them."""
        stop_all(self._workers)

    def arrived(self, conf: dict[str, Any], ends: Mapping[str, dict[int, int]]) -> bool:
        """Say whether each has taken all there is."""
        if not self.exist:
            return True
        copied = {self._topics.sink(COPIED): ends[self._topics.sink(COPIED)]}
        reads = {("mirror", MIRROR): dict(ends), ("replica", REPLICA): copied, ("lake", LAKE): copied}
        return all(
            lag(conf, group_of(self._settings.prefix, kind, name), wanted) == 0
            for (kind, name), wanted in reads.items()
        )

    def compare(
        self, sinks: Mapping[str, Recorder], truth: Truth, lake: Objects, replayed: Mapping[str, Any]
    ) -> Copies | None:
        """Look at every destination; None: there are none."""
        if not self.exist:
            return None
        mirrored, mirror_differences = self._mirror(sinks)
        rows, lake_differences = _lake(lake)
        items, item_differences = self._items(truth)
        (replica,) = self._settings.replicas
        replicas = list(verify_replica(self._settings, replica, 2, say=lambda _line: None))
        return Copies(
            mirrored,
            mirror_differences,
            rows,
            lake_differences,
            items,
            item_differences,
            sum(one.replicated for one in replicas),
            sum(one.missing.count + one.surplus.count + one.different.count for one in replicas),
            replayed["sent"],
            replayed["differences"],
        )

    def _mirror(self, sinks: Mapping[str, Recorder]) -> tuple[int, int]:
        """Compare the topics of both clusters, message by message."""
        (mirror,) = self._settings.mirrors
        conf = {"bootstrap.servers": mirror.bootstrap_servers}
        count = differences = 0
        for sink, here in sinks.items():
            with Recorder(conf, self._topics.sink(sink)) as there:
                there.wait_for_end(conf, SECONDS)
                copies, originals = _messages(there), _messages(here)
            count += len(copies)
            differences += sum(one != other for one, other in zip(copies, originals, strict=False))
            differences += abs(len(copies) - len(originals))
        return count, differences

    def _items(self, truth: Truth) -> tuple[int, int]:
        """Compare the Iceberg table with the items as they must be after all that was written."""
        (lake,) = self._settings.lakes
        catalog = load_catalog("headwater", **{"warehouse": lake.url or "", **lake.catalog})
        table = catalog.load_table((lake.namespace, ORDERS))
        kinds = columns_of(table).columns
        rows = table.scan().to_arrow().to_pylist()
        found = {row["_key"]: _comparable(item_of(row, kinds)) for row in rows}
        wanted = {
            key.decode(): _comparable(json_item(changes[-1].new))
            for (name, key), changes in truth.items.items()
            if name == ORDERS and changes[-1].new is not None
        }
        wrong = sum(found.get(key) != wanted.get(key) for key in found.keys() | wanted.keys())
        return len(rows), wrong + len(rows) - len(found)


def _messages(records: Recorder) -> list[tuple[Any, ...]]:
    """Return what a topic holds, in order, without what a mirror adds."""
    return [
        (
            record.partition(),
            record.key(),
            record.value(),
            record.timestamp()[1],
            [header for header in record.headers() or [] if header[0] != MIRRORED_FROM],
        )
        for record in records
    ]


def _lake(objects: Objects) -> tuple[int, int]:
    """Compare the files with their manifests, and have DuckDB read them."""
    checked = verify_lake(objects)
    with tempfile.TemporaryDirectory(prefix="headwater-") as place:
        for number, path in enumerate(path for path in objects.paths() if origin_of(path) is not None):
            (Path(place) / f"{number}.parquet").write_bytes(objects.read(path))
        query = f"SELECT count(*), count(DISTINCT event_id) FROM read_parquet('{place}/*.parquet')"  # noqa: S608 - our own
        rows, once = cast("tuple[int, int]", duckdb.sql(query).fetchone())
    return once, len(checked.problems) + abs(rows - checked.rows) + rows - once


def _comparable(item: Mapping[str, Any]) -> Item:
    """Return an item in which equal values are equal: numbers as numbers, sets without order."""

    def value(one: Any) -> Any:
        ((tag, inner),) = one.items()
        if tag == "N":
            return {tag: Decimal(inner)}
        if tag == "NS":
            return {tag: {Decimal(number) for number in inner}}
        if tag in {"SS", "BS"}:
            return {tag: set(inner)}
        if tag == "L":
            return {tag: [value(element) for element in inner]}
        return {tag: {name: value(part) for name, part in inner.items()} if tag == "M" else inner}

    return {name: value(one) for name, one in item.items()}


def replay(environment: Mapping[str, str], directory: Path) -> dict[str, Any]:
    """Replay into topics of its own, beside the live workers, and compare: messages sent, and differences.

    Without the flow that joins: a replay joins with the customers as they are now, and they have changed since.
    """
    flows = ["--flow", "customers", "--flow", "copy"]
    done = _run(environment, directory, "replay", "--from", "earliest", *flows, "--json")
    found = _run(environment, directory, "replay", "diff", done["id"], "--json", fine=(0, 1))
    return {
        "sent": done["progress"]["sent"],
        "differences": sum(one["added"] + one["missing"] + one["different"] for one in found),
    }


def _run(environment: Mapping[str, str], directory: Path, *arguments: str, fine: tuple[int, ...] = (0,)) -> Any:
    command = [sys.executable, "-P", "-m", "headwater.cli", *arguments]
    try:
        done = subprocess.run(
            command, env=environment, cwd=directory, capture_output=True, text=True, timeout=SECONDS, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise FatalError(f"headwater {' '.join(arguments)} takes longer than {SECONDS:.0f} s") from error
    if done.returncode not in fine:
        raise HeadwaterError(f"headwater {' '.join(arguments)}: {done.stderr.strip()[-500:]}")
    return json.loads(done.stdout)
