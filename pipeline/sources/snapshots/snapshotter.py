"""Snapshots: scans the tables that are asked for, segment by segment, beside the capture of their streams.

A snapshot is a record of the shards topic, and its segments are kept there like shards: the same fencing, the same
transactions, and after a kill they continue at the last position. What makes its rows fit into the stream's changes
is in docs/decisions/0017.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, Literal, Protocol, TypeVar

import msgspec

from models.snapshot import BEGIN, END, mark
from pipeline.errors import FatalError, HeadwaterError, TransientError, backoff
from pipeline.services import aws
from pipeline.services.aws import VanishedError
from pipeline.sources.base import NOTHING, Reading
from pipeline.sources.shard_positions import ShardOf
from pipeline.sources.snapshots.known import INITIAL, Export, Segment, Snapshot, Snapshots, ended
from pipeline.sources.snapshots.s3_export import ExportFailedError, Exports
from pipeline.sources.snapshots.scan import Facts, Scanner, ScanPage, segments_for

log = logging.getLogger(__name__)
T = TypeVar("T")
Outcome = Literal["done", "cancelled", "failed"]
HOPELESS = (VanishedError, ExportFailedError)
"""What does not pass: the table is gone, AWS has given its export up."""

PAGES = 8
"""Pages (1 MB each at most) of a segment that are read and not committed: bounds memory."""
STEP_S = 0.1
"""Seconds between two looks whether a page may go."""
EXPORTING_S = 2.0
"""Seconds between two looks whether an export is complete."""
WHOLE_SECOND_S = 2.0
"""Seconds from the marks to an export: AWS counts its time in whole seconds, and must not round it to before them."""
ASKED_AGAIN_S = 1.0
"""Seconds after which AWS is asked again whether something is gone."""
SNAPSHOTTER_PATIENCE_S = 60.0
"""Seconds after which a page that may not go is worth a log line, and a call that keeps failing another one."""


class Wishes(Protocol):
    """What the settings of a source say of snapshots."""

    @property
    def snapshot(self) -> str:
        """`initial`: each table is scanned once, when its stream has been begun."""

    @property
    def snapshot_share(self) -> float:
        """The share of a table's read units that a snapshot takes."""

    @property
    def snapshot_units(self) -> float | None:
        """Read units a second, instead of a share."""

    @property
    def snapshot_export(self) -> str | None:
        """`s3://bucket/prefix`: rows come from an export to there."""

    @property
    def snapshot_settle(self) -> float:
        """Seconds after which a change that was read by a scan is in its stream."""


class SnapshotHost(Protocol):
    """What the source that reads the streams of the tables does for their snapshots."""

    def offer(self, reading: Reading) -> bool:
        """Bring something into the slices; False: its partition is not this worker's any more."""

    def claim(self, shard: ShardOf) -> object:
        """Return the claim under which a shard is this worker's, None when it is not, or not yet."""

    def read(self, shard: ShardOf, reader: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Read a shard in a task, until the end or the revocation of its partition; one at a time."""

    def forget(self, shard: ShardOf) -> None:
        """Drop the place of a shard."""

    def captured(self) -> set[str]:
        """Return the tables of whose streams the newest has been begun, and the others are read to their ends."""

    def has_read(self, table: str, since: float) -> bool:
        """Say whether all that the table's streams had at a time has been read and committed."""

    async def call(self, function: Callable[..., T], *args: Any) -> T:
        """Call something that blocks."""


class Snapshotter:
    """The snapshots of one source's tables on this worker."""

    def __init__(self, scanner: Scanner, exports: Exports, wishes: Wishes, captures: Callable[[str], bool]) -> None:
        self._scanner, self._exports, self._wishes, self._captures = scanner, exports, wishes, captures
        self._known = Snapshots()
        self._offered: dict[tuple[str, str], object] = {}
        """What was brought into the slices already, and under which claim."""

    def preflight(self, table: str) -> None:
        """Raise FatalError when the first snapshot of a table is wanted and cannot be joined with its stream."""
        if self._wishes.snapshot == "initial" and (refusal := self._scanner.facts(table).refusal()):
            raise FatalError(refusal, hint='NEW_AND_OLD_IMAGES, or snapshot = "none": headwater check')

    def take(self, stream: str, shard_id: str, value: bytes | None) -> bool:
        """Take a record of the shards topic in; False: it is of another source's table."""
        table = stream.split(":")[1]
        if not self._captures(table):
            return False
        self._known.take(stream, shard_id, value)
        return True

    def runs(self, table: str) -> bool:
        """Say whether a snapshot of a table runs: then its readers note when they have read all there is."""
        return bool(self._known.running(table))

    def go_on(self, host: SnapshotHost) -> None:
        """Begin, scan and end what is this worker's to do. On the event loop, whenever there is news."""
        captured = host.captured()
        if self._wishes.snapshot == "initial":
            for table in captured:
                self._want_initial(host, table)
        for snapshot in list(self._known.all.values()):
            if snapshot.state == "wanted":
                if snapshot.stream in self._known.cancelled:
                    self._once(host, snapshot, ended(snapshot, "cancelled", 0, _now()))
                elif snapshot.table in captured:
                    begun = msgspec.structs.replace(snapshot, state="running", began=_now())
                    self._once(host, snapshot, begun, mark(snapshot.table, snapshot.id, BEGIN))
            elif snapshot.state == "running":
                self._scan_or_end(host, snapshot)
            else:
                self._forget(host, snapshot)

    def _scan_or_end(self, host: SnapshotHost, snapshot: Snapshot) -> None:
        cancelled, failure = snapshot.stream in self._known.cancelled, self._known.failure(snapshot)
        if cancelled or failure or self._known.finished(snapshot):
            state: Outcome = "cancelled" if cancelled else "failed" if failure else "done"
            after = ended(snapshot, state, self._known.rows(snapshot), _now(), failure)
            self._once(host, snapshot, after, mark(snapshot.table, snapshot.id, END))
            return
        if snapshot.export and not self._export_of(snapshot).files:
            host.read(snapshot.export_place, lambda: self._export(host, snapshot))
            return
        for number in range(snapshot.segments):
            if not self._known.segment(snapshot, number).finished:
                host.read(snapshot.segment(number), lambda number=number: self._scan(host, snapshot, number))  # type: ignore[misc]

    def _forget(self, host: SnapshotHost, snapshot: Snapshot) -> None:
        """Drop the segments: what they came to is in the snapshot itself."""
        for number in list(self._known.segments.get(snapshot.stream, {})):
            host.forget(ShardOf(snapshot.table, snapshot.stream, number))
        if snapshot.stream in self._known.exports:
            host.forget(snapshot.export_place)

    def _once(self, host: SnapshotHost, before: Snapshot, after: Snapshot, *marks: bytes) -> None:
        """Record what happens to a snapshot, if it is this worker's to do and was not done under this claim."""
        claim, what = host.claim(before.place), (before.stream, after.state)
        if claim is None or self._offered.get(what) is claim:
            return
        if host.offer(Reading(before.place, NOTHING, after, marks=marks)):
            self._offered[what] = claim
            log.info("The snapshot %s of the table %s: %s, %d rows", after.id, after.table, after.state, after.rows)
            if after.reason:
                log.error("The snapshot %s of the table %s has failed: %s", after.id, after.table, after.reason)

    def _want_initial(self, host: SnapshotHost, table: str) -> None:
        wanted = Snapshot(table, INITIAL, 1)
        claim = host.claim(wanted.place)
        if wanted.stream not in self._known.all and claim is not None:
            host.read(wanted.place, lambda: self._plan(host, wanted))

    async def _plan(self, host: SnapshotHost, wanted: Snapshot) -> None:
        """Ask for the first snapshot of a table, with as many segments and units as fit its size."""
        try:
            facts = await self._patiently(host, self._scanner.facts, wanted.table)
        except HOPELESS:
            return  # the table is gone, and with it the wish
        if refusal := facts.refusal():
            log.error("A snapshot is not possible: %s", refusal)
        else:
            self._once(host, wanted, plan_snapshot(facts, INITIAL, self._wishes))

    # -- scanning -----------------------------------------------------------------------------------------------------

    async def _scan(self, host: SnapshotHost, snapshot: Snapshot, number: int) -> None:
        """Scan a segment from its position to its end, or until it is known that this cannot be."""
        try:
            await self._scan_pages(host, snapshot, number)
        except HOPELESS as error:
            lost = msgspec.structs.replace(self._known.segment(snapshot, number), failed=error.message)
            host.offer(Reading(snapshot.segment(number), NOTHING, lost))
        finally:
            self._exports.leave(snapshot, number)

    async def _scan_pages(self, host: SnapshotHost, snapshot: Snapshot, number: int) -> None:
        """Scan the pages of a segment; each waits until the stream has been read past it."""
        keys = (await self._patiently(host, self._scanner.facts, snapshot.table)).keys
        shard, at = snapshot.segment(number), self._known.segment(snapshot, number)
        pool, waiting = asyncio.Semaphore(PAGES), deque[tuple[ScanPage, float]]()
        due, said = time.monotonic(), False
        while self._is_wanted(snapshot):
            if waiting and host.has_read(snapshot.table, waiting[0][1] + self._wishes.snapshot_settle):
                page, _ = waiting.popleft()
                if not host.offer(Reading(shard, page.cut, page.segment, credit=pool.release)) or page.segment.finished:
                    return
            elif not at.finished and not pool.locked() and time.monotonic() >= due:
                await pool.acquire()
                page = await self._page(host, snapshot, number, at, keys)
                waiting.append((page, time.time()))
                at, due = page.segment, max(due, time.monotonic()) + self._pause(snapshot, page.units)
            else:
                if waiting and not said and time.time() > waiting[0][1] + SNAPSHOTTER_PATIENCE_S:
                    log.warning(
                        "The snapshot %s of %s waits: its shards are not read to their tips, see headwater status",
                        snapshot.id,
                        snapshot.table,
                    )
                    said = True
                await asyncio.sleep(STEP_S)

    def _is_wanted(self, snapshot: Snapshot) -> bool:
        return self._known.all[snapshot.stream].state == "running" and snapshot.stream not in self._known.cancelled

    async def _page(
        self, host: SnapshotHost, snapshot: Snapshot, number: int, at: Segment, keys: tuple[str, ...]
    ) -> ScanPage:
        if not snapshot.export:
            return await self._patiently(host, self._scanner.page, snapshot, number, at, keys, _now())
        export = self._export_of(snapshot)
        return await self._patiently(host, self._exports.page, snapshot, export, number, at, keys)

    # -- exporting ----------------------------------------------------------------------------------------------------

    def _export_of(self, snapshot: Snapshot) -> Export:
        return self._known.exports.get(snapshot.stream, Export(""))

    async def _export(self, host: SnapshotHost, snapshot: Snapshot) -> None:
        """Have the table exported, or write down why it cannot be."""
        try:
            await self._export_table(host, snapshot)
        except HOPELESS as error:
            lost = msgspec.structs.replace(self._export_of(snapshot), failed=error.message)
            host.offer(Reading(snapshot.export_place, NOTHING, lost))

    async def _export_table(self, host: SnapshotHost, snapshot: Snapshot) -> None:
        """Ask for the export, write down that it is under way, and then where its files are."""
        place, export = snapshot.export_place, self._export_of(snapshot)
        if not export.arn:
            await asyncio.sleep(WHOLE_SECOND_S)
            facts = await self._patiently(host, self._scanner.facts, snapshot.table)
            export = Export(await self._patiently(host, self._exports.begin, snapshot, facts.arn))
            host.offer(Reading(place, NOTHING, export))
            log.info("The table %s is being exported: %s", snapshot.table, export.arn)
        while self._is_wanted(snapshot):
            complete = await self._patiently(host, self._exports.complete, snapshot.table, export.arn)
            if complete is not None:
                host.offer(Reading(place, NOTHING, complete))
                return
            await asyncio.sleep(EXPORTING_S)

    # -- for all of it ------------------------------------------------------------------------------------------------

    def _pause(self, snapshot: Snapshot, units: float) -> float:
        """Return the seconds for which a segment has taken its part of the units."""
        if snapshot.units is None:
            return 0.0
        others = sum(1 for segment in self._known.scanned(snapshot) if not segment.finished)
        return units * max(1, others) / snapshot.units

    async def _patiently(self, host: SnapshotHost, function: Callable[..., T], *args: Any) -> T:
        """Call AWS until it answers: a throttle, expired credentials, anything may pass."""
        errors, said, absent = 0, float("-inf"), False
        while True:
            try:
                return await host.call(function, *args)
            except VanishedError:
                if absent:
                    raise
                absent, errors = True, errors + 1  # one answer proves nothing
                await asyncio.sleep(ASKED_AGAIN_S)
                continue
            except HOPELESS:
                raise
            except HeadwaterError as error:
                errors, absent = errors + 1, False
                # One throttle is routine; more, or anything else, is logged, and again while it lasts.
                if (
                    errors >= (3 if isinstance(error, TransientError) else 1)
                    and time.monotonic() > said + SNAPSHOTTER_PATIENCE_S
                ):
                    log.warning("Still trying: %s", error)
                    said = time.monotonic()
            await asyncio.sleep(backoff(errors))


def plan_snapshot(facts: Facts, snapshot_id: str, wishes: Wishes, segments: int | None = None) -> Snapshot:
    """Return the snapshot to ask for."""
    return Snapshot(
        facts.table,
        snapshot_id,
        segments or segments_for(facts.size),
        wishes.snapshot_units or facts.units * wishes.snapshot_share,
        asked=_now(),
        expected=facts.items,
        export=wishes.snapshot_export or "",
    )


def _now() -> float:
    return round(aws.now(), 3)
