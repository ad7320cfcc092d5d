"""DynamoDB in memory, as far as a replica uses it: conditions are evaluated, transactions are all or nothing.

`trouble` is called before and after each call with its number, and may raise: a call that fails before has done nothing, one
that fails after has been done, and nobody knows.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from threading import Lock
from typing import Any

from botocore.exceptions import ClientError

Item = dict[str, Any]
FUNCTION = re.compile(r"attribute_(not_)?exists\((#\w)\)")
COMPARISON = re.compile(r"(#\w) < (:\w)")
LARGEST = 400 * 1024


def refused(code: str, message: str = "refused", **more: Any) -> ClientError:
    response: Any = {"Error": {"Code": code, "Message": message}, "ResponseMetadata": {"HTTPStatusCode": 400}, **more}
    return ClientError(response, "PutItem")


def holds(operation: Mapping[str, Any], item: Item | None) -> bool:
    """Evaluate a condition on an item."""
    if (condition := operation.get("ConditionExpression")) is None:
        return True
    names, values = operation["ExpressionAttributeNames"], operation["ExpressionAttributeValues"]
    there = item or {}

    def exists(match: re.Match[str]) -> str:
        return str((names[match[2]] in there) != bool(match[1]))

    def less(match: re.Match[str]) -> str:
        own = there.get(names[match[1]], {}).get("S")
        return str(own is not None and own < values[match[2]]["S"])

    terms = COMPARISON.sub(less, FUNCTION.sub(exists, condition)).replace("OR", "or").replace("AND", "and")
    assert re.fullmatch(r"(True|False|and|or|[() ])+", terms), condition
    return bool(eval(terms))  # noqa: S307 - nothing but the words above


class FakeDynamoDB:
    """A client of tables with these partition keys."""

    def __init__(self, keys: Mapping[str, str], trouble: Callable[[str], None] = lambda when: None) -> None:
        self.keys, self.trouble = keys, trouble
        self.tables: dict[str, dict[str, Item]] = {table: {} for table in keys}
        self.calls = 0
        self._lock = Lock()

    def put_item(self, **operation: Any) -> None:
        self._call([("Put", operation)], "ConditionalCheckFailedException")

    def delete_item(self, **operation: Any) -> None:
        self._call([("Delete", operation)], "ConditionalCheckFailedException")

    def transact_write_items(self, TransactItems: Any) -> None:  # noqa: N803 - as boto3 names it
        self._call([next(iter(TransactItem.items())) for TransactItem in TransactItems], "TransactionCanceledException")

    def _call(self, operations: list[tuple[str, Any]], failure: str) -> None:
        self.trouble("before")
        with self._lock:
            self.calls += 1
            for kind, operation in operations:
                if kind == "Put" and len(json.dumps(operation["Item"], default=str)) > LARGEST:
                    raise refused("ValidationException", "Item size has exceeded the maximum allowed size")
            places = [self._place(kind, operation) for kind, operation in operations]
            reasons = [
                "None" if holds(operation, self.tables[table].get(key)) else "ConditionalCheckFailed"
                for (_, operation), (table, key) in zip(operations, places, strict=True)
            ]
            if set(reasons) != {"None"}:
                raise refused(failure, CancellationReasons=[{"Code": reason} for reason in reasons])
            for (kind, operation), (table, key) in zip(operations, places, strict=True):
                if kind == "Put":
                    self.tables[table][key] = operation["Item"]
                else:
                    self.tables[table].pop(key, None)
        self.trouble("after")

    def _place(self, kind: str, operation: Any) -> tuple[str, str]:
        table = operation["TableName"]
        if table not in self.tables:
            raise refused("ResourceNotFoundException")
        key = operation["Item" if kind == "Put" else "Key"][self.keys[table]]
        return table, json.dumps(key)
