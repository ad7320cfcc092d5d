"""What is looked at before a worker starts: the tables and streams that the settings name. Blocking.

The start is as lenient as running. What may pass by itself is tried again for a minute; what AWS says once only is asked
again; what patterns and tags find never keeps a worker from starting, since discovery looks at it again and again.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from pipeline.errors import FatalError, HeadwaterError, TransientError, backoff
from pipeline.services.aws import CredentialsError, DeniedError
from pipeline.settings.sources import DynamoDBStreamSettings, KinesisSettings
from pipeline.sources.base import StreamApi
from pipeline.sources.dynamodb.streams import is_pattern
from pipeline.sources.snapshots.snapshotter import Snapshotter

log = logging.getLogger(__name__)
T = TypeVar("T")
PREFLIGHT_PATIENCE_S = 60.0
"""Seconds for which what may pass by itself is tried again."""
SAID = 2
"""Answers in a row that say that something is wrong and does not pass, until it is believed: one proves nothing."""


@dataclass(slots=True)
class Patience:
    """How long is waited at the start. Tests give a clock."""

    seconds: float = PREFLIGHT_PATIENCE_S
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep


@dataclass(frozen=True, slots=True)
class Looked:
    """A source, and how it is looked at."""

    settings: DynamoDBStreamSettings | KinesisSettings
    api: StreamApi
    snapshots: Snapshotter | None = None

    @property
    def is_open(self) -> bool:
        """Whether patterns or tags find more."""
        names = self.settings.streams if isinstance(self.settings, KinesisSettings) else self.settings.tables
        tags = not isinstance(self.settings, KinesisSettings) and bool(self.settings.tags)
        return tags or any(is_pattern(name) for name in names)

    def looks(self) -> Iterator[Callable[[], object]]:
        """Yield the looks that must succeed."""
        for table in self.api.named():
            yield lambda table=table: self._look_at(table)  # type: ignore[misc]
        if self.is_open:
            yield self._list

    def _look_at(self, table: str) -> None:
        self.api.stream_of(table)
        if self.snapshots is not None:
            self.snapshots.preflight(table)

    def _list(self) -> None:
        """List what patterns and tags find: that takes credentials and the permission, and nothing else."""
        try:
            self.api.tables(set())
        except (CredentialsError, DeniedError):
            raise
        except HeadwaterError as error:
            log.warning("Discovery, at the start: %s", error)


def preflight(sources: Sequence[Looked], patience: Patience | None = None) -> None:
    """Look at all sources; raise FatalError with everything that is wrong, when that does not pass within a minute."""
    looks = [look for source in sources for look in source.looks()]
    patiently(looks, "the sources", patience)


def made_patiently(make: Callable[[], T], what: str, patience: Patience | None = None) -> T:
    """Return what is made; what may pass is tried again for a minute."""
    made: list[T] = []
    patiently([lambda: made.append(make())], what, patience)
    return made[0]


def patiently(looks: Sequence[Callable[[], object]], what: str, patience: Patience | None = None) -> None:
    """Look at things, again at what may pass; raise the error when something is wrong, one FatalError when it is more."""
    patience = patience or Patience()
    deadline, tries, said, left = patience.clock() + patience.seconds, 0, False, list(looks)
    refused: dict[int, int] = {}
    """How often in a row a look has found what does not pass."""
    while True:
        failed = [(look, error) for look in left if (error := _error_of(look)) is not None]
        if not failed:
            return
        for look, error in failed:
            refused[id(look)] = 0 if isinstance(error, TransientError) else refused.get(id(look), 0) + 1
        counts = [refused[id(look)] for look, _ in failed]
        # All that is wrong is reported at once, and only what was said twice.
        certain = any(count >= SAID for count in counts) and not any(0 < count < SAID for count in counts)
        if certain or patience.clock() >= deadline:
            raise _all_of([error for _, error in failed], what)
        tries += 1
        if not said and tries > SAID:
            log.info("Still trying to look at %s, for up to %.0f s: %s", what, patience.seconds, failed[0][1])
            said = True
        left = [look for look, _ in failed]
        patience.sleep(backoff(tries))


def _error_of(look: Callable[[], object]) -> HeadwaterError | None:
    try:
        look()
    except HeadwaterError as error:
        return error
    return None


def _all_of(errors: Sequence[HeadwaterError], what: str) -> HeadwaterError:
    told = list({str(error): error for error in errors}.values())
    if len(told) == 1:
        return told[0]
    return FatalError(f"{what}: {len(told)} things are wrong: {'; '.join(map(str, told))}", hint="headwater check")
