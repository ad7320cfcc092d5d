"""Compares the tables of a replica with those that they copy: `headwater replica verify`.

Both are scanned, strongly consistent. Of each item a line with its key and a digest goes to one of `BUCKETS` temporary files by
its key; then the files of one bucket after the other are compared. So memory holds one bucket, and the disk
some 100 bytes an item and side.

What differs is looked at again a few times, on both sides: it counts as equal once the replica has something that the source
had at any look, for then the change is only under way.
"""

from __future__ import annotations

import json
import tempfile
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from hashlib import blake2b
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, TypeVar

from models.attributes import from_client, to_client
from pipeline.errors import FatalError, TransientError, UsageError
from pipeline.retry import times
from pipeline.services import aws
from pipeline.settings.root import Settings
from pipeline.settings.sinks import ReplicaSettings
from pipeline.settings.sources import DynamoDBStreamSettings
from pipeline.sinks.replica.changes import target
from pipeline.sinks.replica.client import connect, sources
from pipeline.sources.kinds import onlooker
from pipeline.steps.mask import canonical

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient

T = TypeVar("T")
BUCKETS = 128
EXAMPLES = 10
VERIFY_LOOK_PAUSES_S = (0.0, 1.0, 4.0)
"""Seconds before each look at what differs."""
LOOKED_AT = 100_000
"""Differences that are looked at again at most; if there are more, nothing is merely under way."""
CALL_ATTEMPTS = 8
"""Calls in a row that may fail before that is an error."""
Pause = Callable[[float], None]
Digest = str


@dataclass(slots=True)
class Difference:
    """Items of one kind of difference: how many, and some of their keys."""

    count: int = 0
    examples: list[Any] = field(default_factory=list)

    def add(self, key: str) -> None:
        """Count an item."""
        self.count += 1
        if len(self.examples) < EXAMPLES:
            self.examples.append(json.loads(key))


@dataclass(slots=True)
class Compared:
    """What came out for one table of the replica."""

    replica: str
    tables: list[str]
    """What it is a copy of."""
    items: int = 0
    replicated: int = 0
    missing: Difference = field(default_factory=Difference)
    surplus: Difference = field(default_factory=Difference)
    different: Difference = field(default_factory=Difference)
    under_way: int = 0
    """Items that differed at first, and were equal when they were looked at again."""

    @property
    def equal(self) -> bool:
        """Whether nothing differs."""
        return not (self.missing.count or self.surplus.count or self.different.count)

    def json(self) -> dict[str, Any]:
        """Return it as plain data."""
        return {**asdict(self), "equal": self.equal}


def verify_replica(
    settings: Settings,
    replica: ReplicaSettings,
    segments: int,
    *,
    pause: Pause = time.sleep,
    say: Callable[[str], None],
) -> Iterator[Compared]:
    """Compare table by table; raise FatalError when one is not there."""
    tables = sources(settings, replica, lambda source: onlooker(source).tables(set()))
    if not tables:
        raise UsageError(
            f"the replica {replica.name}: no table is known that its sinks get changes of",
            hint="headwater check (sources, flows, and sinks of [[replicas]])",
        )
    threads = max(segments, 2)
    there = connect(replica, threads)
    targets: dict[str, list[str]] = {}
    for table in tables:
        targets.setdefault(target(replica.table, table), []).append(table)
    ours = replica.version_attribute if replica.version == "attribute" else None
    for name, own in targets.items():
        left = [Side(_client(tables[table], threads), table, f"the source table {table}", ours) for table in own]
        right = Side(there, name, f"the table {name} of the replica {replica.name}", ours)
        say(f"comparing {', '.join(own)} with {name}")
        with ThreadPoolExecutor(threads, "verify") as pool, tempfile.TemporaryDirectory(prefix="headwater-") as place:
            yield _compare(Compared(name, own), left, right, Work(pool, segments, pause, Path(place)))


def _client(source: DynamoDBStreamSettings | None, threads: int) -> DynamoDBClient:
    client: DynamoDBClient = aws.client("dynamodb", None if source is None else source.region, threads)
    return client


@dataclass(frozen=True, slots=True)
class Work:
    """What a comparison works with."""

    pool: ThreadPoolExecutor
    segments: int
    pause: Pause
    place: Path


class Side:
    """A table as one side of a comparison. Thread-safe."""

    def __init__(self, client: DynamoDBClient, table: str, what: str, ours: str | None) -> None:
        """`ours` is the attribute that does not count as a difference."""
        self._client, self.table, self._what, self._ours = client, table, what, ours
        found = self._ask(lambda: client.describe_table(TableName=table), time.sleep)["Table"]
        self._keys = sorted(key["AttributeName"] for key in found["KeySchema"])

    def pages(self, segment: int, segments: int, pause: Pause) -> Iterator[list[tuple[str, Digest]]]:
        """Scan a segment: keys, and digests of the items."""
        start: dict[str, Any] = {}
        while True:
            answer = self._ask(
                lambda start=start: self._client.scan(  # type: ignore[misc]
                    TableName=self.table, Segment=segment, TotalSegments=segments, ConsistentRead=True, **start
                ),
                pause,
            )
            yield [self._pair(item) for item in answer["Items"]]
            if not (after := answer.get("LastEvaluatedKey")):
                return
            start = {"ExclusiveStartKey": after}

    def digest(self, key: str, pause: Pause) -> Digest | None:
        """Return the digest of an item as it is now; None: there is none."""
        wanted = {name: to_client(value) for name, value in json.loads(key).items()}
        answer = self._ask(lambda: self._client.get_item(TableName=self.table, Key=wanted, ConsistentRead=True), pause)
        return self._pair(answer["Item"])[1] if "Item" in answer else None

    def _pair(self, item: Mapping[str, Any]) -> tuple[str, Digest]:
        typed = {name: from_client(value) for name, value in item.items() if name != self._ours}
        key = json.dumps({name: typed[name] for name in self._keys}, separators=(",", ":"))
        return key, blake2b(canonical({"M": typed}), digest_size=16).hexdigest()

    def _ask(self, call: Callable[[], T], pause: Pause) -> T:
        def attempt() -> T:
            try:
                return call()
            except aws.ERRORS as error:
                raise aws.explained_aws(error, self._what) from error

        try:
            return times(CALL_ATTEMPTS, lambda error: isinstance(error, TransientError), sleep=pause)(attempt)
        except aws.VanishedError as error:
            raise FatalError(
                f"{self._what} does not exist: there is nothing to compare",
                hint="aws dynamodb list-tables; the changes that it had are on the topic <prefix>.raw",
            ) from error


class KeyBuckets:
    """Keys and digests of one side, in files by key."""

    def __init__(self, place: Path, name: str) -> None:
        self._paths = [place / f"{name}-{number}" for number in range(BUCKETS)]
        self._lock = Lock()

    def fill(self, sides: Iterable[Side], work: Work) -> int:
        """Scan tables; return how many items they have."""
        with ExitStack() as stack:
            files = [stack.enter_context(path.open("w", encoding="utf-8")) for path in self._paths]

            def scan(side: Side, segment: int) -> int:
                count = 0
                for page in side.pages(segment, work.segments, work.pause):
                    count += len(page)
                    with self._lock:
                        for key, digest in page:
                            files[zlib.crc32(key.encode()) % BUCKETS].write(f"{digest}{key}\n")
                return count

            tasks = [work.pool.submit(scan, side, segment) for side in sides for segment in range(work.segments)]
            return sum(task.result() for task in tasks)

    def items(self, number: int) -> Iterator[tuple[str, Digest]]:
        """Return what is in a bucket."""
        with self._paths[number].open(encoding="utf-8") as file:
            for line in file:  # in JSON, the end of a line is written as an escape
                yield line[32:-1], line[:32]


Seen = dict[str, tuple[Digest | None, Digest | None]]
"""By key, what both sides had."""


def _compare(compared: Compared, left: Sequence[Side], right: Side, work: Work) -> Compared:
    sources, replica = KeyBuckets(work.place, "source"), KeyBuckets(work.place, "replica")
    compared.items, compared.replicated = sources.fill(left, work), replica.fill([right], work)
    suspects: Seen = {}
    for number in range(BUCKETS):
        for key, pair in _unequal(sources.items(number), replica.items(number)):
            if len(suspects) < LOOKED_AT:
                suspects[key] = pair
            else:
                _count(compared, key, pair)
    still = _look_again(suspects, left, right, work)
    compared.under_way = len(suspects) - len(still)
    for key, pair in still.items():
        _count(compared, key, pair)
    return compared


def _unequal(
    source: Iterable[tuple[str, Digest]], replica: Iterable[tuple[str, Digest]]
) -> Iterator[tuple[str, tuple[Digest | None, Digest | None]]]:
    """Return what differs, with the digests of both sides. Pure."""
    wanted = dict(source)
    for key, digest in replica:
        if (own := wanted.pop(key, None)) != digest:
            yield key, (own, digest)
    for key, own in wanted.items():
        yield key, (own, None)


def _look_again(suspects: Seen, left: Sequence[Side], right: Side, work: Work) -> Seen:
    """Return what differs still, as it is now."""
    states = {key: {own} for key, (own, _) in suspects.items()}
    still = suspects
    for seconds in VERIFY_LOOK_PAUSES_S:
        if not still:
            break
        work.pause(seconds)

        def look(key: str) -> tuple[Digest | None, Digest | None]:
            found = (side.digest(key, work.pause) for side in left)
            own = next((digest for digest in found if digest is not None), None)
            return own, right.digest(key, work.pause)

        looked = dict(zip(still, work.pool.map(look, still), strict=True))
        for key, (own, _) in looked.items():
            states[key].add(own)
        still = {key: pair for key, pair in looked.items() if pair[1] not in states[key]}
    return still


def _count(compared: Compared, key: str, pair: tuple[Digest | None, Digest | None]) -> None:
    own, there = pair
    kind = compared.surplus if own is None else compared.missing if there is None else compared.different
    kind.add(key)
