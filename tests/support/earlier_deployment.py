"""The deployment of the version before whose remains are kept in tests/fixtures/before/deployment: what it is, what it carries.

`tests/fixtures/before/deployment.py` has made them with that version's code; `tests/integration/runtime/test_upgrade.py` goes
on from them. So nothing here knows Headwater.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from support.paths import BEFORE

FIXTURES = BEFORE / "deployment"
PARTITIONS = 2
PREFIXES = {"stopped": "before1", "killed": "before2"}
"""By what became of the worker: it was stopped, or killed after a file of the lake was written."""
CUSTOMER = {
    "kind": "join",
    "table": "customers",
    "on": "customer",
    "into": "customer",
    "hold": 3600,
    "on_reference_change": "re-emit",
}
TOTAL = {"kind": "join", "table": "totals", "state": "partitioned", "into": "total"}
FLOWS: list[dict[str, Any]] = [
    {"name": "plain", "from": ["orders"], "to": "orders"},
    {"name": "joined", "from": ["orders"], "enrich": [CUSTOMER, TOTAL], "to": "joined"},
    {
        "name": "strict",
        "from": ["orders"],
        "where": "after.n > 0",
        "order": "strict",
        "reject_limit": 1.0,
        "to": "strict",
    },
]
READ, MORE = 60, 20
"""Changes that the version before has read, and those that it has left unread."""
BAD = 20
"""The change that the flow `strict` cannot tell: it is rejected, and the next two of its item wait behind it."""
RENAMED = 40
"""The change that gives a customer another name: what was joined with it is sent again."""


def settings(prefix: str, lake: Path) -> dict[str, str]:
    """Return what the workers are told, as variables."""
    return {
        "HEADWATER_PREFIX": prefix,
        "HEADWATER_PARTITIONS": str(PARTITIONS),
        "HEADWATER_AGENTS": '["deduplicate", "transform", "lake"]',
        "HEADWATER_FLOWS": json.dumps(FLOWS),
        "HEADWATER_LAKE__URL": f"file://{lake}",
        "HEADWATER_LAKE__SINKS": '["orders"]',
        "HEADWATER_LAKE__LAYOUT": "columns",
        "HEADWATER_LAKE__MAX_AGE": "0.5",
    }


def change(number: int) -> tuple[bytes, bytes]:
    """Return the key and the value of a change as they stand on ingest.

    First four customers and four totals, then orders; a customer `c4`, whom every fifth names, is not there.
    """
    if number < 4:
        return _change(number, "customers", f"c{number}", {"name": {"S": f"Name {number}"}})
    if number < 8:
        return _change(number, "totals", f"o{number}", {"sum": {"N": str(number)}})
    if number == RENAMED:
        return _change(number, "customers", "c1", {"name": {"S": "Another name"}})
    order = {"customer": {"S": f"c{number % 5}"}, "n": {"N": str(number)}}
    if number == BAD:
        del order["n"]
    return _change(number, "orders", "bad" if BAD <= number < BAD + 3 else f"o{number % 12}", order)


def customer(number: int, name: str) -> tuple[bytes, bytes]:
    """Return the change of a customer."""
    return _change(number, "customers", name, {"name": {"S": f"Name of {name}"}})


def _change(number: int, table: str, key: str, item: dict[str, dict[str, str]]) -> tuple[bytes, bytes]:
    keys = {"id": {"S": key}}
    body = {
        "Keys": keys,
        "NewImage": {**keys, **item},
        "SequenceNumber": str(number + 1),
        "ApproximateCreationDateTime": 1_764_000_000 + number,
    }
    value = {"eventID": f"{number:032x}", "eventName": "MODIFY", "tableName": table, "dynamodb": body}
    return json.dumps(keys, separators=(",", ":"), sort_keys=True).encode(), json.dumps(value).encode()


def with_duplicates(numbers: Iterable[int]) -> list[int]:
    """Return numbers of changes as they are delivered: every seventh comes once more, some later."""
    found: list[int] = []
    late: list[int] = []
    for number in numbers:
        found.append(number)
        if number % 7 == 0:
            late.append(number)
        if len(late) == 2:
            found, late = [*found, *late], []
    return [*found, *late]
