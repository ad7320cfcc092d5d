"""A seeded workload against DynamoDB: two tables, every kind of write, every type, and the truth about it.

`plan` is pure: it decides every request beforehand, so that the same seed gives the same changes. `Workload` sends
them. The requests are dealt to lanes. An item belongs to one lane, and a lane sends one request after the other, so
each item's changes happen in the order of the plan, however many lanes are sent at a time.

The tables. `orders`: key `order_id` (B) and `line` (N); its `customer_id` names a customer. `customers`: key
`customer_id` (S). The customers that orders name are written before the first order and are never deleted, so that a
join always finds one; other customers come and go.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, cast

from botocore.exceptions import BotoCoreError, ClientError

from headwater.lab.proof import VERSION, Item, ProofExpected, Truth, item_key
from models.change import Op
from pipeline.errors import HeadwaterError, TransientError

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient

Means = Literal["batch", "transaction", "single"]

ORDERS, CUSTOMERS = "orders", "customers"
KEYS: dict[str, dict[str, Literal["S", "N", "B"]]] = {
    ORDERS: {"order_id": "B", "line": "N"},
    CUSTOMERS: {"customer_id": "S"},
}
"""The key attributes of each table, the partition key first, with their types."""
STATUSES = ("open", "paid", "shipped", "cancelled")

LANES = 8
BATCH = 25
"""The most that BatchWriteItem takes."""
TRANSACTION = 10
"""Small beside the 100 that TransactWriteItems takes: more of them, over both tables."""
WEIGHTS = {"batch": 3.2, "transaction": 1.6, "single": 10.0}
"""Requests of each kind. By their sizes, of 100 changes 80 are in batches, 10 in transactions and 10 alone."""
TRIES = 12
NAME_ENDINGS = ("", "-naïve-客户", '-🦊"\\/')


@dataclass(frozen=True, slots=True)
class WorkloadWrite:
    """One write: the change it makes, the key as boto3 takes it, and whether to put the item or to update it."""

    change: ProofExpected
    key: Item
    update: bool = False


@dataclass(frozen=True, slots=True)
class Request:
    """One call of the API; its writes are of different items."""

    means: Means
    writes: tuple[WorkloadWrite, ...]


@dataclass(frozen=True, slots=True)
class WorkloadPlan:
    """All requests: those that write the customers, by lane, and after all of them the others, by lane."""

    customers: tuple[tuple[Request, ...], ...]
    lanes: tuple[tuple[Request, ...], ...]

    def writes(self) -> Iterator[WorkloadWrite]:
        """Yield every write, each item's in order."""
        for phase in (self.customers, self.lanes):
            for lane in phase:
                for request in lane:
                    yield from request.writes

    def truth(self) -> Truth:
        """Return what must come out when every request was sent."""
        return Truth(write.change for write in self.writes())


def plan(seed: int, changes: int) -> WorkloadPlan:
    """Decide a workload that makes exactly `changes` stream records, none of its writes leaving an item as it was."""
    names = [_customer_id(number) for number in range(max(1, changes // 20))][:changes]
    lanes = [_Lane(number, seed, names) for number in range(LANES)]
    customers = tuple(lane.settle() for lane in lanes)
    rest = changes - len(names)
    shares = [rest // LANES + (number < rest % LANES) for number in range(LANES)]
    return WorkloadPlan(
        customers, tuple(tuple(lane.requests(share)) for lane, share in zip(lanes, shares, strict=True))
    )


class Workload:
    """Sends the plan of one seed through a low-level client, `threads` lanes at a time."""

    def __init__(self, client: DynamoDBClient, *, seed: int, changes: int, threads: int = 4) -> None:
        self._client = client
        self._plan = plan(seed, changes)
        self._threads = threads
        self._written = 0
        self._lock = threading.Lock()
        self._stopped = threading.Event()

    def create_tables(self) -> None:
        """Create both tables with streams of new and old images, and wait until they are active.

        Raise HeadwaterError when one is there already: its stream would hold changes that nobody planned.
        """
        for table in KEYS:
            self._create_table(table)
        for table in KEYS:
            self._client.get_waiter("table_exists").wait(TableName=table, WaiterConfig={"Delay": 1, "MaxAttempts": 120})

    def run(
        self, on_written: Callable[[int], None] = lambda _: None, *, between: Callable[[], None] = lambda: None
    ) -> Truth:
        """Send every request, the customers' first, and return what must come out; call `between` after the customers.

        `on_written` is given the number of changes made so far, after each request, by the thread that sent it and
        one at a time. Raise HeadwaterError when a request fails permanently; the other lanes then stop.
        """
        with ThreadPoolExecutor(self._threads, thread_name_prefix="workload") as pool:
            for phase in (self._plan.customers, self._plan.lanes):
                # list() waits for every lane, and raises what the first of them raised.
                list(pool.map(lambda lane: self._send_lane(lane, on_written), phase))
                if phase is self._plan.customers:
                    between()
        return self._plan.truth()

    def _create_table(self, table: str) -> None:
        kinds: tuple[Literal["HASH", "RANGE"], ...] = ("HASH", "RANGE")
        try:
            self._client.create_table(
                TableName=table,
                AttributeDefinitions=[{"AttributeName": n, "AttributeType": t} for n, t in KEYS[table].items()],
                KeySchema=[{"AttributeName": n, "KeyType": kind} for n, kind in zip(KEYS[table], kinds, strict=False)],
                BillingMode="PAY_PER_REQUEST",
                StreamSpecification={"StreamEnabled": True, "StreamViewType": "NEW_AND_OLD_IMAGES"},
            )
        except self._client.exceptions.ResourceInUseException as error:
            raise HeadwaterError(
                f"the table {table!r} exists already; the workload needs tables of its own",
                hint=f"aws dynamodb delete-table --table-name {table}, or another AWS_ENDPOINT_URL",
            ) from error
        except (ClientError, BotoCoreError) as error:
            raise HeadwaterError(
                f"the table {table!r} could not be created: {error}", hint="headwater check"
            ) from error

    def _send_lane(self, lane: Sequence[Request], on_written: Callable[[int], None]) -> None:
        for request in lane:
            if self._stopped.is_set():
                return
            try:
                send(self._client, request)
            except HeadwaterError:
                self._stopped.set()
                raise
            with self._lock:
                self._written += len(request.writes)
                on_written(self._written)


def send(client: DynamoDBClient, request: Request, pause: Callable[[float], object] = time.sleep) -> None:
    """Send one request until all of it is done; raise HeadwaterError when DynamoDB refuses it permanently."""
    try:
        if request.means == "batch":
            _send_batch(client, request.writes, pause)
        elif request.means == "transaction":
            client.transact_write_items(TransactItems=cast("Any", [_operation(write) for write in request.writes]))
        else:
            _send_single(client, request.writes[0])
    except (ClientError, BotoCoreError) as error:
        tables = " and ".join(sorted({write.change.table for write in request.writes}))
        raise HeadwaterError(f"a {request.means} write to {tables} failed: {error}", hint="headwater check") from error


def _send_batch(client: DynamoDBClient, writes: Iterable[WorkloadWrite], pause: Callable[[float], object]) -> None:
    pending: dict[str, Any] = {}
    for write in writes:
        put = {"PutRequest": {"Item": write.change.new}}
        delete = {"DeleteRequest": {"Key": write.key}}
        pending.setdefault(write.change.table, []).append(put if write.change.new else delete)
    for attempt in range(TRIES):
        pending = cast("dict[str, Any]", client.batch_write_item(RequestItems=pending).get("UnprocessedItems", {}))
        if not pending:
            return
        pause(min(0.05 * 2**attempt, 2.0))
    raise TransientError(f"a batch write to {' and '.join(pending)} was still throttled after {TRIES} tries")


def _send_single(client: DynamoDBClient, write: WorkloadWrite) -> None:
    ((action, arguments),) = _operation(write).items()
    if action == "Put":
        client.put_item(**arguments)
    elif action == "Update":
        client.update_item(**arguments)
    else:
        client.delete_item(**arguments)


def _operation(write: WorkloadWrite) -> dict[str, dict[str, Any]]:
    """Return a write as a member of TransactItems: the arguments are those of the single call, too."""
    change = write.change
    if change.new is None:
        return {"Delete": {"TableName": change.table, "Key": write.key}}
    if not write.update:
        return {"Put": {"TableName": change.table, "Item": change.new}}
    return {"Update": {"TableName": change.table, "Key": write.key, **_update(change.old or {}, change.new)}}


def _update(old: Item, new: Item) -> dict[str, Any]:
    """Return the arguments of an update expression that turns one item into the other."""
    changed = [name for name, value in new.items() if old.get(name) != value]
    removed = [name for name in old if name not in new]
    names = {name: f"#n{number}" for number, name in enumerate([*changed, *removed])}
    expression = "SET " + ", ".join(f"{names[name]} = :v{number}" for number, name in enumerate(changed))
    if removed:
        expression += " REMOVE " + ", ".join(names[name] for name in removed)
    return {
        "UpdateExpression": expression,
        "ExpressionAttributeNames": {alias: name for name, alias in names.items()},
        "ExpressionAttributeValues": {f":v{number}": new[name] for number, name in enumerate(changed)},
    }


@dataclass(slots=True)
class _Record:
    """One item while it is planned: its version keeps rising when it is deleted and put again."""

    table: str
    key: Item
    item_key: bytes
    resident: bool = False
    item: Item | None = None
    version: int = 0


class _Lane:
    """Plans the requests of one lane, over items that no other lane writes."""

    def __init__(self, number: int, seed: int, customers: Sequence[str]) -> None:
        # A string seeds by its SHA-512, so the same in every process; a tuple would not do.
        self._random = random.Random(f"headwater/{seed}/{number}")  # noqa: S311 - a workload, not a secret
        self._number = number
        self._customers = customers
        self._made = 0
        self._records: list[_Record] = []
        self._extras = number

    def settle(self) -> tuple[Request, ...]:
        """Insert this lane's share of the customers that orders name."""
        residents = [self._record(CUSTOMERS, {"customer_id": {"S": n}}) for n in self._customers[self._number :: LANES]]
        for record in residents:
            record.resident = True
        writes = [self._change(record, "batch") for record in residents]
        return tuple(Request("batch", tuple(writes[i : i + BATCH])) for i in range(0, len(writes), BATCH))

    def requests(self, changes: int) -> Iterator[Request]:
        """Yield requests that make exactly this many changes."""
        while changes:
            means = self._pick_means()
            size = {"batch": BATCH, "transaction": self._random.randint(2, TRANSACTION), "single": 1}[means]
            records = self._pick_records(min(size, changes))
            yield Request(means, tuple(self._change(record, means) for record in records))
            changes -= len(records)

    def _pick_means(self) -> Means:
        return cast("Means", self._random.choices(list(WEIGHTS), list(WEIGHTS.values()))[0])

    def _pick_records(self, count: int) -> list[_Record]:
        """Pick this many different items, about half of them new ones."""
        known = min(len(self._records), sum(self._random.random() < 0.5 for _ in range(count)))
        picked = self._random.sample(self._records, known)
        return picked + [self._new_record() for _ in range(count - known)]

    def _new_record(self) -> _Record:
        self._made += 1
        if self._random.random() < 0.1:
            name = _customer_id(self._made, prefix=f"visitor-{self._number}-")
            return self._record(CUSTOMERS, {"customer_id": {"S": name}})
        # Random bytes are not UTF-8; three lines share an order. The lane and the number make it unique.
        order = bytes([0xFF, self._number]) + (self._made // 3).to_bytes(3, "big")
        return self._record(ORDERS, {"order_id": {"B": order}, "line": {"N": str(self._made % 3 + 1)}})

    def _record(self, table: str, key: Item) -> _Record:
        record = _Record(table, key, item_key(key))
        self._records.append(record)
        return record

    def _change(self, record: _Record, means: Means) -> WorkloadWrite:
        """Change the item once: insert it when it is not there, else modify it or, one time in five, delete it."""
        old = record.item
        op: Op = "c"
        if old is None:
            new: Item | None = self._next_item(record)
        elif not record.resident and self._random.random() < 0.2:
            op, new = "d", None
        else:
            op, new = "u", self._next_item(record)
        record.item = new
        update = op == "u" and means != "batch" and self._random.random() < 0.7
        return WorkloadWrite(ProofExpected(record.table, record.item_key, op, new, old), record.key, update)

    def _next_item(self, record: _Record) -> Item:
        record.version += 1
        own = self._order() if record.table == ORDERS else self._customer(record)
        return {**record.key, VERSION: {"N": str(record.version)}, **own, **self._some_extras()}

    def _order(self) -> Item:
        return {
            "customer_id": {"S": self._random.choice(self._customers)},
            "status": {"S": self._random.choice(STATUSES)},
            "total": {"N": f"{self._random.randint(1, 10**6)}.{self._random.randint(1, 9)}"},
        }

    def _customer(self, record: _Record) -> Item:
        return {
            "name": {"S": f"Customer {record.key['customer_id']['S']}"},
            "tier": {"S": self._random.choice(("bronze", "silver", "gold"))},
            "active": {"BOOL": self._random.random() < 0.9},
        }

    def _some_extras(self) -> Item:
        """Return three of the extra attributes, going round, so that all of them occur in any run of some size."""
        self._extras += 3
        return dict(_extra(self._extras + offset, self._random) for offset in range(3))


def _customer_id(number: int, prefix: str = "c-") -> str:
    """Return a customer's ID; two of three hold characters of several bytes, beyond the basic plane, too."""
    return f"{prefix}{number:05d}{NAME_ENDINGS[number % len(NAME_ENDINGS)]}"


def _extra(number: int, rng: random.Random) -> tuple[str, dict[str, Any]]:
    """Return one attribute, by its number: together they have every type, and the limits of the types."""
    digits = str(rng.randint(10**37, 10**38 - 1))
    # No empty map among them: the stream records of DynamoDB Local say {} where AWS says {"M": {}}.
    extras: Mapping[str, Callable[[], dict[str, Any]]] = {
        "note": lambda: {"S": rng.choice(("", "naïve 客户 🦊", 'quotes " and \\ and \u2028', "tab\tnew\nline"))},
        "exact": lambda: {"N": digits},
        "debt": lambda: {"N": f"-0.{digits}"},
        "huge": lambda: {"N": f"{digits[0]}.{digits[1:20]}1E+{rng.randint(30, 120)}"},
        "tiny": lambda: {"N": f"-{digits[0]}.{digits[1:20]}1E-{rng.randint(20, 120)}"},
        "gift": lambda: {"BOOL": rng.random() < 0.5},
        "coupon": lambda: {"NULL": True},
        "größe": lambda: {"M": {"width in m²": {"N": digits[:3]}, "unit": {"S": ""}, "deep": {"M": {"L": {"L": []}}}}},
        "parts": lambda: {"L": [{"S": "bolt"}, {"N": digits[:20]}, {"B": rng.randbytes(5)}, {"NULL": True}, {"L": []}]},
        "tags": lambda: {"SS": rng.sample(("red", "grün", "蓝", "x" * 40), 3)},
        "sizes": lambda: {"NS": rng.sample(("1", "-2.5", digits, "7E+30"), 3)},
        "hashes": lambda: {"BS": [bytes([n]) + rng.randbytes(8) for n in range(3)]},
        "seal": lambda: {"B": rng.randbytes(rng.randint(1, 12)) + b"\x00\xff"},
        "blank": lambda: {"B": b""},
    }
    names = list(extras)
    name = names[number % len(names)]
    return name, extras[name]()
