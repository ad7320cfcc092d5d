"""What the broker has refused: known until a slice that has left it out is committed."""

from __future__ import annotations

from pipeline.errors import RejectedError
from pipeline.transport.transaction import Refusals

WHY = RejectedError("too large")


def test_a_slice_that_has_nothing_of_it_says_nothing() -> None:
    refused = Refusals()
    assert refused.of("a") is None
    refused["a"] = WHY
    refused.committed()
    assert refused.of("a") is WHY


def test_it_is_forgotten_when_the_slice_that_left_it_out_is_committed() -> None:
    refused = Refusals({"a": WHY, "b": WHY})
    assert refused.of("a") is WHY
    refused.aborted()
    refused.committed()
    assert refused.of("a") is WHY, "the slice that left it out was not committed"
    refused.committed()
    assert refused.of("a") is None
    assert refused.of("b") is WHY
