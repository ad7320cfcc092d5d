"""A flow, compiled, and how it is run over the changes of a batch: filter, enrich, route, shape, encode. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import msgspec

from models.change import Change
from pipeline.steps.event import Event, Headers, Step
from pipeline.steps.route import Router, headers

Where = Callable[[bytes, Change, Any], bool]
"""Takes a change's bytes, the change, and what `Flow.look` has decoded of it; says whether it matches."""
Watch = Callable[[str, Sequence[Event]], None]
"""Is told what each step has made of the events: the step's name, the events that it was given."""


class Output(Protocol):
    """The last step: sets `event.output` to what is written to a sink topic."""

    @property
    def tombstone_follows(self) -> bool:
        """Whether a tombstone follows what is written for a deletion."""

    @property
    def keys(self) -> Step | None:
        """What sets `event.key_output`; None: the key is the item key."""

    def __call__(self, events: Sequence[Event]) -> None:
        """Encode events."""


class Given(msgspec.Struct, frozen=True, gc=False):
    """A change of a batch, as a flow is given it."""

    offset: int
    """Its place in its partition of raw."""
    key: bytes | None
    value: bytes
    change: Change
    at: float
    """When it came here, by the clock that waits are counted with."""
    headers: Sequence[tuple[str, bytes]] = ()
    """Those that it has on raw: a dead letter keeps them."""


class Message(msgspec.Struct, frozen=True):
    """One message for one topic."""

    sink: str
    """The sink's name; of what `through` publishes, ''."""
    key: bytes | None
    value: bytes | None
    headers: Headers


class Result(msgspec.Struct, eq=False):
    """What a flow made of one change."""

    given: Given
    messages: list[Message] = msgspec.field(default_factory=list)
    error: Exception | None = None
    """Why it was rejected; then there are no messages."""
    stage: str = ""
    """The step that rejected it."""
    references: Sequence[tuple[str, bytes, bytes]] = ()
    """The references whose changes have it sent again: table, key, and the digest of the item that was added."""


@dataclass(frozen=True, slots=True)
class Flow:
    """A flow, compiled."""

    name: str
    tables: frozenset[str]
    """Empty: all."""
    where: Where | None
    first: Callable[[Change], bool] | None
    """Says of some changes that `where` does not hold, from the change alone: nothing is decoded for them."""
    look: Callable[[bytes], Any] | None
    """Decodes what the patterns look at, and nothing else; None: they look at nothing."""
    enrich: Sequence[tuple[str, Step]]
    router: Router
    shape: Sequence[tuple[str, Step]]
    output: Callable[[str], Output]
    """Gives the last step of a sink."""
    through: Output | None = None

    def run(self, changes: Iterable[Given], watch: Watch | None = None) -> list[Result]:
        """Return what becomes of each change that the flow takes, in order; those that it leaves out have no messages."""
        picked = self._pick(changes)
        if watch is not None:
            watch("where", [event for _, event in picked])
        self._steps(self.enrich, picked, watch)
        sinks: list[tuple[str, ...]] = [()] * len(picked)
        for number, (result, event) in enumerate(picked):
            if event.error is None and not event.gone:
                try:
                    sinks[number] = self.router(event)
                except Exception as error:  # noqa: BLE001 - whatever is wrong with one change, the others go on
                    event.error = error
                    result.stage = "to"
        self._steps(self.shape, picked, watch)
        self._encode(picked, sinks, watch)
        for result, event in picked:
            result.references = event.references
            if event.error is not None:
                result.error = event.error
                result.messages.clear()
        return [result for result, _ in picked]

    def _pick(self, changes: Iterable[Given]) -> list[tuple[Result, Event]]:
        tables, where, first, look = self.tables, self.where, self.first, self.look
        picked = []
        for given in changes:
            value, change = given.value, given.change
            if tables and change.table not in tables:
                continue
            error, looked = None, None
            try:
                if first is not None and not first(change):
                    continue
                if look is not None:
                    looked = look(value)
                if where is not None and not where(value, change, looked):
                    continue
            except Exception as failure:  # noqa: BLE001 - whatever is wrong with one change, the others go on
                error = failure
            event = Event(given.key, value, change, given.at, looked)
            event.error = error
            picked.append((Result(given, stage="where"), event))
        return picked

    def _steps(
        self, steps: Sequence[tuple[str, Step]], picked: Sequence[tuple[Result, Event]], watch: Watch | None
    ) -> None:
        for name, step in steps:
            alive = [(result, event) for result, event in picked if event.error is None and not event.gone]
            events = [event for _, event in alive]
            step(events)
            for result, event in alive:
                if event.error is not None:
                    result.stage = name
            if watch is not None:
                watch(name, events)

    def _encode(
        self, picked: Sequence[tuple[Result, Event]], sinks: Sequence[tuple[str, ...]], watch: Watch | None
    ) -> None:
        outputs: dict[str, list[tuple[Result, Event]]] = {}
        for (result, event), wanted in zip(picked, sinks, strict=True):
            if event.error is None and not event.gone:
                for sink in wanted:
                    outputs.setdefault(sink, []).append((result, event))
        if self.through is not None:
            alive = [(result, event) for result, event in picked if event.error is None and not event.gone]
            self._write("", self.through, alive, watch)
        for sink, some in outputs.items():
            self._write(sink, self.output(sink), some, watch)

    def _write(self, sink: str, output: Output, some: Sequence[tuple[Result, Event]], watch: Watch | None) -> None:
        events = [event for _, event in some]
        output(events)
        follows, keys = output.tombstone_follows, output.keys
        if keys is not None:
            keys([event for event in events if event.error is None])
        for result, event in some:
            if event.error is not None:
                result.stage = "output"
                continue
            change = event.change
            own = headers(change)
            if event.headers or event.marks:
                own = [*own, *event.headers, *event.marks]
            key = event.key if keys is None else event.key_output
            result.messages.append(Message(sink, key, event.output, own))
            if follows and event.output is not None and change.after is None:
                result.messages.append(Message(sink, key, None, own))
        if watch is not None:
            watch(f"to {sink}" if sink else "through", events)


def pieces(changes: Iterable[Given], partitioned: frozenset[str], most: int) -> Iterator[list[Given]]:
    """Yield changes in pieces, of `most` at most: to apply first what one has of partitioned tables changes nothing.

    The item of such a table must be there for the changes behind it and not for those before it, and only those of its own key
    look for it: a piece ends before it where it has one of them.
    """
    piece: list[Given] = []
    keys: set[bytes | None] = set()
    for one in changes:
        if len(piece) >= most or (partitioned and one.key in keys and one.change.table in partitioned):
            yield piece
            piece = []
            keys.clear()
        piece.append(one)
        if partitioned:
            keys.add(one.key)
    if piece:
        yield piece
