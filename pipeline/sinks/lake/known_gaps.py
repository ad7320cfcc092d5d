"""The gaps that are known, by table: for the manifests, whose readers have no Kafka."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from confluent_kafka import Message

from models.gap import Gap
from pipeline.sinks.lake import manifests
from pipeline.sinks.lake.followed import Followed
from pipeline.transport import Transport

_decode = msgspec.json.Decoder(Gap).decode


class KnownGaps:
    """Follows the gaps topic. `of` may be called from any thread."""

    def __init__(self, transport: Transport, topic: str) -> None:
        self._gaps: dict[str, list[manifests.ManifestGap]] = {}
        self._followed = Followed(transport, topic, self._apply)

    def read(self) -> None:
        """Return when the topic was read to its end once; blocks. Raises TransientError when the broker does not answer."""
        self._followed.read()

    def of(self, table: str) -> Sequence[manifests.ManifestGap]:
        """Return the gaps of a table, and those of topics, which may be of any table."""
        return (*self._gaps.get(table, ()), *self._gaps.get("", ()))

    def _apply(self, records: Sequence[Message]) -> None:
        for record in records:
            gap = _decode(record.value() or b"")
            known = manifests.ManifestGap(
                gap.table,
                gap.shard,
                gap.after,
                gap.before,
                gap.cause,
                gap.at,
                gap.topic,
                gap.partition,
                gap.first,
                gap.last,
                gap.log,
            )
            self._gaps.setdefault(gap.table, []).append(known)
