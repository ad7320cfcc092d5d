"""Late changes: found by their time, remembered with the slices, forgotten within bounds."""

from __future__ import annotations

from functools import partial
from typing import cast

from faust.types import TP

from headwater.lab.simulator.world import delivered
from pipeline.sources.dynamodb.records import cut_answer
from pipeline.state.newest import NewestTimes
from pipeline.steps.late import STREAMED, late_ones
from pipeline.transport import Slice

WORK = cast("Slice", None)


def test_a_change_that_is_older_than_the_newest_of_its_item_is_late() -> None:
    newest = NewestTimes("ingest")
    came = [(b"a", 5.0), (b"b", 1.0), (b"a", 4.0), (b"a", 5.0), (b"a", 6.0)]
    records = [(key, delivered("x", "t", key.decode(), 1, 2, at)) for key, at in came]
    assert late_ones(records, partial(newest.take, 0)) == {2: 5_000_000}


def test_equal_keys_of_two_tables_are_two_items() -> None:
    records = [(b"a", delivered("x", table, "a", 1, 2, at)) for table, at in (("t", 5.0), ("u", 4.0))]
    assert late_ones(records, partial(NewestTimes("ingest").take, 0)) == {}


def test_changes_of_other_sources_are_not_looked_at() -> None:
    records = [(b"a", b'{"eventID":"1"}'), (None, b""), (b"a", b'{"recordFormat":1}'), (b"a", b'"recordFormat"')]
    assert late_ones(records, partial(NewestTimes("ingest").take, 0)) == {}


def test_records_of_dynamodb_streams_are_known_by_their_beginning() -> None:
    older, newer = (
        delivered("x", "t", "a", 1, 2, at).replace(b"{", b'{"eventSourceARN":"arn",', 1) for at in (1.0, 2.0)
    )
    times = NewestTimes("ingest")
    assert late_ones([(b"a", newer), (b"a", older)], partial(times.take, 0)) == {}
    assert times.take(0, b"a", 1) == 0, "it was not looked at"
    assert (
        cut_answer(b'{"Records":[{"dynamodb":{"Keys":{},"SequenceNumber":"1"}}]}', "arn")
        .records[0]["value"]
        .startswith(STREAMED)
    )


def test_what_an_aborted_slice_brought_in_comes_again_and_is_not_late() -> None:
    newest = NewestTimes("ingest")
    newest.take(0, b"a", 1)
    newest.committed(WORK)
    newest.take(0, b"a", 9)
    newest.aborted(WORK)
    assert newest.take(0, b"a", 2) == 1


def test_items_that_changed_longest_ago_leave_and_lost_partitions_too() -> None:
    newest = NewestTimes("ingest", items=2)
    for key in (b"a", b"b", b"a", b"c"):
        newest.take(0, key, 1)
        newest.committed(WORK)
    assert [newest.take(0, key, 1) for key in (b"a", b"b", b"c")] == [1, 0, 1]
    newest.aborted(WORK)
    newest.revoked(frozenset({TP("ingest", 0)}))
    assert newest.take(0, b"a", 1) == 0
