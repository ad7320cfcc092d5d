"""What came out of a chaos, and the verdict on it: ingest -> raw -> sink topic or dead letter -> lake, each change once."""

from __future__ import annotations

import io
import re
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import msgspec
import pyarrow.parquet as pq
from confluent_kafka import Message

from headwater.lab.chaos_load import change_of, key_of
from headwater.lab.chaos_report import ChaosReport
from headwater.lab.recorder import Recorder
from models.dead_letter import FLOW, OFFSET, PARTITION, STAGE
from models.gap import Gap
from pipeline.sinks.lake.manifests import read_manifests
from pipeline.sinks.lake.objects import Objects
from pipeline.sinks.lake.paths import origin_of

EVENT_ID = re.compile(rb'"eventID":"([0-9a-f]{32})"')


class Ledger(Recorder):
    """A topic of changes: their numbers and offsets alone, as there are millions."""

    def __init__(self, conf: dict[str, Any], topic: str) -> None:
        super().__init__(conf, topic)
        self.changes: dict[int, array[int]] = {}
        self.offsets: dict[int, array[int]] = {}

    def __len__(self) -> int:
        return sum(self.counts.values())

    @property
    def counts(self) -> dict[int, int]:
        """The number of records, by partition."""
        return {partition: len(offsets) for partition, offsets in list(self.offsets.items())}

    def _apply(self, records: list[Message]) -> None:
        for record in records:
            partition = cast("int", record.partition())
            self.changes.setdefault(partition, array("Q")).append(change_in(record))
            self.offsets.setdefault(partition, array("q")).append(cast("int", record.offset()))

    @property
    def ends(self) -> dict[int, int]:
        """The offset after the last record, by partition."""
        return {partition: offsets[-1] + 1 for partition, offsets in list(self.offsets.items()) if offsets}


def change_in(record: Message) -> int:
    """Return the change that a record holds."""
    found = EVENT_ID.search(cast("bytes", record.value()))
    if found is None:
        raise ValueError(f"{record.topic()}[{record.partition()}] offset {record.offset()} holds no change")
    return change_of(found[1])


Changes = Mapping[int, Sequence[int]]
"""Changes in the order of their offsets, by partition."""


@dataclass
class LedgerOutcome:
    """What there is at the end."""

    ingest: Changes
    """With duplicates."""
    offsets: Changes
    """Of those in ingest."""
    raw: Changes
    sinks: Sequence[Changes]
    """The logs of the sink topic, from the oldest."""
    letters: Iterable[int] = ()
    """Changes that are dead letters of the flow."""
    lake: Mapping[int, int] = field(default_factory=dict)
    """How often each change is in the lake."""
    gaps: Iterable[Gap] = ()
    """Of ingest."""
    trimmed: Mapping[int, int] = field(default_factory=dict)
    """The first offset of ingest that was not deleted, by partition."""


def compare(report: ChaosReport, outcome: LedgerOutcome) -> None:
    """Compare what came out with what went in."""
    gaps = list(outcome.gaps)
    report.gaps = len(gaps)
    for partition, changes in outcome.ingest.items():
        said = [
            (gap.first, min(gap.last + 1, outcome.trimmed.get(partition, 0)))
            for gap in gaps
            if gap.partition == partition
        ]
        places: dict[int, int] = {}
        for offset, change in zip(outcome.offsets[partition], changes, strict=True):
            if not any(first <= offset < end for first, end in said):
                places.setdefault(change, len(places))
        report.in_gaps += len(set(changes) - places.keys())
        raw = outcome.raw.get(partition, ())
        _hold(report, places, [raw])
        letters = Counter(outcome.letters)
        done = {change: place for place, change in enumerate(dict.fromkeys(raw))}
        rejected = {change: letters[change] for change in done if change in letters}
        report.dead_letters += len(rejected)
        report.duplicated += sum(count - 1 for count in rejected.values())
        sunk = [log.get(partition, ()) for log in outcome.sinks]
        both = rejected.keys() & {change for log in sunk for change in log}
        report.duplicated += len(both)
        _hold(
            report, {change: place for change, place in done.items() if change not in rejected or change in both}, sunk
        )
    wanted = Counter(change for log in outcome.sinks for changes in log.values() for change in changes)
    carried = Counter(outcome.lake)
    report.lost += (wanted - carried).total()
    report.duplicated += (carried - wanted).total()


def _hold(report: ChaosReport, places: Mapping[int, int], logs: Iterable[Sequence[int]]) -> None:
    """Count what is not in the logs, what is there twice or must not be, and what comes before an earlier one of its item."""
    seen: set[int] = set()
    last: dict[int, int] = {}
    for change in (change for log in logs for change in log):
        place = places.get(change)
        if place is None or change in seen:
            report.duplicated += 1
            continue
        seen.add(change)
        key = key_of(change)
        report.out_of_order += place < last.get(key, 0)
        last[key] = max(place, last.get(key, 0))
    report.lost += len(places.keys() - seen)


# -- where they are found ---------------------------------------------------------------------------------------------


def gaps_in(records: Iterable[Message], topic: str) -> Iterator[Gap]:
    """Yield the gaps of a topic."""
    for record in records:
        gap = msgspec.json.decode(cast("bytes", record.value()), type=Gap)
        if gap.cause == "retention" and gap.topic == topic:
            yield gap


def letters_in(records: Iterable[Message], flow: str, raw: Ledger) -> Iterator[int]:
    """Yield the changes that a flow, or its agent, has rejected. A dead letter without its value says where on raw it is."""
    for record in list(records):
        said = dict(record.headers() or [])
        if said.get(STAGE) != b"transform" or said.get(FLOW, flow.encode()) != flow.encode():
            continue
        if record.value():
            yield change_in(record)
        else:
            partition, offset = int(cast("bytes", said[PARTITION])), int(cast("bytes", said[OFFSET]))
            yield raw.changes[partition][raw.offsets[partition].index(offset)]


def rows_in(url: str) -> int:
    """Return the number of rows that a lake lists."""
    return sum(manifest.rows for manifest in read_manifests(Objects(url)))


def lake_at(url: str) -> Counter[int]:
    """Return the changes in the files of a lake, and how often each is there."""
    objects, found = Objects(url), Counter[int]()
    for path in objects.paths():
        if origin_of(path) is not None:
            table = pq.read_table(io.BytesIO(objects.read(path)), columns=["event_id"])
            found.update(map(change_of, cast("list[str]", table.column("event_id").to_pylist())))
    return found
