"""The pure parts of the benchmark: input, counting, figures, table and picture."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

import orjson
import pytest

from headwater.lab import machine
from headwater.lab.bench import extras, load, measure, report, standstill, systems
from headwater.lab.bench.dedup import DedupResults, DedupRound
from headwater.lab.bench.load import LoadOutcome
from pipeline.errors import HeadwaterError


@pytest.fixture
def results() -> DedupResults:
    results = DedupResults("Apache Kafka", began=datetime(2026, 3, 1, tzinfo=UTC), messages=1000)
    for key, title, paces in (
        ("hand_written", "By hand", (100.0, 300.0, 200.0)),
        ("headwater_exactly_once", "Headwater, exactly once", (90.0, 80.0, 70.0)),
    ):
        results.titles[key] = title
        results.rounds[key] = [DedupRound(pace, 8.125, 100.4, LoadOutcome(0, 0)) for pace in paces]
    return results


def test_a_fifth_of_the_changes_are_duplicates_in_the_partition_of_their_first() -> None:
    given = load.changes(20_000, seed=3)
    assert 0.77 < len(given.unique) / 20_000 < 0.83
    homes: dict[str, set[int]] = {}
    for number, event_id in enumerate(given.ids):
        homes.setdefault(event_id, set()).add(number % load.PARTITIONS)
    assert all(len(home) == 1 for home in homes.values())
    assert given == load.changes(20_000, seed=3)


def test_without_duplicates_every_id_is_new() -> None:
    assert set(Counter(load.changes(5_000, seed=1, duplicates=0).ids).values()) == {1}


@pytest.mark.parametrize("number", [0, 999_999_999])
def test_a_record_is_json_of_496_bytes_with_its_event_id_in_front(number: int) -> None:
    event_id = load.changes(1, seed=number).ids[0]
    record = load.value(event_id, number)
    assert len(record) == 496
    assert orjson.loads(record)["eventID"] == event_id
    assert load.event_id_of(record) == event_id.encode()
    assert orjson.loads(load.small_value(event_id, number)) == {"eventID": event_id}


def test_an_output_is_compared_with_its_input() -> None:
    given = load.Input(("a", "b", "a", "c"))
    assert load.compare([b"a", b"b", b"b", b"b"], given) == LoadOutcome(missing=1, doubled=2)
    assert load.compare([b"c", b"a", b"b"], given) == LoadOutcome(0, 0)


def test_a_slow_system_gets_fewer_messages_but_not_too_few() -> None:
    faust = next(system for system in systems.ours() if system.key == "faust_idiomatic")
    assert [faust.messages(count) for count in (4_000, 100_000, 600_000)] == [4_000, 10_000, 30_000]
    assert systems.ours()[0].messages(4_000) == 4_000


def test_figures_of_a_process_are_read_from_proc() -> None:
    fields = ["S", "1", "7", "7", "0", "-1", "4194560", "1", "0", "0", "0", "150", "50", "0", "100"]
    assert measure.cpu_seconds(fields) == 300 / measure.TICKS
    assert measure.peak_mib("Name:\tx\nVmHWM:\t  204800 kB\n") == 200
    assert measure.peak_mib("Name:\tkthread\n") == 0


def test_a_percentile() -> None:
    numbers = [float(number) for number in range(100, 0, -1)]
    assert measure.percentile(numbers, 0.99) == 100
    assert measure.percentile(numbers, 0.5) == 51
    assert measure.percentile([4.0], 0.99) == 4


def test_the_slowest_partition_is_the_recovery() -> None:
    line = "INFO Seen table of b.ingest[%d]: offset -1 -> 500 in %.2f s\n"
    log = "".join(line % (partition, 1 + partition / 4) for partition in range(4))
    assert extras.slowest_recovery(log) == 1.75
    with pytest.raises(HeadwaterError, match="3 of 4"):
        extras.slowest_recovery(log.split("\n", 1)[1])


def test_a_standstill_reaches_from_before_the_event_to_after_its_end() -> None:
    times = [0.0, 1.0, 1.1, 1.2, 3.0, 3.1]
    assert standstill.longest(times, 1.15, 3.05) == pytest.approx(1.8)
    assert standstill.longest(times, 0.5, 1.15) == pytest.approx(1.0)
    assert standstill.longest(times, 2.0, 2.5) == pytest.approx(1.8)
    assert standstill.longest(times, 3.2, 9.2) == pytest.approx(6.1)
    assert standstill.longest([], 1.0, 3.0) == pytest.approx(2.0)


def test_the_object_has_medians_and_only_what_was_run(results: DedupResults) -> None:
    assert results.as_json() == {
        "hand_written": {"records_per_s": 200, "cpu_s_per_million": 8.12, "rss_mib": 100},
        "headwater_exactly_once": {"records_per_s": 80, "cpu_s_per_million": 8.12, "rss_mib": 100},
        "broker": "Apache Kafka",
    }
    results.extras = {"p50_ms": 60.0}
    results.growth = extras.Growth(10.4, 9.6, 500)
    assert results.as_json()["headwater_exactly_once"]["p50_ms"] == 60
    assert results.as_json()["growth"] == {"at_100k": 10, "at_10m": 10}


def test_a_wrong_output_is_a_failure_where_the_guarantee_forbids_it(results: DedupResults) -> None:
    assert results.failures == []
    results.rounds["hand_written"][1] = DedupRound(1, 1, 1, LoadOutcome(0, 3))
    assert results.failures == []
    results.rounds["headwater_exactly_once"][1] = DedupRound(1, 1, 1, LoadOutcome(0, 3))
    assert results.failures == ["Headwater, exactly once: 0 missing, 3 doubled"]
    results.rounds["hand_written"][1] = DedupRound(1, 1, 1, LoadOutcome(2, 0))
    assert results.failures[0] == "By hand: 2 missing, 0 doubled"


def test_the_picture_names_every_system_and_is_named_by_its_date(results: DedupResults, tmp_path: Path) -> None:
    axes = report.picture(results).axes[0]
    assert {label.get_text() for label in axes.get_yticklabels()} == {"By hand", "Headwater, exactly once"}
    assert "2026-03-01" in axes.get_xlabel()
    drawn = report.plot(results, tmp_path)
    assert drawn.name == "dedup-2026-03-01.png"
    assert drawn.read_bytes().startswith(b"\x89PNG")


def test_the_tables_as_markdown(results: DedupResults) -> None:
    results.left_out["Kafka Streams"] = "there is no Java on PATH"
    text = report.markdown(results)
    assert "| By hand | 200 | 8.1 | 100 | 0 | 0 | 100 to 300 |" in text
    assert "Left out: Kafka Streams: there is no Java on PATH" in text


def test_the_processor_is_named() -> None:
    assert machine.cpu_name("processor: 0\nmodel name\t: Some CPU @ 2 GHz\n") == "Some CPU @ 2 GHz"
    assert machine.cpu_name("") == ""
