"""Find the sinks that an item has left, and make what they get. Pure.

Nothing is remembered: where an item was, the rules say of the old image of its change. They are asked about a *state*: a
change that leaves the item as the image has it (`MODIFY`, both images equal). So a rule that asks of which kind a change is,
or what it changes, says the same of every state, and no item leaves a sink because of it.

An item has left the sinks of its old state that the change is not sent to, and that its new state does not lead to. Where
the old state is not known, as a rule or a step fails on it, or as a reference has changed since, all other sinks get it:
to delete what is not there does no harm.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from math import inf
from typing import Any, cast

import msgspec
from msgspec.structs import replace

from models.change import NONE, Change
from pipeline.errors import RejectedError, TransientError
from pipeline.steps.event import Event, join, split
from pipeline.steps.route import Router, Rule

Where = Callable[[bytes, Change, Any], bool]
"""Takes a change's bytes, the change, and what the patterns look at of it; says whether the flow takes it."""
MOVED_TO = "moved_to"
"""Header of what a sink gets when an item leaves it: the sinks that the item is in now, with commas; '' for none."""


class LeaveCase(msgspec.Struct, eq=False):
    """A change whose item may have left sinks."""

    event: Event
    """Not shaped yet."""
    taken: bool
    """Whether the `where` of the flow holds of it."""
    unsure: bool = False
    """Whether a reference has changed since the item was sent last: what is added now does not say where that was."""
    is_anywhere: bool = False
    """Whether nothing says where the item was: all sinks get it that do not have the item now."""
    sinks: tuple[str, ...] = ()
    """Where the change goes."""
    left: tuple[str, ...] = ()
    """The sinks that learn that the item is no longer there."""
    now: tuple[str, ...] = ()
    """The sinks that the item is in."""
    was: Event | None = None
    """The old state."""
    ways: Sequence[int] | None = None
    """The rules that the old state goes by; None: the flow leaves that state out."""
    is_open: bool = False
    """Whether the references decide where the old state was: if the change waits, that may be different later."""

    @property
    def sent(self) -> bool:
        """Whether the change itself goes to sinks: no step has left it out."""
        return self.taken and not self.event.gone

    @property
    def is_deletion(self) -> bool:
        """Whether the item was deleted."""
        return self.event.change.event_name == "REMOVE"


@dataclass(frozen=True, slots=True)
class Leaving:
    """What a flow knows of its rules, to find the sinks that an item has left."""

    where: Where | None
    first: Callable[[Change], bool] | None
    """Says of some changes that `where` does not hold, from the change alone."""
    rules: Sequence[Rule]
    ways: Sequence[Rule]
    """The rules, and `otherwise` behind them."""
    every: bool
    """Whether all rules are asked, not only up to the first that holds."""
    route: Router
    """Finds the sinks of a change as if nothing could leave."""
    looks: bool
    """Whether patterns look at images: then of both the same is decoded."""
    alike: Callable[[Change], bool] | None
    """Says whether both images are the same in all that else decides, as in expressions; None: nobody can say that."""
    asks_enriched: bool
    """Whether a rule looks at what was added: then the old state is enriched too."""
    may_drop: bool
    """Whether a step may leave changes out."""
    tombstones: bool
    """Whether a sink gets key and null, where an envelope has something else for deletions."""
    bare: bool
    """Whether nothing but the key of what a sink gets is written."""
    as_aws: bool
    """Whether the record itself is written, which then must be one of a deletion."""

    @property
    def follows_references(self) -> bool:
        """Whether a change of a reference may bring an item into a sink, or out of it."""
        return self.asks_enriched or self.may_drop

    def concerns(self, change: Change) -> bool:
        """Say whether a change tells where its item was: it has an old image, and a new one if it is not a deletion."""
        body = change.body
        if change.event_name == "MODIFY":
            return body.old_image is not NONE and body.new_image is not NONE
        return change.event_name == "REMOVE" and body.old_image is not NONE and bytes(body.old_image) != b"null"

    def may_have_been_taken(self, change: Change) -> bool:
        """Say whether the flow may have taken the old state of a change that it leaves out."""
        if not self.concerns(change):
            return False
        return self.first is None or self.first(replace(change, event_name="MODIFY"))

    def case(self, event: Event, *, taken: bool, unsure: bool) -> LeaveCase | None:
        """Return the case of a change whose item may have left sinks; None for most."""
        change, dropped = event.change, taken and event.gone
        if unsure and (self.asks_enriched or dropped):
            return LeaveCase(event, taken, unsure=True, is_anywhere=True)
        if not self.concerns(change):
            return None
        if change.event_name == "MODIFY" and not dropped and self._is_alike(event):
            return None
        return LeaveCase(event, taken, unsure)

    def _is_alike(self, event: Event) -> bool:
        """Say whether both images are the same in all that decides in which sinks the item is: then it has left none."""
        if self.looks:
            body = event.looked["dynamodb"]
            if body.get("NewImage") != body.get("OldImage"):
                return False
        return self.alike is not None and self.alike(event.change)

    def settle(self, cases: Sequence[LeaveCase], enrich: Callable[[Sequence[Event]], None]) -> None:
        """Find which sinks each item has left, and to which sinks a deletion goes; `enrich` runs the flow's steps."""
        for case in cases:
            self._look_back(case)
        if self.asks_enriched:
            enrich([case.was for case in cases if case.was is not None])
        for case in cases:
            case.is_open = self.asks_enriched and case.was is not None
            if case.was is not None:
                case.ways = self._ways(case.was)
        for case in cases:
            try:
                if case.is_deletion:
                    self._delete(case)
                else:
                    self._leave(case)
            except Exception as error:  # noqa: BLE001 - whatever is wrong with one change, the others continue
                case.event.error = error
        self._stay([case for case in cases if case.left and not case.is_deletion], enrich)
        if self.may_drop and not self.asks_enriched:
            self._forget_dropped(
                [case for case in cases if case.left and case.was is not None and not case.unsure], enrich
            )
        for case in cases:
            case.now = tuple(dict.fromkeys([*case.sinks, *case.now]))

    def message(self, case: LeaveCase, *, bare: bool) -> Event:
        """Return what the sinks get that an item has left: that it was deleted, with its old image if not `bare`."""
        event, change = case.event, case.event.change
        gone = _with(change, "REMOVE", new=NONE, old=NONE if bare else change.body.old_image)
        value = _removal(event.value) if self.as_aws and not (bare or case.is_deletion) else event.value
        told = Event(event.key, value, gone, event.at)
        told.left = True
        if not case.is_deletion:
            told.moved = True
            told.marks = [(MOVED_TO, ",".join(case.now).encode())]
        return told

    def _look_back(self, case: LeaveCase) -> None:
        """Make the old state, if the flow takes it."""
        if case.is_anywhere:
            case.ways = range(len(self.ways))
            return
        try:
            was = self._state(case.event, "OldImage", case.event.change.body.old_image)
            if self._takes(was):
                case.was = was
        except Exception:  # noqa: BLE001 - the state is not known
            case.ways = range(len(self.ways))

    def _state(self, event: Event, name: str, image: msgspec.Raw) -> Event:
        """Return a change that leaves the item as an image has it."""
        change = _with(event.change, "MODIFY", new=image, old=image)
        # From the beginning of time: it waits for no reference.
        return Event(event.key, event.value, change, -inf, self._looked(event.looked, name))

    def _looked(self, looked: Any, image: str) -> Any:
        """Return what the patterns look at of a state, given what they look at of its change."""
        if not isinstance(looked, Mapping):
            return looked
        found = {**looked, "eventName": "MODIFY"}
        found.pop("userIdentity", None)
        if self.looks:
            body = looked["dynamodb"]
            item = body.get(image)
            found["dynamodb"] = {**body, "NewImage": item, "OldImage": item}
        return found

    def _takes(self, state: Event) -> bool:
        return self.where is None or self.where(state.value, state.change, state.looked)

    def _ways(self, state: Event) -> Sequence[int] | None:
        """Return the rules that a state goes by; all where that is not known."""
        if state.gone:
            return None
        found = self._told(state)
        return range(len(self.ways)) if found is None else found

    def _told(self, state: Event) -> list[int] | None:
        """Return the rules that a state goes by; None where that is not known."""
        if state.error is not None:
            return None
        try:
            return self._hold(state)
        except TransientError:
            raise
        except Exception:  # noqa: BLE001 - a change that left the item so was rejected
            return None

    def _hold(self, state: Event) -> list[int]:
        found = []
        for number, rule in enumerate(self.rules):
            if rule.where is None or rule.where(state):
                found.append(number)
                if not self.every:
                    break
        return found or list(range(len(self.rules), len(self.ways)))

    def _names(self, ways: Iterable[int], change: Change) -> tuple[str, ...]:
        return tuple(dict.fromkeys(self.ways[number].sink(change) for number in ways))

    def _holding(self, ways: Iterable[int], change: Change) -> tuple[str, ...]:
        """Return the sinks in which an item is by these rules."""
        found: dict[str, None] = {}
        for rule in (self.ways[number] for number in ways):
            if rule.holds:
                with suppress(RejectedError):  # what names no topic holds nothing
                    found[rule.sink(change)] = None
        return tuple(found)

    def _leave(self, case: LeaveCase) -> None:
        """Find the sinks of the old state that a change is not sent to."""
        before = self._holding(case.ways or (), case.event.change)
        case.left = tuple(sink for sink in before if sink not in case.sinks)

    def _delete(self, case: LeaveCase) -> None:
        """Find the sinks of a deletion: of each condition that holds of it, and those that the item was in."""
        event, change = case.event, case.event.change
        if case.ways is None:
            case.sinks = self.route(event) if case.sent else ()
            return
        own: list[int] = []
        for number, rule in enumerate(self.rules) if case.sent else ():
            if rule.where is None or not rule.where(event) or self._is_hidden(case, number):
                continue
            own.append(number)
            if not self.every:
                break
        if case.sent and (self.every or not own):
            # What takes everything, and what takes the rest, judge a deletion by its old image.
            taking = [number for number in case.ways if self.ways[number].where is None]
            own = sorted({*own, *(number for number in taking if number < len(self.rules) or not own)})
        if case.sent and not self.tombstones:  # the deletion itself tells them
            own = sorted({*own, *(number for number in case.ways if self.ways[number].holds)})
        case.sinks = self._names(own, change)
        case.left = tuple(sink for sink in self._holding(case.ways, change) if sink not in case.sinks)

    def _is_hidden(self, case: LeaveCase, number: int) -> bool:
        """Say whether a rule holds of a deletion only because one before it, that had the item, does not see deletions."""
        if self.every or case.was is None or number in (case.ways or ()):
            return False
        where = self.rules[number].where
        try:
            return where is not None and where(case.was)
        except Exception:  # noqa: BLE001 - it asks for more than the state
            return False

    def _stay(self, cases: Sequence[LeaveCase], enrich: Callable[[Sequence[Event]], None]) -> None:
        """Keep items in sinks that their new state leads to, though the change is not sent there: `changed("total")`."""
        states: list[tuple[LeaveCase, Event]] = []
        for case in cases:
            dropped = case.taken and case.event.gone
            state = None if dropped else self._new_state(case)
            if state is not None:
                states.append((case, state))
        if self.asks_enriched:
            enrich([state for case, state in states if not case.taken])
        for case, state in states:
            if not state.gone and (ways := self._told(state)) is not None:
                case.now = self._holding(ways, case.event.change)
                case.left = tuple(sink for sink in case.left if sink not in case.now)

    def _new_state(self, case: LeaveCase) -> Event | None:
        """Return the new state, with what was added to its change; None where the flow leaves it out, or nobody can tell."""
        try:
            state = self._state(case.event, "NewImage", case.event.change.body.new_image)
            taken = self._takes(state)
        except Exception:  # noqa: BLE001 - the item is in no sink then
            return None
        state.added = dict(case.event.added)
        return state if taken else None

    def _forget_dropped(self, cases: Sequence[LeaveCase], enrich: Callable[[Sequence[Event]], None]) -> None:
        """Take back what was made of old states that a step leaves out: they were in no sink."""
        states = [cast("Event", case.was) for case in cases]
        enrich(states)
        for case, state in zip(cases, states, strict=True):
            if state.gone:
                case.left = ()


def _with(change: Change, event_name: str, *, new: msgspec.Raw, old: msgspec.Raw) -> Change:
    """Return a change of another kind, with other images."""
    return replace(change, event_name=event_name, body=replace(change.body, new_image=new, old_image=old))


def _removal(value: bytes) -> bytes:
    """Return a record as that of a deletion of the item that it had before."""
    record = split(value)
    body = split(record["dynamodb"])
    body.pop("NewImage", None)
    body.pop("SizeBytes", None)  # of both images
    record["eventName"] = msgspec.Raw(b'"REMOVE"')
    record["dynamodb"] = msgspec.Raw(join(body))
    return join(record)


def alike(names: Sequence[str]) -> Callable[[Change], bool]:
    """Return what says whether both images of a change have the same bytes under these names."""
    if not names:
        return lambda change: True
    seen = msgspec.defstruct(
        "Seen", [(f"a{n}", msgspec.Raw, msgspec.field(name=name, default=NONE)) for n, name in enumerate(names)]
    )
    read = msgspec.json.Decoder(seen).decode

    def same(change: Change) -> bool:
        try:
            return bool(read(change.body.old_image) == read(change.body.new_image))
        except msgspec.DecodeError:  # an image is null, or none
            return False

    return same
