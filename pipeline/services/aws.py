"""AWS as the sources see it: clients, and errors in our three meanings.

Credentials, Region and endpoints come from boto3's default chain, nowhere else.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable
from contextlib import suppress
from email.utils import parsedate_to_datetime
from typing import Any, cast

import boto3
from botocore.config import Config
from botocore.exceptions import (
    BaseEndpointResolverError,
    BotoCoreError,
    ClientError,
    ConfigNotFound,
    ConfigParseError,
    CredentialRetrievalError,
    EndpointProviderError,
    InvalidConfigError,
    InvalidEndpointConfigurationError,
    InvalidIMDSEndpointError,
    InvalidProxiesConfigError,
    InvalidRetryConfigurationError,
    LoginError,
    MetadataRetrievalError,
    MissingDependencyException,
    NoAuthTokenError,
    NoCredentialsError,
    NoRegionError,
    ParamValidationError,
    PartialCredentialsError,
    ProfileNotFound,
    RefreshWithMFAUnsupportedError,
    SSOError,
    TokenRetrievalError,
    UnknownCredentialError,
    UnknownRegionError,
    UnknownServiceError,
    UnknownTokenProviderError,
    ValidationError,
)
from botocore.parsers import ResponseParserError

from pipeline.errors import FatalError, HeadwaterError, RejectedError, TransientError
from pipeline.services.aws_errors import CHECK, CLOCK, IDENTITY, PROVIDING, SKEW, Meaning, meaning_of

ERRORS = (ClientError, BotoCoreError, ResponseParserError, RuntimeError, OSError, ValueError, KeyError)
"""What a call of AWS raises. Beside its own errors: what a provider of credentials raises that is asked on the way, and
what an answer that is none of AWS brings about."""
CREDENTIALS = (
    CredentialRetrievalError,
    LoginError,
    MetadataRetrievalError,
    NoAuthTokenError,
    NoCredentialsError,
    PartialCredentialsError,
    RefreshWithMFAUnsupportedError,
    SSOError,
    TokenRetrievalError,
    UnknownCredentialError,
    UnknownTokenProviderError,
)
"""A provider of credentials fails, or there is none: it may work again, as it did before."""
CONFIGURATION = (
    BaseEndpointResolverError,
    ConfigNotFound,
    ConfigParseError,
    EndpointProviderError,
    InvalidConfigError,
    InvalidEndpointConfigurationError,
    InvalidIMDSEndpointError,
    InvalidProxiesConfigError,
    InvalidRetryConfigurationError,
    MissingDependencyException,
    UnknownRegionError,
    UnknownServiceError,
    ValidationError,
)
"""Settings of boto3 that do not become good by themselves."""
USER_AGENT = f"Headwater Boto3/{boto3.__version__}"
"""Who calls, for CloudTrail. Without it botocore puts a long name together twice a call: a fifth of what a call costs."""
TABLES = "aws dynamodb list-tables; headwater check"


def client(service: str, region: str | None, threads: int, read_timeout: float = 20) -> Any:
    """Return a boto3 client that this many threads can use at once.

    Raises HeadwaterError: CredentialsError while there are no credentials (a client that was made without them never gets
    any), FatalError where no Region is set or the profile is not there. So make it when it is needed, not before.
    """
    config = Config(
        user_agent=USER_AGENT,
        max_pool_connections=threads,
        connect_timeout=5,
        read_timeout=read_timeout,
        retries={"mode": "standard", "total_max_attempts": 3},
    )
    try:
        session = boto3.session.Session(region_name=region)
        made = session.client(cast("Any", service), config=config)
        made.meta.events.register("after-call", _clock.take)
        if session.get_credentials() is None:
            raise NoCredentialsError
    except ERRORS as error:
        raise explained_aws(error, f"AWS ({service})") from error
    return made


class AwsClock:
    """The time as AWS has it: what is compared with the times of changes must not go by a machine's clock that is off."""

    def __init__(self, here: Callable[[], float] = time.time) -> None:
        self._here = here
        self._ahead = 0.0

    def take(self, http_response: Any = None, **_: Any) -> None:
        """Take note of the time in an answer of AWS; it has whole seconds, and was under way for some."""
        said = str(getattr(http_response, "headers", {}).get("Date"))
        with suppress(TypeError, ValueError):
            ahead = parsedate_to_datetime(said).timestamp() - self._here()
            self._ahead = ahead if abs(ahead) > TOLERANCE_S else 0.0

    def now(self) -> float:
        """Return the time, in seconds since the epoch: that of this machine while no answer says another."""
        return self._here() + self._ahead


TOLERANCE_S = 5.0
"""Seconds that a machine's clock may be off before AWS's is taken."""
_clock = AwsClock()
now = _clock.now


class ExpiredIteratorError(TransientError):
    """The iterator is too old: ask for a new one at the position."""


class NothingYetError(TransientError):
    """An answer that AWS sends by itself has not come yet."""


class TrimmedError(HeadwaterError):
    """The records at the position are gone: older than the stream keeps them."""


class VanishedError(HeadwaterError):
    """AWS does not know the shard or the stream any more."""


class CredentialsError(TransientError):
    """There are no credentials, or AWS does not accept them; they may be renewed."""


class ClockError(CredentialsError):
    """AWS does not accept the credentials because the clock of this machine is wrong."""


class DeniedError(FatalError):
    """The credentials may not do this."""


class KeyStateError(FatalError):
    """A key of AWS KMS cannot be used."""


def take_body(response_dict: dict[str, Any], customized_response_dict: dict[str, Any], **_: Any) -> None:
    """Take an answer's body before botocore parses it: a handler of its event `before-parse`. Errors stay as they are."""
    if response_dict["status_code"] < 300:
        customized_response_dict["Body"] = response_dict["body"]
        customized_response_dict["Checksum"] = response_dict["headers"].get("x-amz-crc32")
        response_dict["body"] = b"{}"


def taken_body(answer: Any, what: str) -> bytes:
    """Return the body that `take_body` took; raise TransientError when its checksum does not fit."""
    body, checksum = answer["Body"], answer["Checksum"]
    if checksum is not None and zlib.crc32(body) != int(checksum):
        raise TransientError(f"{what}: the answer's checksum does not match")
    return cast("bytes", body)


def explained_aws(error: Exception, what: str, *, listing: str = TABLES) -> HeadwaterError:
    """Return one of `ERRORS` in our meanings: what, where, and what to type next; `listing` shows what there is."""
    if isinstance(error, ClientError):
        return _explain_answer(error, what, listing)
    if isinstance(error, ResponseParserError | KeyError):
        return TransientError(
            f"{what}: this answer is not from AWS: {_line(error)}", hint="env | grep AWS_ENDPOINT_URL"
        )
    if isinstance(error, NoCredentialsError):
        return CredentialsError(f"{what}: there are no AWS credentials", hint=f"aws configure; {IDENTITY}")
    if isinstance(error, NoRegionError):
        return FatalError(f"{what}: there is no AWS Region", hint="export AWS_DEFAULT_REGION=eu-west-1")
    if isinstance(error, ProfileNotFound):
        return FatalError(f"{what}: {_line(error)}", hint="aws configure list-profiles; echo $AWS_PROFILE")
    if isinstance(error, CREDENTIALS):
        hint = "aws sso login" if isinstance(error, SSOError | TokenRetrievalError) else "aws configure list"
        return CredentialsError(f"{what}: there are no AWS credentials: {_line(error)}", hint=f"{hint}; {IDENTITY}")
    if isinstance(error, ParamValidationError):
        return RejectedError(f"{what}: {_line(error)}", hint=CHECK)
    if isinstance(error, CONFIGURATION) or (isinstance(error, ValueError) and "endpoint" in str(error)):
        return FatalError(
            f"{what}: boto3 is set up wrong: {_line(error)}", hint="aws configure list; env | grep AWS_ENDPOINT_URL"
        )
    if isinstance(error, BotoCoreError):
        return TransientError(f"{what}: AWS cannot be reached: {_line(error)}", hint=CHECK)
    # What is left comes of a provider: a program that is not there, no JSON, credentials that were renewed and are too old.
    return CredentialsError(
        f"{what}: there are no AWS credentials: {_line(error)}", hint=f"aws configure list; {IDENTITY}"
    )


def _explain_answer(error: ClientError, what: str, listing: str) -> HeadwaterError:
    code, message = error.response.get("Error", {}).get("Code", ""), error.response.get("Error", {}).get("Message", "")
    said = f"{code}: {' '.join(message.split())}"
    if error.operation_name in PROVIDING:  # on the way to credentials: it says nothing of what was asked for
        if SKEW.search(message) and "ignature" in code:
            return ClockError(f"{what}: there are no AWS credentials: {said}", hint=CLOCK)
        return CredentialsError(
            f"{what}: there are no AWS credentials: {error.operation_name} answers {said}",
            hint=f"aws configure list; {IDENTITY}",
        )
    meaning, hint, words = meaning_of(
        code, message, error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    )
    text = f"{what}: {words} ({said})" if words else f"{what}: {said}"
    if code == "ExpiredIteratorException":
        return ExpiredIteratorError(f"{what}: the iterator has expired")
    if meaning is Meaning.TRIMMED:
        return TrimmedError(f"{what}: the records at the position have been trimmed")
    if meaning is Meaning.GONE:
        return VanishedError(f"{what} does not exist", hint=listing)
    return CLASSES[meaning](text, hint=hint)


CLASSES: dict[Meaning, type[HeadwaterError]] = {
    Meaning.THROTTLED: TransientError,
    Meaning.PASSING: TransientError,
    Meaning.STALE: TransientError,
    Meaning.TRIMMED: TrimmedError,
    Meaning.GONE: VanishedError,
    Meaning.CREDENTIALS: CredentialsError,
    Meaning.CLOCK: ClockError,
    Meaning.PERMISSION: DeniedError,
    Meaning.KEY: KeyStateError,
    Meaning.REJECTED: RejectedError,
    Meaning.FATAL: FatalError,
}
"""Each is, or is one of, the three of `pipeline.errors`; `shard_reader` reports what is trimmed or gone."""


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
