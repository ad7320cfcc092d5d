"""Reads one shard from a position to its end: asks, waits, tries again, and offers each answer with its position."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import msgspec

from models.change import MalformedChangeError, decode
from models.gap import Gap
from pipeline.errors import HeadwaterError, TransientError, backoff
from pipeline.services.aws import ExpiredIteratorError, NothingYetError, TrimmedError, VanishedError
from pipeline.sources.base import NOTHING, Cut, Pacing, Reading, ShardStart, StreamApi
from pipeline.sources.credit_pool import CreditPool
from pipeline.sources.discovery import gap_of
from pipeline.sources.shard_positions import ShardOf, ShardPosition
from pipeline.sources.snapshots.tips import tip_of

log = logging.getLogger(__name__)
T = TypeVar("T")

FULL = 100
"""Records in an answer from which on the next call comes at once: there is more."""
LONGEST_IDLE_PAUSE_S = 1.0
"""Seconds of the longest pause of a shard that gives nothing, as long as the budget of calls does not ask for more."""
TIP_NOTE_S = 1.0
"""Seconds between two notes that a shard holds nothing more, while a snapshot of its table waits for it."""


class ShardReaderHost(Protocol):
    """What the source does for the readers of its shards."""

    @property
    def reading(self) -> int:
        """The number of shards that this worker reads now."""

    async def call(self, function: Callable[..., T], *args: Any) -> T:
        """Call something that blocks."""

    def offer(self, reading: Reading) -> bool:
        """Bring something into the slices; False: its partition is not this worker's any more."""

    def is_awaited(self, table: str) -> bool:
        """Say whether a snapshot of a table waits for its streams."""

    def is_gone(self, shard: ShardOf) -> bool:
        """Say whether the listing has said often enough that a shard is not there."""

    def look_again(self) -> None:
        """Have the shards listed soon."""


class ShardReader:
    """Reads shards of one source, each in a task of its own."""

    def __init__(self, host: ShardReaderHost, api: StreamApi, pacing: Pacing) -> None:
        self._host, self._api, self._pacing = host, api, pacing

    async def read(self, shard: ShardOf, start: ShardStart, gaps: tuple[Gap, ...], pool: CreditPool) -> None:
        """Read a shard from a position to its end. `gaps`: what is lost before it; `pool`: how far it may read ahead."""
        host, api = self._host, self._api
        iterator, errors, idle, after, tip_at, told = None, 0, 0, start.after, 0.0, 0.0
        while True:
            await pool.take()
            offered = False
            try:
                if iterator is None:
                    iterator = await host.call(api.iterator, shard.arn, shard.shard_id, start)
                asked = time.time()
                found = await host.call(api.records, iterator, shard)
                iterator, errors = found.next_iterator, 0
                gaps = tuple(msgspec.structs.replace(gap, before=found.first) for gap in gaps)
                count, finished = len(found.records) + len(found.unreadable), iterator is None
                awaited = host.is_awaited(shard.table)
                if awaited and not (finished or found.behind):
                    tip_at = max(tip_at, tip_of(_last_time(found, asked), idle, asked))
                if count or finished or (gaps and not found.behind) or (awaited and tip_at > told + TIP_NOTE_S):
                    place = ShardPosition(shard.table, found.last or after, finished, round(asked, 3), round(tip_at, 3))
                    offered = host.offer(Reading(shard, found, place, gaps, credit=pool.give))
                    after, gaps = place.after, ()
                    start, told = ShardStart(after) if after is not None else start, tip_at
                if finished:  # also when this last answer has records: an answer can carry both
                    return
                idle = 0 if count or found.behind else idle + 1
                pause = max(found.wait, 0.0 if count >= FULL else self._pause(idle))
            except NothingYetError:
                pause = self._pacing.poll_interval
            except ExpiredIteratorError:
                iterator, pause = None, 0.0
            except TrimmedError as error:
                log.error("%s: a gap is recorded", error)
                iterator, gaps, pause = None, (*gaps, gap_of(shard, "trimmed", after)), self._pacing.poll_interval
                start, after = ShardStart(), None
            except VanishedError as error:
                if host.is_gone(shard):
                    log.error("%s: a gap is recorded", error)
                    place = ShardPosition(shard.table, after, finished=True, at=round(time.time(), 3))
                    lost = (*gaps, gap_of(shard, "vanished", after))
                    offered = host.offer(Reading(shard, NOTHING, place, lost, credit=pool.give))
                    return
                errors += 1  # one answer proves nothing: the shard is asked again, until the listing has said it twice
                if errors == 3:
                    log.warning("Still trying, since the listing does not say so: %s", error)
                iterator, pause = None, backoff(errors)
                host.look_again()
            except HeadwaterError as error:  # a throttle, expired credentials, anything: the shard must be read on
                errors += 1
                # A single throttle is routine; more, or anything else, is said once.
                if errors == (3 if isinstance(error, TransientError) else 1):
                    log.warning("Still trying: %s", error)
                pause = backoff(errors)
            finally:
                if not offered:
                    pool.give()
            if pause:
                await api.pause(shard, pause)

    def _pause(self, idle: int) -> float:
        """Return the seconds until the next call of a shard that gave nothing so many times in a row."""
        interval = self._pacing.poll_interval
        return min(
            interval * 2.0 ** min(idle, 16),
            max(LONGEST_IDLE_PAUSE_S, interval, self._host.reading / self._pacing.idle_calls),
        )


def _last_time(found: Cut, asked: float) -> float | None:
    """Return when the last change of an answer happened, None when it has none."""
    if not found.records:
        return None
    try:
        return min(asked, decode(found.records[-1]["value"]).ts_us / 1e6)
    except (MalformedChangeError, RecursionError):
        return 0.0  # it says nothing
