"""Conditional writes to a replica's tables: an older change never overwrites a newer one, whoever writes it and when.

Where versions are kept, and what is done in one step (docs/decisions/0023-a-version-in-one-place.md says why):

- attribute: an item's version is in the item; that of a deleted one is in the table of versions, its tombstone, until it
  expires. It is in one place at any time. An item that is there is overwritten by one PutItem; what makes an item
  come or go is a transaction of both tables.
- table: every version is in the table of versions, and each change is a transaction of both tables.

BatchWriteItem has no conditions, so it is not used at all.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

from botocore.exceptions import ClientError, ParamValidationError

from pipeline.errors import FatalError, HeadwaterError, RejectedError, TransientError
from pipeline.services.aws import ERRORS, explained_aws
from pipeline.settings.sinks import ReplicaSettings
from pipeline.sinks.replica.changes import ReplicaItem, ReplicaWrite
from pipeline.sinks.replica.client import EXPIRES, VERSION_KEY

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient

ITEMS, DELETES, STALE = "items", "deletes", "stale"
"""What a write did; stale: something newer, or the very same, was there."""
VERSION = "version"
"""The attribute of a table of versions that holds one."""
KEY_BYTES = 2048
"""The longest partition key that DynamoDB takes."""
OLDER = "attribute_not_exists(#v) OR #v < :v"
OLDER_AND_THERE = "attribute_exists(#k) AND (attribute_not_exists(#v) OR #v < :v)"
NEVER_TAKEN_BY_DYNAMODB = {"ValidationException", "ValidationError", "ItemCollectionSizeLimitExceeded"}
"""DynamoDB can never take this item: it is too large, or a value is none. Codes of errors and of cancelled transactions."""
BUSY = {
    "RequestLimitExceeded",
    "ThrottlingError",
    "ProvisionedThroughputExceeded",
    "TransactionConflict",
    "TransactionConflictException",
    "TransactionInProgressException",
    "ReplicatedWriteConflictException",
}
"""Another try helps; beside those that the sources meet as well."""


Attributes = dict[str, Any]
"""An item, or a key, as boto3 takes it."""


class ReplicaTable:
    """Applies writes, one item a call. Blocking, thread-safe."""

    def __init__(
        self, client: DynamoDBClient, settings: ReplicaSettings, clock: Callable[[], float] = time.time
    ) -> None:
        self._client, self._settings, self._clock = client, settings, clock

    def apply(self, write: ReplicaWrite) -> str:
        """Bring the item to this version, if it is older; return what that did.

        Raises RejectedError when the table can never take it, TransientError when it may later; then it may have been done.
        """
        what = f"the table {write.place.table} of the replica {self._settings.name}"
        try:
            key, item = write.key(), write.item()
        except Exception as error:  # whatever is wrong with it, it is not an item
            raise RejectedError(f"{what}: this is not an item of DynamoDB: {error}") from error
        try:
            if self._settings.version == "table":
                self._with_its_version(write, key, item)
            elif item is None:
                self._delete(write, key)
            else:
                self._put(write, key, item)
        except ERRORS as error:
            if _is_stale(error):
                return STALE
            raise meaning(error, what) from error
        return DELETES if item is None else ITEMS

    def _with_its_version(self, write: ReplicaWrite, key: Attributes, item: Attributes | None) -> None:
        """Write the item and its version, both or neither: a crash between them would lose the change."""
        table: Attributes = {"TableName": write.place.table}
        if item is None:
            self._transact(self._tombstone(write), {"Delete": {**table, "Key": key}})
        else:
            version = {VERSION_KEY: {"S": version_id(write.place)}, VERSION: {"S": write.version}}
            remembered = {"Put": {"TableName": write.versions, "Item": version, **_if(OLDER, VERSION, write.version)}}
            self._transact(remembered, {"Put": {**table, "Item": item}})

    def _delete(self, write: ReplicaWrite, key: Attributes) -> None:
        gone: Any = {"TableName": write.place.table, "Key": key} | self._if_older(write)
        if self._settings.tombstone_seconds:
            self._transact(self._tombstone(write), {"Delete": gone})
        else:
            self._client.delete_item(**gone)

    def _put(self, write: ReplicaWrite, key: Attributes, item: Attributes) -> None:
        name = self._settings.version_attribute
        whole = {**item, name: {"S": write.version}}
        put: Any = {"TableName": write.place.table, "Item": whole} | self._if_older(write)
        if not self._settings.tombstone_seconds:
            self._client.put_item(**put)
            return
        if not write.is_new:
            # An item that is there has no tombstone: one call is enough.
            there = _if(OLDER_AND_THERE, name, write.version)
            there["ExpressionAttributeNames"]["#k"] = next(iter(key))
            try:
                self._client.put_item(**put | there)
            except ClientError as error:
                if not _is_stale(error):
                    raise
            else:
                return
        place = {VERSION_KEY: {"S": version_id(write.place)}}
        tombstone = {"TableName": write.versions, "Key": place, **_if(OLDER, VERSION, write.version)}
        self._transact({"Delete": tombstone}, {"Put": put})

    def _tombstone(self, write: ReplicaWrite) -> dict[str, Any]:
        """Return the operation that remembers a deletion, or forgets the version where nothing is to be remembered."""
        key = {VERSION_KEY: {"S": version_id(write.place)}}
        of: dict[str, Any] = {"TableName": write.versions, **_if(OLDER, VERSION, write.version)}
        if not self._settings.tombstone_seconds:
            return {"Delete": {**of, "Key": key}}
        expires = {"N": str(int(self._clock() + self._settings.tombstone_seconds))}
        return {"Put": {**of, "Item": {**key, VERSION: {"S": write.version}, EXPIRES: expires}}}

    def _if_older(self, write: ReplicaWrite) -> dict[str, Any]:
        return _if(OLDER, self._settings.version_attribute, write.version)

    def _transact(self, *operations: Any) -> None:
        self._client.transact_write_items(TransactItems=operations)


def version_id(place: ReplicaItem) -> str:
    """Return the partition key of an item in a table of versions: the table and the item key, or a digest of a long one."""
    whole = f"{place.table}/{place.key.decode()}"
    if len(whole.encode()) <= KEY_BYTES:
        return whole
    return f"{place.table}/{blake2b(place.key, digest_size=32).hexdigest()}"


def _if(condition: str, attribute: str, version: str) -> dict[str, Any]:
    return {
        "ConditionExpression": condition,
        "ExpressionAttributeNames": {"#v": attribute},
        "ExpressionAttributeValues": {":v": {"S": version}},
    }


def _codes(error: ClientError) -> set[str]:
    """Return the code of an error, or those of the operations of a transaction that was cancelled."""
    code = error.response.get("Error", {}).get("Code", "")
    if code != "TransactionCanceledException":
        return {code}
    response: Any = error.response
    return {reason.get("Code", "None") for reason in response.get("CancellationReasons", [])} - {"None"}


def _is_stale(error: Exception) -> bool:
    """Say whether a condition does not hold: the item is as new already, or newer. Versions grow, so that is final."""
    return isinstance(error, ClientError) and bool(
        _codes(error) & {"ConditionalCheckFailedException", "ConditionalCheckFailed"}
    )


def meaning(error: Exception, what: str) -> HeadwaterError:
    """Return what is wrong in our three meanings."""
    if isinstance(error, ParamValidationError):
        return RejectedError(f"{what}: {' '.join(str(error).split())}")
    if isinstance(error, ClientError):
        codes, message = _codes(error), error.response.get("Error", {}).get("Message", "")
        if codes & NEVER_TAKEN_BY_DYNAMODB or "ItemCollectionSizeLimitExceededException" in codes:
            return RejectedError(f"{what}: {message}", hint="see the item in headwater dlq show")
        if codes & BUSY or not codes:
            return TransientError(f"{what}: {', '.join(sorted(codes)) or 'a transaction was cancelled'}: {message}")
        if "ResourceNotFoundException" in codes:
            return FatalError(
                f"{what}, or its table of versions, does not exist",
                hint="create it with the key of its source, see docs/how-to/replicate-a-table.md; then start the worker again",
            )
        if codes & {"AccessDeniedException", "AccessDenied"}:
            return FatalError(
                f"{what}: permission is missing: {message}", hint="docs/how-to/replicate-a-table.md, permissions"
            )
    return explained_aws(error, what)
