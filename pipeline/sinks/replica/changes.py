"""What a replica makes of changes: writes with versions (versions.py), put together item by item. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import msgspec
from confluent_kafka import Message

from models.attributes import to_client
from models.change import decode, item_key
from pipeline.errors import RejectedError
from pipeline.settings.sinks import ReplicaSettings
from pipeline.sinks.versions import version

_decode = msgspec.json.Decoder(dict[str, Any]).decode


class ReplicaItem(NamedTuple):
    """An item of a replica."""

    table: str
    key: bytes
    """Its item key, canonical JSON."""


@dataclass(frozen=True, slots=True)
class ReplicaWrite:
    """What a change does to an item of the replica."""

    place: ReplicaItem
    keys: bytes
    """The key attributes, as JSON."""
    image: bytes | None
    """The item, as JSON; None: it is deleted."""
    version: str
    versions: str
    """The table of versions."""
    is_new: bool
    """Whether the item was probably not there before."""
    record: Message

    def key(self) -> dict[str, Any]:
        """Return the key attributes as boto3 takes them."""
        return _for_client(self.keys)

    def item(self) -> dict[str, Any] | None:
        """Return the item as boto3 takes it, with its key, which a flow may have dropped from the image; None: deleted."""
        return None if self.image is None else {**_for_client(self.image), **self.key()}


def write_of(record: Message, replica: ReplicaSettings) -> ReplicaWrite:
    """Return what a record of a sink topic does; raise ValueError or RejectedError when that cannot be known."""
    change = decode(cast("bytes", record.value()))
    if change.op != "d" and change.after is None:
        raise RejectedError(
            f"the change {change.event_id} of the table {change.table} does not say what the item becomes",
            hint="aws dynamodb update-table --stream-specification StreamEnabled=true,StreamViewType=NEW_AND_OLD_IMAGES",
        )
    keys = bytes(change.body.keys)
    return ReplicaWrite(
        ReplicaItem(target(replica.table, change.table), item_key(keys)),
        keys,
        None if change.op == "d" else change.after,
        version(change, cast("int", record.offset())),
        target(replica.version_table, change.table),
        change.op in {"c", "r"},
        record,
    )


def target(template: str, table: str) -> str:
    """Return the table of the replica for a captured one."""
    return template.replace("{table}", table)


def newest_first(writes: Iterable[ReplicaWrite]) -> list[list[ReplicaWrite]]:
    """Return the writes item by item, of each the newest first: the others count only when that one is refused."""
    items: dict[ReplicaItem, list[ReplicaWrite]] = {}
    for write in writes:
        items.setdefault(write.place, []).append(write)
    return [sorted(some, key=lambda one: one.version, reverse=True) for some in items.values()]


def _for_client(image: bytes) -> dict[str, Any]:
    return {name: to_client(value) for name, value in _decode(image).items()}
