"""A change on its way through a flow, and what a step is.

A step takes the events of a batch and changes them in place, each by itself: in batches of any size they come out the same.
What it cannot handle it rejects (`event.error`), what it leaves out it marks (`event.gone`); such events are not given to
later steps. Images stay bytes: they are cut into attributes when a step asks for them, and values are decoded only where
one must look inside.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import msgspec

from models.change import Change, item_key
from pipeline.errors import TransientError

Value: TypeAlias = msgspec.Raw
"""One attribute value, in DynamoDB's typed JSON: `{"S":"x"}`. `bytes(value)` are its bytes."""
Item: TypeAlias = dict[str, Value]
"""The attributes of an item, their values not decoded."""
Headers: TypeAlias = list[tuple[str, bytes]]

split = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
"""Cuts a JSON object into its members; the values stay bytes."""
join = msgspec.json.encode
"""Makes a JSON object of members again; raw values go in as they are."""
NULL = msgspec.Raw(b'{"NULL":true}')
"""The attribute value that stands for nothing."""


class Event(msgspec.Struct, eq=False):
    """A change, what steps have added to it, and what became of it."""

    key: bytes | None
    """The Kafka key: the item key, masked where an attribute of it is."""
    value: bytes
    """The record as it is on raw."""
    change: Change
    """What of it steps read. Its images are those of raw: for what earlier steps have made of them ask the event."""
    at: float = 0.0
    """When it came here, by the clock that waits are counted with."""
    looked: Any = None
    """What the patterns of the flow look at, decoded."""
    added: dict[str, Value] = msgspec.field(default_factory=dict)
    """What enrichment has added: attribute values by name."""
    shaped: bool = False
    """Whether a step has changed its images or its keys."""
    error: Exception | None = None
    """Why a step has rejected it."""
    gone: bool = False
    """Whether a step has left it out."""
    output: bytes | None = None
    """What is written to the sink topic; None is a tombstone. Set by the last step."""
    key_output: bytes | None = None
    """The key that is written with it, where the keys of the sink topic have a format. Set by the last step."""
    headers: Headers = msgspec.field(default_factory=list)
    """Headers that an envelope wants beside the usual ones."""
    references: list[tuple[str, bytes, bytes]] = msgspec.field(default_factory=list)
    """The references whose changes have it sent again: table, key, and the digest of the item that was added."""
    marks: Headers = msgspec.field(default_factory=list)
    """Headers that other steps want."""
    left: bool = False
    """Whether it tells a sink no more than that the item is no longer there."""
    moved: bool = False
    """Whether that item was not deleted."""
    plain_after: bytes | None = None
    """The item after the change as plain JSON with exact numbers, where a step has written it so."""
    _before: Item | None = None
    _after: Item | None = None
    _keys: Item | None = None

    @property
    def alive(self) -> bool:
        """Whether later steps get it."""
        return self.error is None and not self.gone

    @property
    def before(self) -> Item | None:
        """The attributes before the change; None when there are none. To change them, set the property."""
        if self._before is None and (image := self.change.before) is not None:
            self._before = split(image)
        return self._before

    @before.setter
    def before(self, item: Item) -> None:
        self._before = item
        self.shaped = True

    @property
    def after(self) -> Item | None:
        """The attributes after the change; None when there are none (a deletion)."""
        if self._after is None and (image := self.change.after) is not None:
            self._after = split(image)
        return self._after

    @after.setter
    def after(self, item: Item) -> None:
        self._after = item
        self.plain_after = None
        self.shaped = True

    @property
    def keys(self) -> Item:
        """The key attributes."""
        if self._keys is None:
            self._keys = split(self.change.body.keys)
        return self._keys

    @keys.setter
    def keys(self, item: Item) -> None:
        self._keys = item
        self.shaped = True
        self.key = item_key(join(item))

    @property
    def image(self) -> Item | None:
        """The item as the change left it; of a deletion, as it was."""
        return self.before if self.change.after is None else self.after

    @property
    def uncut(self) -> msgspec.Raw | None:
        """The item after the change in typed JSON, while it is as it came: one attribute can be read without the others.

        It may be null, or empty, where there is none.
        """
        return self.change.body.new_image if self._after is None and self._before is None else None

    @property
    def before_json(self) -> bytes | None:
        """The item before the change, in typed JSON."""
        # An image that was only looked at is written as it came.
        return self.change.before if self._before is None or not self.shaped else join(self._before)

    @property
    def after_json(self) -> bytes | None:
        """The item after the change, in typed JSON."""
        return self.change.after if self._after is None or not self.shaped else join(self._after)


Step: TypeAlias = Callable[[Sequence[Event]], None]


def each(change: Callable[[Event], None]) -> Step:
    """Make a step of what is to be done with one event; what that raises rejects the event; TransientError comes through."""

    def step(events: Sequence[Event]) -> None:
        for event in events:
            try:
                change(event)
            except TransientError:
                raise
            except Exception as error:  # noqa: BLE001 - whatever is wrong with one change, the others continue
                event.error = error

    return step
