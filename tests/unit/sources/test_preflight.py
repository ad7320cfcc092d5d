from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest

from pipeline.errors import FatalError, HeadwaterError, TransientError
from pipeline.services.aws import CredentialsError, DeniedError, VanishedError
from pipeline.settings.sources import DynamoDBStreamSettings, KinesisSettings
from pipeline.sources.base import Stream
from pipeline.sources.dynamodb.streams import is_pattern
from pipeline.sources.preflight import Looked, Patience, preflight


class Clock:
    """Time that goes on when somebody sleeps."""

    def __init__(self) -> None:
        self.now = 0.0

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    @property
    def patience(self) -> Patience:
        return Patience(60.0, lambda: self.now, self.sleep)


class Api:
    """Answers by table: the errors to raise one after the other, the last one for ever; None is an answer."""

    def __init__(
        self, listing: list[HeadwaterError | None] | None = None, **answers: list[HeadwaterError | None]
    ) -> None:
        self.listing, self.answers, self.asked = listing or [None], answers, list[str]()

    names: tuple[str, ...] = ()

    def named(self) -> list[str]:
        return [name for name in self.names if not is_pattern(name)]

    def tables(self, known: set[str]) -> list[str]:
        self.answer("", self.listing)
        return list(self.answers)

    def stream_of(self, table: str) -> Stream:
        self.answer(table, self.answers[table])
        return Stream(table, f"arn:{table}")

    def answer(self, table: str, answers: list[HeadwaterError | None]) -> None:
        self.asked.append(table)
        error = answers.pop(0) if len(answers) > 1 else answers[0]
        if error is not None:
            raise error


def looked(api: Any, *tables: str, **more: Any) -> Looked:
    api.names = tables
    return Looked(DynamoDBStreamSettings(kind="dynamodb-stream", tables=tables, **more), api)


NO_STREAM = FatalError("the table b has no stream", hint="aws dynamodb update-table --table-name b")
THROTTLE = TransientError("the table a: ThrottlingException")


def gone(table: str) -> VanishedError:
    return VanishedError(f"the table {table} does not exist", hint="aws dynamodb list-tables")


def test_a_table_that_a_pattern_finds_never_keeps_a_worker_from_starting() -> None:
    for error in (NO_STREAM, gone("b"), THROTTLE):
        api = Api(a=[None], b=[error])
        preflight([looked(api, "eu-*")], Clock().patience)
        assert api.asked == [""], "the listing is looked at, not what it finds: discovery does that"


def test_a_table_that_tags_find_never_keeps_a_worker_from_starting() -> None:
    preflight([looked(Api(b=[NO_STREAM]), tags={"cdc": "on"})], Clock().patience)


def test_a_listing_that_is_throttled_keeps_no_worker_from_starting(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        preflight([looked(Api([THROTTLE]), "eu-*")], Clock().patience)
    assert len(caplog.records) == 1


def test_a_table_that_is_named_keeps_a_worker_from_starting() -> None:
    with pytest.raises(FatalError, match="has no stream") as told:
        preflight([looked(Api(a=[None], b=[NO_STREAM]), "a", "b", "eu-*")], Clock().patience)
    assert told.value.hint == NO_STREAM.hint


def test_all_that_is_wrong_is_reported_at_once() -> None:
    first, second = Api(a=[gone("a")], b=[NO_STREAM]), Api(c=[gone("c")])
    second.names = ("c",)
    clicks = Looked(KinesisSettings(kind="kinesis", streams=("c",)), second)  # type: ignore[arg-type]  # a stand-in
    with pytest.raises(FatalError) as told:
        preflight([looked(first, "a", "b"), clicks], Clock().patience)
    message = str(told.value)
    assert "3 things are wrong" in message
    for part in (
        "the table a does not exist",
        "the table b has no stream",
        "update-table",
        "the table c does not exist",
    ):
        assert part in message
    assert "\n" not in message


@pytest.mark.parametrize("error", [gone("a"), NO_STREAM])
def test_that_a_table_or_its_stream_does_not_exist_is_believed_when_it_is_said_twice(error: HeadwaterError) -> None:
    api = Api(a=[error, None])
    preflight([looked(api, "a")], Clock().patience)
    assert api.asked == ["a", "a"]
    with pytest.raises(VanishedError):
        preflight([looked(Api(a=[gone("a"), gone("a"), None]), "a")], Clock().patience)


@pytest.mark.parametrize("error", [THROTTLE, CredentialsError("there are no AWS credentials", hint="aws configure")])
def test_what_may_pass_is_tried_again_for_a_minute_and_then_said(
    error: HeadwaterError, caplog: pytest.LogCaptureFixture
) -> None:
    clock = Clock()
    preflight([looked(Api(a=[*[error] * 5, None]), "a")], clock.patience)
    assert 0 < clock.now < 60
    clock = Clock()
    with caplog.at_level(logging.INFO), pytest.raises(type(error)):
        preflight([looked(Api(a=[error]), "a")], clock.patience)
    assert 60 <= clock.now < 80
    assert sum("Still trying" in record.message for record in caplog.records) == 1


def test_a_permission_that_is_missing_is_said_after_two_answers() -> None:
    clock = Clock()
    for api in (Api(a=[DeniedError("permission is missing")]), Api([DeniedError("permission is missing")], a=[None])):
        with pytest.raises(DeniedError):
            preflight([looked(api, "a", "eu-*")], clock.patience)
    assert clock.now < 1


def test_credentials_that_fail_at_the_listing_are_waited_for_too() -> None:
    clock = Clock()
    failing: Callable[[], HeadwaterError] = lambda: CredentialsError("there are no AWS credentials")  # noqa: E731
    preflight([looked(Api([failing(), failing(), None]), "eu-*")], clock.patience)
    assert clock.now > 0
    with pytest.raises(CredentialsError):
        preflight([looked(Api([failing()]), "eu-*")], Clock().patience)
