"""Two writers of one Iceberg table, interleaved at every step and killed: it ends with the newest state of each item."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from threading import Event, Thread
from typing import Any

import pytest
from confluent_kafka import Message
from faust.types import TP
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.sinks.lake.iceberg.sink import IcebergSink
from pipeline.sinks.lake.sink import Rotation
from pipeline.transport.logs import Log

pytestmark = pytest.mark.slow

KEYS = ["a", "b"]
PARTITIONS = {"p.sink.first": 0, "p.sink.second": 1}
"""By topic, the partition in which all items are: topics need not have as many."""
SECONDS = 30.0
Flushes = list[list[int]]


class Killed(BaseException):
    """The process of a writer ends here."""


class Steps:
    """Threads of which one runs at a time, from one step to the next; who goes on is drawn."""

    def __init__(self, choose: Callable[[int], int]) -> None:
        self._choose = choose
        self._waiting: dict[int, Event] = {}
        self._halted = Event()
        self.errors: list[BaseException] = []

    def step(self, of: int) -> None:
        """Wait until it is this thread's turn."""
        turn = self._waiting[of] = Event()
        self._halted.set()
        assert turn.wait(SECONDS)

    def run(self, works: Sequence[Callable[[], None]]) -> None:
        """Run all of them to their ends."""

        def whole(of: int, work: Callable[[], None]) -> None:
            try:
                self.step(of)
                work()
            except BaseException as error:  # noqa: BLE001 - the test tells it
                self.errors.append(error)
            self._halted.set()

        threads = []
        for of, work in enumerate(works):
            self._halted.clear()
            threads.append(Thread(target=whole, args=(of, work), daemon=True))
            threads[-1].start()
            assert self._halted.wait(SECONDS)
        while self._waiting:
            some = sorted(self._waiting)
            turn = self._waiting.pop(some[self._choose(len(some)) % len(some)])
            self._halted.clear()
            turn.set()
            assert self._halted.wait(SECONDS)
        for thread in threads:
            thread.join(SECONDS)


@st.composite
def histories(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Draw the changes of two items, as they happened; some in the same second."""
    there: set[str] = set()
    second, found = 1_764_000_000, []
    for number in range(1, draw(st.integers(2, 6)) + 1):
        key = draw(st.sampled_from(KEYS))
        second += draw(st.integers(0, 1))
        gone = key in there and draw(st.booleans())
        op = "REMOVE" if gone else "MODIFY" if key in there else "INSERT"
        (there.discard if gone else there.add)(key)
        body: dict[str, Any] = {"Keys": {"id": {"S": key}}, "ApproximateCreationDateTime": second}
        body["SequenceNumber"] = str(number * 9)
        if not gone:
            body["NewImage"] = {"id": {"S": key}, "n": {"N": str(number)}}
        found.append({"eventID": f"e{number}", "eventName": op, "tableName": "t", "dynamodb": body})
    return found


def key_of(change: dict[str, Any]) -> str:
    return str(change["dynamodb"]["Keys"]["id"]["S"])


def newest(history: list[dict[str, Any]], brought: set[int]) -> dict[str, int]:
    """The model: what each item is after the newest of its changes that any topic has."""
    found: dict[str, int] = {}
    for number in sorted(brought):
        found.pop(key_of(history[number]), None)
        if "NewImage" in history[number]["dynamodb"]:
            found[key_of(history[number])] = number + 1
    return found


def sink_in(directory: str, stop: Callable[[], None]) -> IcebergSink:
    """Return a worker's sink that stops before and after each call of the catalog."""
    catalog = {"type": "sql", "uri": f"sqlite:///{directory}/catalog.db", "warehouse": f"file://{directory}"}
    sink = IcebergSink(catalog, "n", Rotation(100, 1 << 20, 60, 0), layout="columns", mode="upsert", clock=lambda: 0.0)
    for name in ("load_table", "commit_table"):
        setattr(sink.catalog, name, stopping(getattr(sink.catalog, name), stop))
    return sink


def stopping(call: Any, stop: Callable[[], None]) -> Any:
    def wrapped(*arguments: Any, **named: Any) -> Any:
        stop()
        found = call(*arguments, **named)
        stop()
        return found

    return wrapped


def bring(directory: str, topic: str, flushes: list[list[Message]], stop: Callable[[], None]) -> None:
    """Be a worker that brings a topic, flush by flush; after a kill, another one from the beginning."""
    while True:
        try:
            sink, start = sink_in(directory, stop), 0
            for records in flushes:
                end = start + len(records)
                writer = sink.open(TP(topic, PARTITIONS[topic]), start, Log("cluster", topic))
                assert not writer.add(records, end)
                assert not writer.flush().rejected
                start = end
        except Killed:
            continue
        return


def messages(topic: str, history: list[dict[str, Any]], flushes: Flushes) -> list[list[Message]]:
    offset, found = 0, []
    for flush in flushes:
        found.append(list[Message]())
        for number in flush:
            key = json.dumps(history[number]["dynamodb"]["Keys"]).encode()
            value = json.dumps(history[number]).encode()
            found[-1].append(Message(topic, PARTITIONS[topic], offset=offset, key=key, value=value))
            offset += 1
    return found


@st.composite
def topics(draw: st.DrawFn) -> tuple[list[dict[str, Any]], list[Flushes]]:
    history = draw(histories())
    flush = st.lists(st.integers(0, len(history) - 1), min_size=1, max_size=3)
    return history, [draw(st.lists(flush, min_size=1, max_size=3)) for _ in range(2)]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(drawn=topics(), turns=st.lists(st.integers(0, 1), max_size=80), kills=st.sets(st.integers(0, 60), max_size=2))
def test_a_table_ends_with_the_newest_state_of_each_item(
    tmp_path_factory: pytest.TempPathFactory,
    drawn: tuple[list[dict[str, Any]], list[Flushes]],
    turns: list[int],
    kills: set[int],
) -> None:
    history, flushes = drawn
    check(str(tmp_path_factory.mktemp("two")), history, flushes, turns, kills)


def check(
    directory: str, history: list[dict[str, Any]], flushes: list[Flushes], turns: list[int], kills: set[int]
) -> None:
    left, taken = list(turns), iter(range(1_000_000))
    steps = Steps(lambda _count: left.pop(0) if left else 0)

    def stop(of: int) -> None:
        steps.step(of)
        if next(taken) in kills:
            raise Killed

    sink_in(directory, lambda: None)  # the catalog is there
    works = [
        lambda of=of, topic=topic: bring(directory, topic, messages(topic, history, flushes[of]), lambda: stop(of))
        for of, topic in enumerate(PARTITIONS)
    ]
    steps.run(works)
    assert not steps.errors, steps.errors
    rows = sink_in(directory, lambda: None).catalog.load_table(("n", "t")).scan().to_arrow().to_pylist()
    found = {row["id"]: int(row["n"]) for row in rows}
    assert len(found) == len(rows), "an item has two rows"
    assert found == newest(history, {number for flushe in flushes for flush in flushe for number in flush})


@pytest.mark.parametrize("killed", [None, *range(4, 14)])
@pytest.mark.parametrize("deletes", [0, 1])
def test_an_older_state_that_overlaps_with_a_deletion_does_not_come_back(
    tmp_path_factory: pytest.TempPathFactory, deletes: int, killed: int | None
) -> None:
    """One goes some steps, the other all of its own: so the older state is read before or after each step of the deletion.

    `killed`: after how many of its steps the other one is replaced by another worker.
    """
    images = [{"id": {"S": "a"}, "n": {"N": "1"}}, None, {"id": {"S": "b"}, "n": {"N": "3"}}]
    history = []
    for number, image in enumerate(images, 1):
        body: dict[str, Any] = {"Keys": {"id": {"S": "b" if number == 3 else "a"}}, "ApproximateCreationDateTime": 1}
        body |= {"SequenceNumber": str(number * 9)} | ({"NewImage": image} if image else {})
        event = "MODIFY" if image else "REMOVE"
        history.append({"eventID": f"e{number}", "eventName": event, "tableName": "t", "dynamodb": body})
    flushes: list[Flushes] = [[[2], [deletes]], [[2], [1 - deletes]]]
    for ahead in range(16) if killed is None else (6, 7):
        directory = str(tmp_path_factory.mktemp("two"))
        for topic, mine in zip(PARTITIONS, flushes, strict=True):  # the table is there, and has heard of both
            bring(directory, topic, messages(topic, history, mine[:1]), lambda: None)
        kills = set() if killed is None else {ahead - 1 + killed}
        check(directory, history, flushes, [0] * ahead + [1] * 90, kills)
