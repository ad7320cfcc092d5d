"""The contract of sources: what AWS is asked, what an answer holds, and what goes into a transaction."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

import msgspec

from models.dead_letter import DeadLetter, Origin
from models.gap import Gap
from pipeline.sources.shard_positions import ShardOf
from pipeline.sources.shards import Shard

if TYPE_CHECKING:
    from pipeline.transport.batch import Record


class ShardStart(NamedTuple):
    """Where in a shard to begin: after a sequence number, at the first one it ever had, at a time, or at what is there."""

    after: str | None = None
    first: str | None = None
    since: float | None = None


@dataclass(frozen=True, slots=True)
class Stream:
    """The stream of a table, or a stream that is not a table's: then the table is its name."""

    table: str
    arn: str


class StreamApi(Protocol):
    """What a source needs to know of AWS. Thread-safe, blocking; every error is a HeadwaterError that names the thing."""

    def tables(self, known: set[str]) -> list[str]:
        """Return the tables to capture now; `known` were captured before."""

    def named(self) -> list[str]:
        """Return the tables that the settings name. Asks nobody."""
        return []

    def stream_of(self, table: str) -> Stream:
        """Return the table's newest stream."""

    def owns(self, arn: str) -> bool:
        """Say whether a stream is of the kind, and of a table, that this source captures."""

    def shards_of(self, arn: str) -> list[Shard]:
        """Return the whole listing of a stream's shards."""

    def iterator(self, arn: str, shard_id: str, start: ShardStart) -> str:
        """Return an iterator; raise TrimmedError when what it should begin at is gone."""

    def records(self, iterator: str, shard: ShardOf) -> Cut:
        """Return an answer, cut into changes; raise NothingYetError when one is to come by itself, after a pause."""

    async def pause(self, shard: ShardOf, seconds: float) -> None:
        """Wait until it is worth while to ask for the shard's records again."""
        await asyncio.sleep(seconds)

    def left(self, shard: ShardOf) -> None:
        """Take note that this worker does not read the shard any more. Called on the event loop; must not block."""
        return


class Pacing(Protocol):
    """How often to ask: see the settings of the same names."""

    @property
    def discovery_interval(self) -> float:
        """Seconds between two searches for new shards and streams."""

    @property
    def poll_interval(self) -> float:
        """Seconds until a shard that gave little is asked again."""

    @property
    def idle_calls(self) -> float:
        """Calls a second that idle shards make at most together."""

    @property
    def threads(self) -> int:
        """Calls at the same time."""


class Unreadable(NamedTuple):
    """A record that is not a change: its bytes as they came, and why; its item key and where it was, if known."""

    value: bytes
    error: Exception
    key: bytes | None = None
    origin: Origin = Origin("")

    def letter(self, arn: str, shard_id: str, table: str) -> DeadLetter:
        """Return it as a dead letter of a shard."""
        origin = self.origin._replace(
            stream=self.origin.stream or arn, shard=self.origin.shard or shard_id, table=self.origin.table or table
        )
        return DeadLetter(f"{arn}/{shard_id}", -1, -1, "ingest", self.error, self.key, self.value, [], origin=origin)


class Cut(NamedTuple):
    """What a GetRecords answer holds. `last` is the last sequence number; `next_iterator` is None at a shard's end."""

    records: list[Record]
    """Changes, ready for the ingest topic: the item key, and the record's JSON as a Lambda trigger would get it."""
    unreadable: list[Unreadable]
    last: str | None
    next_iterator: str | None
    first: str | None = None
    """The first sequence number."""
    wait: float = 0.0
    """Seconds in which AWS does not want to be asked about the shard again."""
    behind: bool = False
    """There is more, although this answer may be empty."""


NOTHING = Cut([], [], None, None)


@dataclass(frozen=True, slots=True)
class Reading:
    """One GetRecords answer or one page of a scan, and the place after it; or a place alone."""

    shard: ShardOf
    cut: Cut
    place: msgspec.Struct
    """What the shards topic says of the shard from then on."""
    gaps: tuple[Gap, ...] = ()
    """Changes that are lost before this reading."""
    marks: tuple[bytes, ...] = ()
    """Records for every partition of the ingest topic, in front of the cut."""
    credit: Callable[[], None] | None = None
    """Gives back what it was read on, on the event loop, when it is committed."""
