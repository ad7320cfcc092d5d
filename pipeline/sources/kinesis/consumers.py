"""Consumers of enhanced fan-out: AWS serves those that are registered with a stream, by name or ARN."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from botocore.exceptions import ClientError

from pipeline.errors import FatalError, HeadwaterError, TransientError
from pipeline.services.aws import ERRORS, VanishedError, explained_aws

if TYPE_CHECKING:
    from mypy_boto3_kinesis import KinesisClient

log = logging.getLogger(__name__)
ACTIVE_SECONDS = 60.0
"""Seconds in which a consumer must become ACTIVE; AWS takes some seconds."""
LOOK_SECONDS = 1.0
"""Seconds between two looks at a consumer that is not ACTIVE yet."""


class Consumers:
    """Finds the consumer of the settings, and registers it where it is missing. Blocks; thread-safe."""

    def __init__(self, streams: KinesisClient, consumer: str, *, sleep: Callable[[float], None] = time.sleep) -> None:
        self._streams, self._consumer, self._sleep = streams, consumer, sleep

    def find(self, stream_arn: str) -> tuple[str, str] | None:
        """Return the consumer's ARN and status (ACTIVE, CREATING, DELETING), None where there is none."""
        wanted: Any = {"ConsumerARN": self._consumer}
        if not self._is_arn:
            wanted = {"StreamARN": stream_arn, "ConsumerName": self._consumer}
        try:
            found = self._streams.describe_stream_consumer(**wanted)["ConsumerDescription"]
        except ERRORS as error:
            explained = self._explain(error, stream_arn)
            if isinstance(explained, VanishedError):
                return None
            raise explained from error
        return found["ConsumerARN"], found["ConsumerStatus"]

    def active(self, stream_arn: str) -> str:
        """Return the ARN of the consumer, registered where it is missing, once it is ACTIVE.

        Raises TransientError when it does not become so within a minute, FatalError when it cannot be registered.
        """
        deadline, absent = time.monotonic() + ACTIVE_SECONDS, 0
        while True:
            arn, status = self.find(stream_arn) or ("", "")
            if status == "ACTIVE":
                return arn
            absent = 0 if arn else absent + 1
            # One answer proves nothing; to register a consumer that is there changes nothing.
            if absent and (absent > 1 or not self._is_arn):
                self._register(stream_arn)
            if time.monotonic() > deadline:
                raise TransientError(
                    f"the consumer {self._consumer} of {stream_arn} is {status or 'missing'} after {ACTIVE_SECONDS:.0f} s",
                    hint=self._hint(stream_arn),
                )
            self._sleep(LOOK_SECONDS)

    def _register(self, stream_arn: str) -> None:
        if self._is_arn:
            raise FatalError(f"there is no consumer {self._consumer}", hint=self._hint(stream_arn))
        try:
            self._streams.register_stream_consumer(StreamARN=stream_arn, ConsumerName=self._consumer)
        except ERRORS as error:
            if isinstance(error, ClientError) and error.response["Error"]["Code"] == "ResourceInUseException":
                return  # another worker has just done it
            raise self._explain(error, stream_arn) from error
        log.warning(
            "The consumer %s was registered with %s: AWS bills its shards by the hour", self._consumer, stream_arn
        )

    @property
    def _is_arn(self) -> bool:
        return self._consumer.startswith("arn:")

    def _explain(self, error: Exception, stream_arn: str) -> HeadwaterError:
        return explained_aws(error, f"the consumer {self._consumer} of {stream_arn}", listing=self._hint(stream_arn))

    def _hint(self, stream_arn: str) -> str:
        return f"aws kinesis list-stream-consumers --stream-arn {stream_arn}"
