"""What a replay is: which records, through which flows, to where. Kept on the compacted topic <p>.replays. Pure."""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, Literal

import msgspec

from models.change import canonical
from pipeline.errors import UsageError

SUFFIX = re.compile(r"^[A-Za-z0-9._-]{1,60}$")
State = Literal["running", "stopped", "done", "promoting", "promoted"]


class ReplayProgress(msgspec.Struct, frozen=True):
    """How far a replay is."""

    read: int = 0
    """Records of the range."""
    taken: int = 0
    """Those that were wanted."""
    sent: int = 0
    """Messages to sink topics."""
    rejected: int = 0


class Gone(msgspec.Struct, frozen=True):
    """Records before a range that Kafka has deleted. Some of them, or all, were of the time that is asked for."""

    before: int
    """The first offset that is left."""
    until: float = 0.0
    """The time of the first record that is left, in seconds since the epoch; 0: none is left."""

    def __str__(self) -> str:
        upto = f"offsets up to {self.before - 1} ({self.before:,} at most) are deleted"
        if not self.until:
            return f"{upto}, nothing is left"
        return (
            f"{upto}, the first record that is left is of {datetime.fromtimestamp(self.until, UTC):%Y-%m-%dT%H:%M:%SZ}"
        )


class Replay(msgspec.Struct, frozen=True):
    """A replay, as it is on the topic."""

    id: str
    at: float
    """When it was begun, in seconds since the epoch."""
    begin: float | None
    """From which time on, None: from the first that there is."""
    end: float
    """Before which time."""
    ranges: dict[str, list[int]]
    """By `topic|partition`, the offsets: from the first on, before the second."""
    tables: list[str] = []
    """Empty: all."""
    key: str = ""
    """An item key; '': all."""
    flows: list[str] = []
    """Names; empty: all."""
    suffix: str = ""
    """The names of its topics end with `.` and this; '': the live topics."""
    source: Literal["raw", "lake"] = "raw"
    rate: float = 0.0
    """Records a second at most; 0: as many as it can."""
    dedup: bool = False
    """Whether an event ID that comes again in the range is left out."""
    state: State = "running"
    progress: ReplayProgress = ReplayProgress()
    logs: dict[str, str] = {}
    """By topic, the log that the offsets are of; none in one that an earlier version has begun."""
    gone: dict[str, Gone] = {}
    """By range: what the topic had before it, and Kafka has deleted."""
    positions: dict[str, int] = {}
    """With the source `lake`: how far the ranges are. Of raw, the group's offsets say it."""

    @property
    def total(self) -> int:
        """Offsets in its ranges: records at most."""
        return sum(end - begin for begin, end in self.ranges.values())

    def group(self, prefix: str) -> str:
        """Return its transactional ID, and the group that its offsets are kept by."""
        return f"{prefix}.replay.{self.id}"

    def topic(self, live: str) -> str:
        """Return the topic that it writes to instead of a live one."""
        return f"{live}.{self.suffix}" if self.suffix else live


def of_suffix(topics: Iterable[str], prefix: str, suffix: str) -> list[str]:
    """Return the topics of a deployment whose names end with a suffix: others on the cluster may have used it as well."""
    return sorted(name for name in topics if name.startswith(f"{prefix}.") and name.endswith(f".{suffix}"))


encode = msgspec.json.encode
decode = msgspec.json.Decoder(Replay).decode


def new_id(now: float) -> str:
    """Return an ID that sorts by time."""
    return f"{datetime.fromtimestamp(now, UTC):%Y%m%d-%H%M%S}-{uuid.uuid4().hex[:4]}"


def place(topic: str, partition: int) -> str:
    """Return how a range is named."""
    return f"{topic}|{partition}"


def placed(name: str) -> tuple[str, int]:
    """Return the topic and the partition of a range."""
    topic, _, partition = name.rpartition("|")
    return topic, int(partition)


def described(gone: Mapping[str, Gone]) -> str:
    """Return what is gone, range by range."""
    return "; ".join(f"{topic}[{partition}]: {gone[name]}" for name in gone for topic, partition in [placed(name)])


def time_of(text: str, option: str) -> float:
    """Return a time in ISO 8601 as seconds since the epoch; UTC where it says nothing else."""
    try:
        found = datetime.fromisoformat(text)
    except ValueError as error:
        raise UsageError(f"{option} {text}: expected a time, such as 2026-11-01T00:00Z") from error
    return (found if found.tzinfo is not None else found.replace(tzinfo=UTC)).timestamp()


def key_of(text: str) -> str:
    """Return an item key in its canonical form; raise UsageError when it is none."""
    try:
        found: Any = msgspec.json.decode(text)
    except msgspec.DecodeError as error:
        raise UsageError(f'--key {text}: expected an item key such as {{"order_id":{{"S":"o-1"}}}}: {error}') from error
    if not isinstance(found, Mapping):
        raise UsageError(f'--key {text}: expected an item key such as {{"order_id":{{"S":"o-1"}}}}')
    return canonical(found).decode()


def suffix_of(into: str, publish: bool, replay_id: str) -> str:
    """Return the suffix of the topics; '' for the live ones."""
    if publish and into:
        raise UsageError("--into and --publish: into topics of its own, or into the live ones, not both")
    if publish:
        return ""
    if into and not SUFFIX.fullmatch(into):
        raise UsageError(f"--into {into}: letters, digits, dots, dashes and underscores")
    return into or f"replay-{replay_id}"
