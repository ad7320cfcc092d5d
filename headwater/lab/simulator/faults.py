"""Which call fails, and how: seeded, so that the same calls fail in the same way."""

from __future__ import annotations

import random
from dataclasses import dataclass


class ApiError(Exception):
    """An error as AWS answers it."""

    def __init__(self, code: str, message: str, status: int = 400) -> None:
        super().__init__(f"{code}: {message}")
        self.code, self.message, self.status = code, message, status


@dataclass(frozen=True, slots=True)
class Rates:
    """How often, of all calls. All 0: a quiet day."""

    throttle: float = 0.0
    error: float = 0.0
    """500, and 503 with no JSON in it."""
    timeout: float = 0.0
    """The connection is closed without an answer."""
    expire: float = 0.0
    """An iterator that is too old, long before its time."""
    stale: float = 0.0
    """A listing without its newest shards."""
    cut_short: float = 0.0
    """GetRecords gives a few records only, though there are more."""
    empty: float = 0.0
    """GetRecords gives none, though there are some."""
    cut: float = 0.0
    """A subscription's connection is closed in the middle of an event."""
    broken: float = 0.0
    """A subscription ends with an InternalFailureException."""
    token: float = 0.0
    """The caller's credentials are not valid any more."""

    @classmethod
    def rough(cls) -> Rates:
        """Return a day on which everything happens."""
        return cls(
            throttle=0.02,
            error=0.01,
            timeout=0.005,
            expire=0.01,
            stale=0.1,
            cut_short=0.1,
            empty=0.05,
            cut=0.002,
            broken=0.002,
        )


class TimedOutError(Exception):
    """The call gets no answer."""


class CutOffError(Exception):
    """The connection breaks off; `half` is what still came through."""

    def __init__(self, half: bytes) -> None:
        super().__init__(f"after {len(half)} bytes")
        self.half = half


class ServiceFaults:
    """Throws the dice for each call."""

    def __init__(self, rates: Rates, seed: int) -> None:
        self.rates = rates
        self._dice = random.Random(seed)  # noqa: S311 - to be had again
        self.counts: dict[str, int] = {}
        self.dry = False
        """Whether answers hold no records, whatever there is."""

    def happens(self, name: str) -> bool:
        """Say whether this fault happens now."""
        if self._dice.random() >= getattr(self.rates, name):
            return False
        self.counts[name] = self.counts.get(name, 0) + 1
        return True

    def strike(self, throttle_code: str) -> None:
        """Raise ApiError or TimedOutError where a call fails for no fault of its own."""
        if self.happens("token"):
            raise ApiError("ExpiredTokenException", "The security token included in the request is expired")
        if self.happens("throttle"):
            raise ApiError(throttle_code, "Rate exceeded for shard")
        if self.happens("error"):
            raise ApiError("InternalServerError", "The request processing has failed", 500)
        if self.happens("timeout"):
            raise TimedOutError

    def few(self, count: int) -> int:
        """Return how many of so many records an answer has."""
        if count and self.dry:
            self.counts["dry"] = self.counts.get("dry", 0) + 1
            return 0
        if count and self.happens("empty"):
            return 0
        if count > 1 and self.happens("cut_short"):
            return self._dice.randint(1, count)
        return count
