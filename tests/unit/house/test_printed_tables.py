"""What the commands print is whole: on a terminal of 80 columns, and in a pipe."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from typing import Any

import pytest
from rich.console import Console

from headwater import console
from headwater.commands import dlq, gaps, lake, look, positions, replay, replica
from models.gap import Gap
from pipeline.operate.dead_letters import StoredDeadLetter
from pipeline.operate.positions import GroupPosition
from pipeline.operate.status import FlowsStatus, Lag, ReplayStatus, ShardStatus, SinkStatus, SnapshotStatus, Status
from pipeline.replay.diff import Example, TopicDiff
from pipeline.replay.plan import Replay, ReplayProgress
from pipeline.sinks.lake.iceberg.maintain import Upkeep, UpkeepReport
from pipeline.sinks.lake.maintain import Maintained
from pipeline.sinks.replica.verify import Compared, Difference
from pipeline.topics.admin import TopicState
from pipeline.topics.names import Topic

TABLE = "orders-of-all-customers-in-all-regions-" + "x" * 40
TOPIC = f"headwater.sink.{TABLE}"
SHARD = "shardId-00000001767225600000-" + "abcdef0123456789"
SEQUENCE = "495903382717" * 4
REASON = f"the value of [total] is no number: {'9' * 30}; headwater explain shows it"
MANY = 1_234_567_890


def status() -> None:
    look._print_status(
        Status(
            group="headwater",
            workers=2,
            flows=[FlowsStatus("worker-1", 3, 4, {"orders": REASON}, "")],
            shards=[ShardStatus(TABLE, SHARD, SEQUENCE, finished=True)],
            snapshots=[SnapshotStatus(TABLE, "20261101T000000-abcdef", "running", MANY, MANY)],
            lag=[Lag("deduplicate", TOPIC, MANY, exact=False)],
            dead_letters=1,
            gaps=1,
            replays=[ReplayStatus("20261101T000000-abcdef", "running", TABLE, MANY, MANY)],
            sinks=[SinkStatus("lake.files", TOPIC, 3, REASON)],
        )
    )


def known_gaps() -> None:
    of_shard = Gap(TABLE, TABLE, SHARD, SEQUENCE, "trimmed", SEQUENCE, at=1e9)
    of_topic = Gap("", "", "", None, "retention", at=1e9, topic=TOPIC, partition=31, first=MANY, last=MANY, count=MANY)
    gaps._print_gaps([(of_shard, False), (of_topic, True)])


def letters() -> None:
    letter = StoredDeadLetter(
        "31-1234567890", 1e9, "deduplicate", TABLE, "E", REASON, TOPIC, 3, MANY, SHARD.encode(), b"{}", ()
    )
    dlq._print_letters([letter])


def topics() -> None:
    look._print_topics([TopicState(Topic(TOPIC, 32, REASON), 32)])


def committed() -> None:
    with pytest.raises(Exception, match="1"):
        positions._print([GroupPosition("headwater-lake", TOPIC, 31, MANY, MANY, MANY, SHARD, REASON)], as_json=False)


def replays() -> None:
    progress = ReplayProgress(MANY, MANY, MANY, MANY)
    replay._print_replays([Replay("20261101T000000-abcdef", 1e9, None, 1e9, {}, suffix=TABLE, progress=progress)])


def differences() -> None:
    example = Example("missing", TOPIC, SHARD, "e" * 32, REASON, REASON)
    replay._print_diff([TopicDiff(TOPIC, TOPIC, MANY, MANY, MANY, MANY, [example])])


def files() -> None:
    directory = {"directory": f"source_table={TABLE}/changed_date=2026-11-01", "before": MANY, "after": 3, "orphans": 0}
    report = Maintained(
        "lake",
        "s3://bucket",
        directories=[{**directory, "rows": MANY, "bytes_before": MANY**2, "bytes_after": MANY**2}],
    )
    lake._show(report)


def tables() -> None:
    upkeep = Upkeep(TABLE, MANY**2, MANY**2, MANY, MANY, MANY, MANY, MANY, MANY)
    lake._show_tables("lake", UpkeepReport([upkeep], None))


def compared() -> None:
    some = Difference(MANY, [f'{{"order_id":{{"S":"{SHARD}"}}}}'])
    replica._print_compared([Compared(TABLE, [TABLE], MANY, MANY, some, some, some)])


Printed = tuple[Callable[[], None], tuple[str, ...]]
PRINTED: list[Printed] = [
    (status, (TABLE, SHARD, SEQUENCE, TOPIC, REASON, f"{MANY:,}", "20261101T000000-abcdef")),
    (known_gaps, (TABLE, SHARD, SEQUENCE, TOPIC, f"{MANY:,}", "partition 31", "retention")),
    (letters, ("31-1234567890", TABLE, SHARD, REASON, "deduplicate")),
    (topics, (TOPIC, REASON, "32")),
    (committed, (TOPIC, REASON, "headwater-lake", str(MANY))),
    (replays, ("20261101T000000-abcdef", TABLE, f"{MANY:,}", "2001-09-09 01:46Z")),
    (differences, (TOPIC, SHARD, REASON, f"{MANY:,}")),
    (files, (f"source_table={TABLE}/changed_date=2026-11-01", f"{MANY:,}", f"{MANY**2:,}")),
    (tables, (TABLE, f"{MANY:,}", f"{MANY**2:,}")),
    (compared, (TABLE, SHARD, f"{MANY:,}")),
]


def printed(show: Callable[[], None], monkeypatch: pytest.MonkeyPatch, **terminal: Any) -> str:
    file = io.StringIO()
    monkeypatch.setattr(console, "out", Console(file=file, **terminal))
    show()
    return file.getvalue()


def joined(text: str) -> str:
    """What was printed, the folded cells of the tables put together again, without blanks."""
    columns: dict[int, str] = {}
    rest = ""
    for line in [*text.splitlines(), ""]:
        if line.startswith("│"):
            for at, cell in enumerate(line.split("│")):
                columns[at] = columns.get(at, "") + cell
        elif not line.startswith("┃"):
            rest += " ".join(columns.values()) + " " + line
            columns = {}
    return re.sub(r"\s", "", rest)


@pytest.mark.parametrize(("show", "whole"), PRINTED, ids=[show.__name__ for show, _ in PRINTED])
def test_nothing_is_cut_on_a_terminal_of_80_columns(
    show: Callable[[], None], whole: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = printed(show, monkeypatch, force_terminal=True, width=80, color_system=None)
    assert "…" not in text
    assert max(len(line) for line in text.splitlines() if line[:1] in set("│┃┏└├")) <= 80 if "│" in text else True
    for cell in whole:
        assert re.sub(r"\s", "", cell) in joined(text), text


@pytest.mark.parametrize(("show", "whole"), PRINTED, ids=[show.__name__ for show, _ in PRINTED])
def test_nothing_is_cut_or_folded_in_a_pipe(
    show: Callable[[], None], whole: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = printed(show, monkeypatch, width=80)
    assert "…" not in text
    for cell in whole:
        assert cell in text


def test_a_number_is_on_one_line_however_long_the_texts_beside_it(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [(TABLE, f"{MANY:,}", SHARD, f"{MANY * 1000:,}")]
    show = lambda: console.print_table(("table", "rows", "shard", "bytes"), rows)  # noqa: E731
    text = printed(show, monkeypatch, force_terminal=True, width=80, color_system=None)
    assert "┃" in text
    assert f" {MANY:,} " in text
    assert f" {MANY * 1000:,} " in text


def test_the_widest_column_is_folded_first(monkeypatch: pytest.MonkeyPatch) -> None:
    show = lambda: console.print_table(("table", "shard"), [("orders", "s" * 100)])  # noqa: E731
    text = printed(show, monkeypatch, force_terminal=True, width=80, color_system=None)
    assert "│ orders │ s" in text


def test_what_looks_like_markup_is_printed_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    text = printed(lambda: console.print_table(("reason",), [("[bold]: [/] is no value",)]), monkeypatch, width=80)
    assert "[bold]: [/] is no value" in text
