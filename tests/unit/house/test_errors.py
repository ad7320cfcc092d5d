"""The three meanings of errors are those in use: try again, dead-letter, stop."""

from __future__ import annotations

import asyncio
import importlib
import pkgutil
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from confluent_kafka import KafkaError, KafkaException, Message

import pipeline
from pipeline.errors import FatalError, HeadwaterError, RejectedError, TransientError
from pipeline.runtime import worker as apps
from pipeline.runtime.worker import Worker
from pipeline.services.aws import TrimmedError, VanishedError
from pipeline.transport import Batch
from pipeline.transport.slow import TooSlowError
from pipeline.transport.transaction import LOST, Transaction, raising_kafka_errors


def all_errors() -> Iterator[type[HeadwaterError]]:
    for module in pkgutil.walk_packages(pipeline.__path__, "pipeline."):
        if not module.name.startswith(("headwater.lab", "pipeline.worker", "headwater.cli")):
            importlib.import_module(module.name)
    waiting: list[type[HeadwaterError]] = [HeadwaterError]
    while waiting:
        one = waiting.pop()
        yield one
        waiting += one.__subclasses__()


BY_ITSELF = {HeadwaterError, TooSlowError, TrimmedError, VanishedError}
"""The root; what is a dead letter or stops the worker, as `on_error` says; and what a source makes a gap of."""


def test_every_error_has_one_of_three_meanings() -> None:
    for error in set(all_errors()) - BY_ITSELF:
        meanings = [meaning for meaning in (TransientError, RejectedError, FatalError) if issubclass(error, meaning)]
        assert len(meanings) == 1, error


@pytest.fixture
def outcome(monkeypatch: pytest.MonkeyPatch) -> Callable[[Exception, str], str]:
    """Return what becomes of a batch at which a step raises."""
    record = cast("Message", SimpleNamespace(offset=lambda: 0))

    async def one(_stream: object) -> AsyncIterator[Batch]:
        yield Batch("t", 0, [record])

    monkeypatch.setattr(apps, "batches", one)

    def process(error: Exception, on_error: str) -> str:
        found: list[str] = []

        async def run(function: Callable[[Any], None], batch: Batch) -> None:
            function(batch)

        def step(_batch: Batch) -> None:
            raise error

        def blame(_batch: Batch, _error: Exception) -> bool:
            found.append("dead letter")
            return True

        worker = SimpleNamespace(
            run=run,
            settings=SimpleNamespace(on_error=on_error),
            _failures={},
            _try_again=lambda _batch, _error: found.append("again"),
            app=SimpleNamespace(consumer=SimpleNamespace(blame=blame)),
        )
        try:
            asyncio.run(Worker.process(cast("Worker", worker), cast("Any", None), "transform", step))
        except type(error):
            found.append("stop")
        return found[0]

    return process


@pytest.mark.parametrize("on_error", ["stop", "dead_letter"])
def test_a_step_that_raises_is_done_again_or_dead_lettered_or_stops_by_the_meaning_of_its_error(
    outcome: Callable[[Exception, str], str], on_error: str
) -> None:
    assert outcome(TransientError("later"), on_error) == "again"
    assert outcome(RejectedError("never"), on_error) == "dead letter"
    assert outcome(FatalError("no"), on_error) == "stop"
    assert outcome(KafkaException(KafkaError(KafkaError._TRANSPORT)), on_error) == "again"
    assert outcome(ValueError("what?"), on_error) == ("dead letter" if on_error == "dead_letter" else "stop")


@pytest.mark.parametrize("code", sorted(LOST))
def test_a_fenced_producer_is_known_by_whatever_code_it_is_wrapped_in(tmp_path: Path, code: int) -> None:
    transaction = Transaction({"bootstrap.servers": "127.0.0.1:1"}, tmp_path, "g")
    transaction.spoil_or_raise(KafkaException(KafkaError(code, "fenced")))
    assert transaction.spoiled is not None
    transaction.executor.shutdown()


def test_other_errors_of_kafka_are_raised(tmp_path: Path) -> None:
    transaction = Transaction({"bootstrap.servers": "127.0.0.1:1"}, tmp_path, "g")
    with pytest.raises(KafkaException):
        transaction.spoil_or_raise(KafkaException(KafkaError(KafkaError.TOPIC_AUTHORIZATION_FAILED, "no")))
    transaction.executor.shutdown()


def test_an_error_of_the_binding_is_what_librdkafka_meant() -> None:
    cause = KafkaException(KafkaError(KafkaError._FATAL, "fenced"))
    with pytest.raises(KafkaException, match="fenced"), raising_kafka_errors():
        raise SystemError("returned a result with an exception set") from cause
    with pytest.raises(SystemError), raising_kafka_errors():
        raise SystemError("something else")


@pytest.mark.parametrize("fault", ["records in flight", "no answer to the abort"])
def test_a_producer_that_cannot_abort_in_time_is_replaced(fault: str, tmp_path: Path) -> None:
    transaction = Transaction({"bootstrap.servers": "127.0.0.1:1"}, tmp_path, "g")
    timed_out = KafkaException(KafkaError(KafkaError._TIMED_OUT, "", False, True))

    def abort_transaction(_seconds: float) -> None:
        raise timed_out

    replaced: list[str] = []
    transaction._producer = cast(
        "Any",
        SimpleNamespace(
            poll=lambda _seconds: 0,
            flush=lambda _seconds: int(fault == "records in flight"),
            abort_transaction=abort_transaction,
        ),
    )
    transaction._replace = lambda: replaced.append(fault)  # type: ignore[method-assign]  # it asks a broker
    transaction._abort()
    assert replaced == [fault]
