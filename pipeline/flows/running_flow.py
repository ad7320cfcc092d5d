"""A flow that runs in a worker: its steps, how much it may reject, and its items' places in the flow state."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

from models.change import decode
from models.dead_letter import Headers
from pipeline.settings.flows import FlowSettings
from pipeline.state.held_changes import FlowItem, HeldChange
from pipeline.steps.flow import Flow, Given
from pipeline.steps.secrecy import MaskKey

RATIO_OF = 1_000
"""Changes over which the share of rejected ones is taken."""
AT_LEAST = 100
"""Changes before the share says anything."""


class RejectLimit:
    """Whether a flow rejects more than its share of the last changes."""

    def __init__(self, share: float) -> None:
        self._share = share
        self._seen = self._rejected = 0.0

    def add(self, seen: int, rejected: int) -> bool:
        """Count changes; return True when the flow must stop."""
        self._seen += seen
        self._rejected += rejected
        over = self._seen >= AT_LEAST and self._rejected > self._share * self._seen
        if self._seen > RATIO_OF:  # older ones count less and less
            self._seen, self._rejected = self._seen / 2, self._rejected / 2
        return over


@dataclass(frozen=True)
class RunningFlow:
    """A flow that runs."""

    settings: FlowSettings
    steps: Flow
    limit: RejectLimit
    parks: bool
    """Whether changes of it may wait."""
    re_emits: bool
    """Whether changes of it are sent again when a reference changes."""
    asks: bool
    """Whether it asks others for many changes at once: a database, a service, a function of the user."""
    key: MaskKey | None
    """Of its masks: its dead letters are sealed with it."""

    @property
    def is_strict(self) -> bool:
        """Whether the changes of an item wait behind a rejected one."""
        return self.settings.order == "strict"

    @property
    def name(self) -> str:
        """The name of the flow."""
        return self.settings.name

    @property
    def follows_references(self) -> bool:
        """Whether a reference whose changes send items again may bring them out of a sink that is read as a table."""
        leaving = self.steps.leaving
        return self.re_emits and leaving is not None and leaving.follows_references

    def joined_place(self, table: str, key: bytes | None) -> FlowItem:
        """Return where an item's last change is noted: by table, since items of several may have the same key."""
        return FlowItem(self.settings.name, table.encode() + b"/" + (key or b""))


def waiting_of(given: Given) -> HeldChange:
    """Return a change as the flow state keeps it."""
    return HeldChange(given.offset, given.at, given.key, given.value, list(given.headers))


def given_of(waiting: HeldChange, at: float) -> Given:
    """Return a change that was kept, as one that comes at a time."""
    value = waiting.value
    return Given(waiting.offset, waiting.key, value, decode(value), at, cast("Headers", waiting.headers))
