"""Trying again what passes by itself: how often, for how long, after which pause. By tenacity.

Not here: what is tried forever, with a state of its own (the readers of shards: `backoff` in `errors`), and what is done again
because somebody else was faster (objects and tables that are changed by several).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection

from confluent_kafka import KafkaException
from tenacity import AsyncRetrying, Retrying, retry_if_exception, stop_after_attempt, stop_after_delay

from pipeline.errors import backoff

Passes = Callable[[BaseException], bool]
PAUSE_S = 0.1


def kafka_says(codes: Collection[int]) -> Passes:
    """Return what says that an error of Kafka has one of these codes."""

    def passes(error: BaseException) -> bool:
        return isinstance(error, KafkaException) and error.args[0].code() in codes

    return passes


def within(seconds: float, passes: Passes) -> Retrying:
    """Try for so many seconds, with equal pauses; the last error is raised. Blocks."""
    return Retrying(
        retry=retry_if_exception(passes),
        stop=stop_after_delay(seconds),
        wait=lambda _: PAUSE_S,
        reraise=True,
    )


def within_async(seconds: float, passes: Passes, *, growing: bool = False) -> AsyncRetrying:
    """Try for so many seconds, on the event loop; `growing`: with pauses that grow (`backoff`)."""
    return AsyncRetrying(
        retry=retry_if_exception(passes),
        stop=stop_after_delay(seconds),
        wait=(lambda state: backoff(state.attempt_number)) if growing else (lambda _: PAUSE_S),
        reraise=True,
    )


def times(
    attempts: int, passes: Passes, *, pause_s: float | None = None, sleep: Callable[[float], None] = time.sleep
) -> Retrying:
    """Try so many times, with pauses that grow, or equal ones; the last error is raised. Blocks."""
    return Retrying(
        retry=retry_if_exception(passes),
        stop=stop_after_attempt(attempts),
        wait=lambda state: backoff(state.attempt_number - 1) if pause_s is None else pause_s,
        sleep=sleep,
        reraise=True,
    )
