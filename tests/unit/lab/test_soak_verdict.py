"""The verdict of the soak: what it counts as lost, doubled and out of order."""

from __future__ import annotations

from typing import Any

from headwater.lab.soak import Came, compare, lateness
from headwater.lab.soak_report import SoakReport

HAPPENED = ["1", "2", "3"]
STREAM = "arn:aws:kinesis:eu-west-1:0:stream/t"
SHUFFLED = [("2", 10.0), ("1", 11.5), ("3", 12.0)]
"""As delivered, and when: `1` comes 1.5 s after `2`, which is newer."""


def verdict(came: list[Came], delivered: list[tuple[str, float]] = SHUFFLED, held: float | None = 0.0) -> SoakReport:
    table: dict[str, Any] = {
        "changes": {"a": HAPPENED},
        "delivered": {"a": delivered},
        "trimmed": [],
        "streams": [STREAM],
        "unrecorded": 0,
    }
    truth = {"tables": {"t": table}, "reshapes": 0, "widest": 1, "come": 0, "gone": 0, "calls": {}}
    return compare(SoakReport(), truth, came, [], None if held is None else {"t": held})


def changes(*event_ids: str) -> list[Came]:
    """Changes of the item; a `!` behind the event ID: marked late."""
    return [Came("t", "a", event_id.rstrip("!"), event_id.endswith("!")) for event_id in event_ids]


def test_a_stream_of_kinesis_is_in_order_as_it_was_delivered_and_only_what_is_late_is_marked() -> None:
    assert verdict(changes("2", "1!", "3")).ok
    assert verdict(changes("2", "1", "3")).ok, "after a restart the mark may be missing"
    assert verdict(changes("1", "2", "3")).out_of_order == 1
    assert verdict(changes("2", "1!", "3!")).out_of_order == 1
    found = verdict(changes("2", "1!", "3"))
    assert (found.late, found.marked) == (1, 1)


def test_with_a_window_it_is_in_order_as_it_happened_but_for_what_came_after_the_window() -> None:
    assert verdict(changes("1", "2", "3"), held=2.0).ok
    assert verdict(changes("2", "1!", "3"), held=2.0).out_of_order == 2, "neither in order nor rightly marked"
    assert verdict(changes("2", "1", "3"), held=2.0).out_of_order == 1
    assert verdict(changes("2", "1!", "3"), held=1.0).ok
    assert verdict(changes("3", "2", "1!"), held=1.0).out_of_order == 1


def test_streams_of_dynamodb_are_in_order_as_it_happened() -> None:
    assert verdict(changes("1", "2", "3"), held=None).ok
    assert verdict(changes("2", "1", "3"), held=None).out_of_order == 1


def test_what_is_missing_is_lost_and_what_comes_twice_or_never_was_is_doubled() -> None:
    assert verdict(changes("2", "3")).lost == 1
    assert verdict(changes("2", "1!", "2", "3")).duplicated == 1
    assert verdict(changes("2", "1!", "3", "9")).duplicated == 1


def test_lateness_counts_from_the_first_newer_change() -> None:
    assert lateness(["1", "2", "3"], [("3", 1.0), ("2", 2.0), ("1", 5.0)]) == {"2": 1.0, "1": 4.0}
