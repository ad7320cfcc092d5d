"""Where a lake file is: directories by table and by the time of the change, and a name made of log and offset."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime
from hashlib import sha256
from itertools import chain
from typing import NamedTuple
from urllib.parse import quote

from pipeline.sinks.rows import Kind, Rows
from pipeline.transport.logs import Log

HOUR = 3_600_000_000
"""An hour in microseconds."""
NAME = re.compile(r"^(?P<topic>[^+]+)\+(?:(?P<mark>[^+]+)\+)?(?P<partition>\d+)\+(?P<offset>\d{20})\.parquet$")
"""Without a mark: written by an earlier version, or where the broker gives no IDs."""
DEFAULT = "source_table={table}/changed_date={date}/changed_hour={hour}"
"""Directories of a new lake. Readers take their names for columns, in place of attributes of the same name."""
FORMER = "table={table}/date={date}/hour={hour}"
"""Those of a lake that an earlier version has begun."""
KEY = re.compile(r"(?:^|/)([^/={}]+)=")
LONGEST, KEPT = 200, 160
"""Bytes of a table's name in a path at most; of a longer one so many stay, and a digest follows."""


class FileOrigin(NamedTuple):
    """Which records a file begins with."""

    topic: str
    partition: int
    offset: int
    mark: str = ""
    """Of the log: see `mark_of`."""


def keys_of(template: str) -> list[str]:
    """Return the names that readers of Hive's directories take for columns."""
    return KEY.findall(template)


class Directories:
    """Fills a template in, for the changes of one sink."""

    def __init__(self, template: str, sink: str) -> None:
        self._template, self._sink = template, sink
        self._by_op = "{op}" in template
        self._known: dict[tuple[str, int, str], str] = {}

    def of(self, table: str, ts_us: int, op: str) -> str:
        """Return the directory of a change; `ts_us` is when it happened, in microseconds since the epoch."""
        known = table, ts_us // HOUR, op if self._by_op else ""
        found = self._known.get(known)
        if found is None:
            if len(self._known) > 10_000:  # hours that are over
                self._known.clear()
            found = self._known[known] = self._fill(table, ts_us, op)
        return found

    def parts(self, rows: Rows) -> Iterator[tuple[str, Rows]]:
        """Yield the directories of changes, and which go there."""
        if not rows:
            return
        hours, kinds = {min(rows.times) // HOUR, max(rows.times) // HOUR}, set(rows.kinds)
        found = {self.of(kind.table, hour * HOUR, kind.op) for kind in kinds for hour in hours}
        if len(found) == 1:
            yield found.pop(), rows
            return
        places: dict[tuple[Kind, int], list[int]] = {}
        for index, (kind, ts_us) in enumerate(zip(rows.kinds, rows.times, strict=True)):
            places.setdefault((kind, ts_us // HOUR), []).append(index)
        directories: dict[str, list[list[int]]] = {}
        for (kind, hour), indexes in places.items():
            directories.setdefault(self.of(kind.table, hour * HOUR, kind.op), []).append(indexes)
        for directory, some in directories.items():
            yield directory, rows.take(sorted(chain.from_iterable(some)))

    def _fill(self, table: str, ts_us: int, op: str) -> str:
        at = datetime.fromtimestamp(ts_us // 1_000_000, UTC)
        return self._template.format(
            table=escaped_path(table),
            sink=self._sink,
            op=op,
            date=f"{at:%Y-%m-%d}",
            hour=f"{at:%H}",
            year=f"{at:%Y}",
            month=f"{at:%m}",
            day=f"{at:%d}",
        )


def escaped_path(table: str) -> str:
    """Return a table's name as one part of a path. Names that DynamoDB allows stay as they are.

    Other characters are percent-encoded as UTF-8, so are the dots of a name of dots alone. Of what is longer than `LONGEST`
    bytes then, the first `KEPT` stay, and `~` and a digest of the name follow.
    """
    found = quote(table, safe="", errors="surrogatepass").replace("~", "%7E")
    if not found.strip("."):
        found = found.replace(".", "%2E") or "%"
    if len(found) <= LONGEST:
        return found
    return f"{found[:KEPT]}~{sha256(table.encode(errors='surrogatepass')).hexdigest()[:32]}"


def mark_of(log: Log) -> str:
    """Return what stands for a log in names: the topic's ID, else the cluster's, '' where there is neither."""
    return log.topic_id or quote(log.cluster, safe="")


def file_name(topic: str, partition: int, offset: int, mark: str = "") -> str:
    """Return the name of the file of a log whose first record has this offset."""
    return f"{topic}+{mark}+{partition}+{offset:020d}.parquet" if mark else f"{topic}+{partition}+{offset:020d}.parquet"


def origin_of(path: str) -> FileOrigin | None:
    """Return which records a lake file begins with; None for anything else."""
    found = NAME.match(path.rpartition("/")[2])
    if found is None:
        return None
    return FileOrigin(found["topic"], int(found["partition"]), int(found["offset"]), found["mark"] or "")
