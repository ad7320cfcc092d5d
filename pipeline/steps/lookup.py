"""Enrichment by what a service answers: which questions a batch asks, what is remembered, what a failure means. Pure.

Who asks is given in (`Ask`): a batch's different questions are asked at once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from threading import Lock
from typing import Literal

import msgspec
from cachetools import TTLCache

from pipeline.errors import TransientError
from pipeline.steps.event import NULL, Event, Step, Value

Question = bytes
Answer = Value | Exception | None
"""An attribute value; None: there is no such thing; an exception: no answer could be had."""
Ask = Callable[[Sequence[Question]], Mapping[Question, Answer]]
Clock = Callable[[], float]
AT_ONCE, BUDGET = 400, 6.0
"""Questions asked at once, and seconds after which no more are asked for a batch: a transaction may last 15."""
LOOKUP_KEPT_S = 20.0
"""Seconds for which answers must be kept for a batch to get further with each try."""
FAILURES = 5
"""Failures in a row after which a service is left alone for a while."""
SHORTEST_S, LOOKUP_LONGEST_S = 1.0, 30.0
"""Seconds of that while: doubled each time."""


class LookupFailedError(ValueError):
    """The service gave no answer."""


class RefusedError(ValueError):
    """The service takes the question for none: to ask again gives nothing else."""


class Breaker:
    """Leaves a service alone that has failed often in a row; then a call or two try whether it is back. For many threads.

    Calls are counted, not batches: one thing that the service cannot answer among many that it can does no harm, and a
    batch does not wait for each of its questions when nobody answers.
    """

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self._clock, self._lock = clock, Lock()
        self._failures, self._until = 0, 0.0

    @property
    def open(self) -> bool:
        """Whether the service is left alone now."""
        return self._clock() < self._until

    def count(self, failed: bool) -> None:
        """Take note of a call. What was under way when the service was given up says nothing new."""
        with self._lock:
            if not failed:
                self._failures = 0
            elif not self.open:
                self._failures += 1
                if self._failures >= FAILURES:
                    pause = SHORTEST_S * 2.0 ** min(self._failures - FAILURES, 10)
                    self._until = self._clock() + min(LOOKUP_LONGEST_S, pause)

    def left_alone(self) -> LookupFailedError:
        """Return the failure of what is not asked."""
        return LookupFailedError("it has failed often and is not called for a while")


class AnswerCache:
    """Answers, for as long as each may be used."""

    def __init__(self, size: int, ttl: float, missing_ttl: float, clock: Clock = time.monotonic) -> None:
        self._found: TTLCache[Question, Value] = TTLCache(max(size, 1), ttl, clock)
        self._missing: TTLCache[Question, None] = TTLCache(max(size, 1), missing_ttl, clock)
        self._size, self._shortest = size, min(ttl, missing_ttl)

    def keeps(self, count: int) -> bool:
        """Say whether so many answers are still there when a batch is tried again."""
        return self._size >= count and self._shortest >= LOOKUP_KEPT_S

    def get(self, question: Question, default: Answer) -> Answer:
        """Return what is remembered, or the default."""
        if (found := self._found.get(question)) is not None:
            return found
        return None if question in self._missing else default

    def put(self, question: Question, answer: Answer) -> None:
        """Remember an answer; failures are not."""
        if self._size == 0 or isinstance(answer, Exception):
            return
        if answer is None:
            self._missing[question] = None
        else:
            self._found[question] = answer


def compile_lookup(
    into: str,
    question_of: Callable[[Event], Question | None],
    ask: Ask,
    memory: AnswerCache,
    on_failure: Literal["retry", "reject", "pass"],
    clock: Clock = time.monotonic,
) -> Step:
    """Return the step that adds answers under a name. What has no question gets null, as what has no answer.

    A batch whose answers take longer than a transaction may is given up by TransientError: the answers had are remembered, so
    the next try gets further.
    """
    unknown: Answer = LookupFailedError("not asked")

    def step(events: Sequence[Event]) -> None:
        questions = [question_of(event) for event in events]
        answers = {fromkey: memory.get(fromkey, unknown) for fromkey in dict.fromkeys(questions) if fromkey is not None}
        wanted = [one for one, answer in answers.items() if answer is unknown]
        if wanted:
            until = clock() + BUDGET if memory.keeps(len(wanted)) else float("inf")
            for begin in range(0, len(wanted), AT_ONCE):
                if clock() > until:
                    raise TransientError(
                        f"the lookup into {into} takes longer than {BUDGET:g} s for a batch: it continues later"
                    )
                answers |= _asked(wanted[begin : begin + AT_ONCE], ask, memory)
        if on_failure == "retry":
            failed = next((answer for answer in answers.values() if isinstance(answer, LookupFailedError)), None)
            if failed is not None:
                raise TransientError(f"the lookup into {into} has no answer: {failed}")
        for event, question in zip(events, questions, strict=True):
            answer = None if question is None else answers[question]
            if not isinstance(answer, Exception):
                event.added[into] = NULL if answer is None else answer
            elif on_failure == "pass":
                event.added[into] = NULL
                event.marks.append(("lookup_failed", into.encode()))
            else:
                event.error = answer

    return step


def _asked(wanted: Sequence[Question], ask: Ask, memory: AnswerCache) -> Mapping[Question, Answer]:
    answers = ask(wanted)
    for question, answer in answers.items():
        memory.put(question, answer)
    return answers


def raw(value: object) -> Value:
    """Return an attribute value as bytes."""
    return msgspec.Raw(msgspec.json.encode(value))
