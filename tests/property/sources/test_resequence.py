"""Any delivery of changes into a shard, read by readers that are killed: nothing lost, and in order within the window."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial

import msgspec
from hypothesis import event, given, settings
from hypothesis import strategies as st

from headwater.lab.simulator.world import delivered
from models.change import decode
from pipeline.settings.sources import KinesisSettings
from pipeline.sources.kinesis.kpl import Sub, aggregate
from pipeline.sources.kinesis.records import Answer, Put
from pipeline.sources.kinesis.resequence import MOST_BYTES, Window
from pipeline.state.newest import NewestTimes
from pipeline.steps.late import late_ones

HOW = KinesisSettings(kind="kinesis", streams=("t",))
EPOCH = 1_800_000_000.0


@dataclass(frozen=True)
class Record:
    """One record of the stream: when it arrived, in seconds, and the changes in it: item, and time in seconds."""

    arrived: float
    changes: tuple[tuple[str, float], ...]
    damaged: bool = False

    def put(self, number: int) -> Put:
        data = [delivered(f"{number}.{n}", "t", item, 1, 2, EPOCH + at) for n, (item, at) in enumerate(self.changes)]
        packed = data[0] if len(data) == 1 else aggregate([Sub("k", one) for one in data])
        return Put("arn", "s", str(number), "k", EPOCH + self.arrived, b"{" if self.damaged else packed)


@dataclass
class Reader:
    """Reads the stream as a worker does: from the last position that was committed, with a window of its own."""

    records: list[Record]
    seconds: float
    most_bytes: int = MOST_BYTES
    place: int = -1
    """Number of the record up to which everything is committed."""
    out: list[bytes] = field(default_factory=list)
    """What was committed, with what came again after a kill."""
    unreadable: int = 0
    finished: bool = False

    def run(self, asks: Iterator[tuple[float, float, int]], kill_after: int) -> None:
        """Ask, each time (seconds later, seconds that the answer takes, records at most), up to a kill."""
        window, at = Window(self.seconds, self.most_bytes), self.place + 1
        clock = self.records[at].arrived if at < len(self.records) else self.records[-1].arrived
        for _ in range(kill_after):
            later, takes, most = next(asks)
            clock += later
            there = [n for n, one in enumerate(self.records) if n >= at and one.arrived <= clock]
            numbers = there[:most]
            at += len(numbers)
            ended = at == len(self.records)
            answer = Answer(
                [self.records[n].put(n) for n in numbers],
                None if ended else "i",
                len(there) > len(numbers),
                asked=1_000 + clock,
                heard=1_000 + clock + takes,
            )
            clock += takes
            found = window.take(answer, HOW)
            if found.last is not None:
                self.place = int(found.last)
            self.out += [record["value"] for record in found.records]
            self.unreadable += len(found.unreadable)
            if ended:
                self.finished = True
                return


a_change = st.tuples(st.sampled_from("ab"), st.integers(0, 12).map(float))
a_record = st.builds(
    Record,
    st.integers(0, 10).map(float),
    st.lists(a_change, min_size=1, max_size=3).map(tuple),
    st.sampled_from([False, False, False, False, True]),
)
streams = st.lists(a_record, min_size=1, max_size=12).map(lambda some: sorted(some, key=lambda one: one.arrived))
an_ask = st.tuples(st.sampled_from([0.1, 0.5, 2.0, 5.0]), st.sampled_from([0.0, 0.3, 3.0]), st.integers(0, 4))


def forever(asks: list[tuple[float, float, int]]) -> Iterator[tuple[float, float, int]]:
    yield from asks
    while True:
        yield 1.0, 0.0, 3


def once(out: list[bytes]) -> list[bytes]:
    """What deduplicate leaves: the first of each."""
    return list({msgspec.json.decode(value)["eventID"]: value for value in out}.values())


def lateness(records: list[Record]) -> dict[str, float]:
    """Of each change: the seconds by which it came after the first newer one of its item; 0 where none had come."""
    found: dict[str, float] = {}
    flat = [
        (f"{number}.{n}", item, at, record.arrived)
        for number, record in enumerate(records)
        if not record.damaged
        for n, (item, at) in enumerate(record.changes)
    ]
    for index, (event_id, item, at, arrived) in enumerate(flat):
        newer = [before[3] for before in flat[:index] if before[1] == item and before[2] > at]
        found[event_id] = arrived - min(newer) if newer else 0.0
    return found


def marked(out: list[bytes]) -> set[str]:
    """The event IDs that `deduplicate` would give the header `late`."""
    newest = NewestTimes("ingest")
    pairs = [(msgspec.json.encode(msgspec.json.decode(v)["dynamodb"]["Keys"]), v) for v in out]
    return {decode(out[index]).event_id for index in late_ones(pairs, partial(newest.take, 0))}


@given(
    streams, st.sampled_from([1.0, 3.0, 6.0]), st.lists(an_ask, max_size=20), st.lists(st.integers(1, 6), max_size=4)
)
@settings(max_examples=400, deadline=None)
def test_every_change_comes_out_and_in_order_when_it_comes_within_the_window(
    records: list[Record], seconds: float, asks: list[tuple[float, float, int]], kills: list[int]
) -> None:
    reader, calls = Reader(records, seconds), forever(asks)
    for kill in [*kills, 10_000]:
        if not reader.finished:
            reader.run(calls, kill)
    late = lateness(records)
    out = once(reader.out)
    assert sorted(decode(value).event_id for value in out) == sorted(late), "each once, none lost"
    assert reader.unreadable == sum(record.damaged for record in records), (
        "each dead letter once, in spite of the kills"
    )
    allowed = {event_id for event_id, by in late.items() if by > seconds}
    event(f"beyond the window: {bool(allowed)}; within: {any(0 < by <= seconds for by in late.values())}")
    assert marked(out) <= allowed, "what came within the window is in order"
    assert len(reader.out) == len(out) or kills, "without a kill nothing comes twice"


@given(streams, st.lists(an_ask, max_size=20))
@settings(max_examples=100, deadline=None)
def test_what_is_too_much_to_hold_is_given_early_and_all_of_it(
    records: list[Record], asks: list[tuple[float, float, int]]
) -> None:
    reader = Reader(records, 300.0, most_bytes=700)
    reader.run(forever(asks), 10_000)
    assert sorted(decode(value).event_id for value in reader.out) == sorted(lateness(records))


def test_changes_wait_for_their_time_and_the_position_for_them() -> None:
    records = [Record(0, (("a", 5.0),)), Record(1, (("b", 1.0),)), Record(1, (("a", 3.0),)), Record(9, (("a", 9.0),))]
    window = Window(2.0)

    def take(numbers: range, clock: float, *, behind: bool = False) -> tuple[list[str], str | None]:
        puts = [records[n].put(n) for n in numbers]
        found = window.take(Answer(puts, "i", behind, asked=clock, heard=clock), HOW)
        return [decode(record["value"]).event_id for record in found.records], found.last

    assert take(range(1), 100.0) == ([], None)
    assert take(range(1, 3), 101.0) == ([], None)
    assert take(range(0), 200.0, behind=True) == ([], None), "there is more to come: time alone says nothing"
    assert take(range(0), 102.5) == (["2.0", "0.0"], "0"), "the older first; the position stays before what waits"
    assert take(range(3, 4), 110.0) == (["1.0"], "2")


def test_what_is_too_much_to_hold_does_not_wait() -> None:
    put = Record(0, (("a", 5.0),)).put(0)
    for most, count in ((1, 1), (MOST_BYTES, 0)):
        assert len(Window(300.0, most).take(Answer([put], "i", asked=1.0, heard=1.0), HOW).records) == count
