"""What can go wrong, in three meanings.

HeadwaterError
 +-- TransientError   try again, slower: a throttle, a broker that is away
 +-- RejectedError    not tried again by itself: this message goes to the dead-letter topic
 +-- FatalError       stop: continuing would lose or duplicate something
      +-- UsageError  the command or its settings are wrong (exit code 2)

Every error says what went wrong and where, and `hint` says what to type next.
"""

from __future__ import annotations

import random

LONGEST_PAUSE_S = 10.0
"""Seconds of the longest pause after an error."""


class HeadwaterError(Exception):
    """The root of all errors that Headwater raises on purpose.

    `message` is one line: what, and where. `hint` is the next command to type, or empty.
    """

    exit_code = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} (try: {self.hint})" if self.hint else self.message


class TransientError(HeadwaterError):
    """It may work when tried again, after a pause."""


class RejectedError(HeadwaterError):
    """A message that can never be processed. It is not tried again by itself: it becomes a dead letter.

    What a step of a flow raises for one change counts as this one, whatever its class; but a TransientError does not.
    """


class FatalError(HeadwaterError):
    """The worker cannot continue without losing or duplicating something: stop."""


class UsageError(FatalError):
    """The command line or the settings are wrong."""

    exit_code = 2


def backoff(errors: int) -> float:
    """Return the seconds until the next try after so many errors in a row: doubled each time up to 10 s, with jitter.

    For any number of errors: what is throttled for hours is tried for hours.
    """
    return min(LONGEST_PAUSE_S, 0.1 * 2.0 ** min(errors, 10)) * random.uniform(0.5, 1)  # noqa: S311 - jitter
