"""A flow, compiled, and how it is run over the changes of a batch: filter, enrich, route, shape, encode. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, cast

import msgspec

from models.change import Change
from pipeline.steps.event import Event, Headers, Step
from pipeline.steps.leave import LeaveCase, Leaving
from pipeline.steps.route import Router, headers

Where = Callable[[bytes, Change, Any], bool]
"""Takes a change's bytes, the change, and what `Flow.look` has decoded of it; says whether it matches."""
Watch = Callable[[str, Sequence[Event]], None]
"""Gets what each step has made of the events: the step's name, the events that it was given."""


class WriteStep(Protocol):
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
    unsure: bool = False
    """Whether a reference has changed since the item was sent last: where that went its old image does not say."""


class Message(msgspec.Struct, frozen=True):
    """One message for one topic."""

    sink: str
    """The sink's name; of what `through` publishes, ''."""
    key: bytes | None
    value: bytes | None
    headers: Headers
    left: bool = False
    """Whether it tells the sink no more than that the item is no longer there."""


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
    taken: bool = True
    """Whether the `where` of the flow holds of it; of others there may be a sink to tell that the item is no longer there."""


class Told(NamedTuple):
    """What sinks get about an item that has left them."""

    sinks: Sequence[str]
    message: Event
    """Shaped, and not encoded yet."""


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
    output: Callable[[str], WriteStep]
    """Gives the last step of a sink."""
    through: WriteStep | None = None
    leaving: Leaving | None = None
    """Finds the sinks that items have left; None: they get nothing."""

    def run(self, changes: Iterable[Given], watch: Watch | None = None) -> list[Result]:
        """Return what happens to each change that the flow takes, in order; those that it leaves out have no messages."""
        picked = self._pick(changes) if self.leaving is None else self._pick_leaving(changes, self.leaving)
        if watch is not None:
            watch("where", [event for result, event in picked if result.taken])
        self._steps(self.enrich, picked, watch)
        cases: Mapping[int, LeaveCase] = {} if self.leaving is None else self._cases(picked, self.leaving)
        sinks: list[tuple[str, ...]] = [()] * len(picked)
        for number, (result, event) in enumerate(picked):
            if event.error is None and not event.gone:
                if cases and number in cases and cases[number].is_deletion:
                    continue  # it goes by its old image
                try:
                    sinks[number] = self.router(event)
                except Exception as error:  # noqa: BLE001 - whatever is wrong with one change, the others continue
                    event.error = error
                    result.stage = "to"
        told = self._leave(picked, sinks, cases) if cases else {}
        self._steps(self.shape, picked, watch)
        self._encode(picked, sinks, told, watch)
        if told:
            self._tell_keys(picked, cases, told)
        if told or max(map(len, sinks), default=0) > 1:
            for number, (result, _) in enumerate(picked):
                left = cases[number].left if number in cases else ()
                _put_in_order(result.messages, (*left, "", *sinks[number]))
        for result, event in picked:
            result.references = event.references
            if event.error is not None:
                result.error = event.error
                result.messages.clear()
        if self.leaving is None:
            return [result for result, _ in picked]
        return [
            result
            for number, (result, event) in enumerate(picked)
            if result.taken or result.messages or event.error is not None or (number in cases and cases[number].is_open)
        ]

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
            except Exception as failure:  # noqa: BLE001 - whatever is wrong with one change, the others continue
                error = failure
            event = Event(given.key, value, change, given.at, looked)
            event.error = error
            picked.append((Result(given, stage="where"), event))
        return picked

    def _pick_leaving(self, changes: Iterable[Given], leaving: Leaving) -> list[tuple[Result, Event]]:
        """Return what `_pick` does, and beside it, as gone, changes that the flow leaves out but whose old state it took."""
        tables, where, first, look = self.tables, self.where, self.first, self.look
        picked = []
        for given in changes:
            value, change = given.value, given.change
            if tables and change.table not in tables:
                continue
            error, looked, taken = None, None, True
            try:
                if first is not None and not first(change):
                    taken = False
                    if not leaving.may_have_been_taken(change):
                        continue
                if look is not None:
                    looked = look(value)
                if taken and where is not None and not where(value, change, looked):
                    taken = False
                    if not leaving.concerns(change):
                        continue
            except Exception as failure:  # noqa: BLE001 - whatever is wrong with one change, the others continue
                error = failure
            event = Event(given.key, value, change, given.at, looked)
            event.error, event.gone = error, not taken
            picked.append((Result(given, stage="where", taken=taken), event))
        return picked

    def _cases(self, picked: Sequence[tuple[Result, Event]], leaving: Leaving) -> dict[int, LeaveCase]:
        """Return the changes whose items may have left sinks, by their places."""
        found = {}
        for number, (result, event) in enumerate(picked):
            if event.error is None:
                case = leaving.case(event, taken=result.taken, unsure=result.given.unsure)
                if case is not None:
                    found[number] = case
        return found

    def _leave(
        self, picked: Sequence[tuple[Result, Event]], sinks: list[tuple[str, ...]], cases: Mapping[int, LeaveCase]
    ) -> dict[int, Told]:
        """Say where deletions go, and return what the sinks get that items have left, by the places of the changes."""
        leaving = cast("Leaving", self.leaving)
        asked = {number: case for number, case in cases.items() if case.event.error is None}
        for number, case in asked.items():
            case.sinks = sinks[number]
        leaving.settle(list(asked.values()), self._enrich_states)
        told = {}
        for number, case in asked.items():
            sinks[number] = case.sinks
            if case.event.error is not None:
                picked[number][0].stage = "to"
            elif case.left:
                told[number] = Told(case.left, leaving.message(case, bare=leaving.bare))
        self._steps(self.shape, [(picked[number][0], one.message) for number, one in told.items()], None)
        return told

    def _tell_keys(
        self, picked: Sequence[tuple[Result, Event]], cases: Mapping[int, LeaveCase], told: Mapping[int, Told]
    ) -> None:
        """Tell sinks that cannot have the old image as it is the key alone; where that fails as well, reject the change."""
        leaving = cast("Leaving", self.leaving)
        for number, (left, message) in told.items():
            result, event = picked[number]
            if message.error is None or event.error is not None:
                continue
            result.messages = [one for one in result.messages if not one.left]
            key = leaving.message(cases[number], bare=True)
            self._steps(self.shape, [(result, key)], None)
            if key.error is not None:
                event.error = key.error
                result.stage = f"on_leave, {result.stage}"
                continue
            for sink in left:
                self._write(sink, _Tombstones(self.output(sink).keys), [(result, key)], None)

    def _enrich_states(self, states: Sequence[Event]) -> None:
        """Enrich old states of items, as changes are."""
        for _, step in self.enrich:
            if alive := [state for state in states if state.alive]:
                step(alive)

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
        self,
        picked: Sequence[tuple[Result, Event]],
        sinks: Sequence[tuple[str, ...]],
        told: Mapping[int, Told],
        watch: Watch | None,
    ) -> None:
        outputs: dict[str, list[tuple[Result, Event]]] = {}
        keys: dict[str, list[tuple[Result, Event]]] = {}
        bare = keys if self.leaving is not None and self.leaving.bare else outputs
        for number, ((result, event), wanted) in enumerate(zip(picked, sinks, strict=True)):
            if number in told and told[number].message.error is None:
                for sink in told[number].sinks:
                    bare.setdefault(sink, []).append((result, told[number].message))
            if event.error is None and not event.gone:
                for sink in wanted:
                    outputs.setdefault(sink, []).append((result, event))
        if self.through is not None:
            alive = [(result, event) for result, event in picked if event.error is None and not event.gone]
            self._write("", self.through, alive, watch)
        for sink, some in keys.items():
            self._write(sink, _Tombstones(self.output(sink).keys), some, None)
        for sink, some in outputs.items():
            self._write(sink, self.output(sink), some, watch)

    def _write(self, sink: str, output: WriteStep, some: Sequence[tuple[Result, Event]], watch: Watch | None) -> None:
        events = [event for _, event in some]
        output(events)
        follows, keys = output.tombstone_follows, output.keys
        if keys is not None:
            keys([event for event in events if event.error is None])
        for result, event in some:
            if event.error is not None:
                result.stage = result.stage if event.left else "output"
                continue
            change = event.change
            own = headers(change)
            if event.headers or event.marks:
                own = [*own, *event.headers, *event.marks]
            key = event.key if keys is None else event.key_output
            left = event.left
            result.messages.append(Message(sink, key, event.output, own, left))
            if follows and event.output is not None and change.after is None:
                result.messages.append(Message(sink, key, None, own, left))
        if watch is not None:
            watch(f"to {sink}" if sink else "through", [event for event in events if not event.left])


class _Tombstones:
    """Writes keys alone, as the sink has them."""

    tombstone_follows = False

    def __init__(self, keys: Step | None) -> None:
        self.keys = keys

    def __call__(self, events: Sequence[Event]) -> None:
        for event in events:
            event.output = None


def _put_in_order(messages: list[Message], sinks: Sequence[str]) -> None:
    """Put messages in the order of their sinks: in which order those were written depends on the other changes of the batch.

    First come those that the item has left: who reads several sinks into one place has the item then, not its absence.
    """
    places = {sink: place for place, sink in enumerate(sinks)}
    messages.sort(key=lambda one: places[one.sink])


def pieces(changes: Iterable[Given], partitioned: frozenset[str], most: int) -> Iterator[list[Given]]:
    """Yield changes in pieces, of `most` at most: to apply first what one has of partitioned tables changes nothing.

    The item of such a table must be there for the changes behind it and not for those before it, and only those of its own key
    look for it: a piece ends before it where it has one of them.
    """
    piece: list[Given] = []
    keys: set[bytes | None] = set()
    for change in changes:
        if len(piece) >= most or (partitioned and change.key in keys and change.change.table in partitioned):
            yield piece
            piece = []
            keys.clear()
        piece.append(change)
        if partitioned:
            keys.add(change.key)
    if piece:
        yield piece
