"""The upkeep of a lake of files: one run at a time, beside its workers, and what it has done.

The lease is an object that is changed by compare and set. It keeps two runs from doing the same work. That no row is lost or
seen twice does not rest on it: the manifests take a change only if what it replaces is still there.
"""

from __future__ import annotations

import os
import socket
import time
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import msgspec

from pipeline.errors import TransientError
from pipeline.sinks.lake.compact import Compacted, compact
from pipeline.sinks.lake.objects import Objects, Requests
from pipeline.sinks.lake.verify import Carried
from pipeline.transport.logs import UNKNOWN

LEASE = "_maintain.json"
HELD_FOR_S = 600.0
"""Seconds that a lease is good for; it is renewed when half of them are over."""
Progress = Callable[[int, int], None]
"""Takes how many directories or tables are done, and of how many."""


class Holder(msgspec.Struct, frozen=True):
    """Who maintains a lake, and until when."""

    owner: str
    until: float
    """In seconds since the epoch; 0: nobody."""


class Lease:
    """The right to maintain a lake. Raises TransientError when somebody else has it."""

    def __init__(self, objects: Objects, clock: Callable[[], float] = time.time) -> None:
        self._objects, self._clock, self._until = objects, clock, 0.0
        self.owner = f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex[:8]}"

    def take(self) -> None:
        """Take it, or keep it."""
        self._set(is_mine=False)

    def require(self) -> None:
        """Raise TransientError if it was lost; renew it in time."""
        if self._clock() > self._until - HELD_FOR_S / 2:
            self._set(is_mine=True)

    def release(self) -> None:
        """Give it back, if it is held still."""
        self._objects.change(
            LEASE,
            lambda old: msgspec.json.encode(Holder(self.owner, 0)) if self._holder(old).owner == self.owner else None,
        )

    def _set(self, *, is_mine: bool) -> None:
        holder, until = Holder("", 0), 0.0

        def change(old: bytes | None) -> bytes | None:
            nonlocal holder, until
            holder, now = self._holder(old), self._clock()
            if holder.owner != self.owner and (is_mine or holder.until > now):
                return None
            holder = Holder(self.owner, now + HELD_FOR_S)
            return msgspec.json.encode(holder)

        self._objects.change(LEASE, change)
        if holder.owner != self.owner:
            at = f"{datetime.fromtimestamp(holder.until, UTC):%H:%M:%S} UTC" if holder.until else "it ended"
            raise TransientError(
                f"the lake {self._objects.url} is being maintained by {holder.owner}, until {at} at the latest",
                hint="wait for it, or start again later",
            )
        self._until = holder.until

    @staticmethod
    def _holder(content: bytes | None) -> Holder:
        return Holder("", 0) if content is None else msgspec.json.decode(content, type=Holder)


@dataclass
class Maintained:
    """What was done to a lake, or in a dry run would be."""

    lake: str
    url: str
    dry_run: bool = False
    directories: list[dict[str, Any]] = field(default_factory=list)
    """Or tables: what was done in each."""
    files_before: int = 0
    files_after: int = 0
    bytes_before: int = 0
    bytes_after: int = 0
    rows: int = 0
    orphans: int = 0
    entries: int = 0
    left: list[str] = field(default_factory=list)
    """What was left as it is, and why, in words."""
    seconds: float = 0.0
    requests: Requests = field(default_factory=Requests)

    def add(self, done: Compacted) -> None:
        """Take what was done in a directory."""
        self.directories.append(done.json())
        self.files_before += done.before
        self.files_after += done.after
        self.bytes_before += done.bytes_before
        self.bytes_after += done.bytes_after
        self.rows += done.rows
        self.orphans += done.orphans
        self.entries += done.entries
        self.left += done.left

    def json(self) -> dict[str, Any]:
        """Return it as plain data."""
        names = [name for name in self.__dataclass_fields__ if name != "requests"]
        return {name: getattr(self, name) for name in names} | {"requests": self.requests.json()}


def maintain_lake(
    objects: Objects,
    name: str,
    carried: Iterable[Carried],
    *,
    prefix: str = "",
    size: int,
    older_than_us: int,
    dry_run: bool = False,
    at_rest: bool = False,
    progress: Progress = lambda _n, _of: None,
) -> Maintained:
    """Maintain the files of a lake. Raises HeadwaterError; what was done until then is done.

    `carried`: what Kafka says, asked before. `at_rest`: no worker writes to the lake any more, all of it counts as committed.
    """
    report, started, lease = Maintained(name, objects.url, dry_run), time.monotonic(), Lease(objects)
    known = list(carried)
    logs = {one.topic: one.log for one in known}
    # Without an ID of the topic, files of a recreated one would have the names of those that were merged: they stay.
    ends = {
        (one.topic, one.partition): one.committed.offset or 0
        for one in known
        if one.committed.log.may_be(one.log) and one.log.topic_id
    }
    if without := sorted({one.topic for one in known if not one.log.topic_id}):
        report.left.append(f"{', '.join(without)}: the broker gives topics no IDs, their files stay as they are")
    if not dry_run:
        lease.take()
    try:
        for done in compact(
            objects,
            lambda topic, partition: ends.get((topic, partition), 0),
            log_of=lambda topic: logs.get(topic, UNKNOWN),
            prefix=prefix,
            size=size,
            older_than_us=older_than_us,
            dry_run=dry_run,
            at_rest=at_rest,
            require=(lambda: None) if dry_run else lease.require,
            progress=progress,
        ):
            report.add(done)
    finally:
        if not dry_run:
            lease.release()
    report.seconds, report.requests = round(time.monotonic() - started, 3), objects.requests
    return report
