"""AWS as the sources see it: clients, and errors in our three meanings.

Credentials, Region and endpoints come from boto3's default chain, nowhere else.
"""

from __future__ import annotations

import zlib
from typing import Any, cast

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError, NoRegionError

from pipeline.errors import FatalError, HeadwaterError, TransientError

CREDENTIALS = {
    "ExpiredToken",
    "ExpiredTokenException",
    "UnrecognizedClientException",
    "InvalidClientTokenId",
    "InvalidSignatureException",
}
THROTTLES = {
    "LimitExceededException",
    "ResourceInUseException",
    "ThrottlingException",
    "ProvisionedThroughputExceededException",
    "InternalServerError",
    "InternalFailureException",
    "KMSThrottlingException",
    "ExpiredNextTokenException",
}
USER_AGENT = f"Headwater Boto3/{boto3.__version__}"
"""Who calls, for CloudTrail. Without it botocore puts a long name together twice a call: a fifth of what a call costs."""
TABLES = "aws dynamodb list-tables; headwater check"


def client(service: str, region: str | None, threads: int, read_timeout: float = 20) -> Any:
    """Return a boto3 client that this many threads can use at once; raise FatalError where no Region is set."""
    config = Config(
        user_agent=USER_AGENT,
        max_pool_connections=threads,
        connect_timeout=5,
        read_timeout=read_timeout,
        retries={"mode": "standard", "total_max_attempts": 3},
    )
    try:
        return boto3.session.Session(region_name=region).client(cast("Any", service), config=config)
    except NoRegionError as error:
        raise explain(error, "AWS") from error


class ExpiredIteratorError(TransientError):
    """The iterator is too old: ask for a new one at the position."""


class NothingYetError(TransientError):
    """An answer that AWS sends by itself has not come yet."""


class TrimmedError(HeadwaterError):
    """The records at the position are gone: older than the stream keeps them."""


class VanishedError(HeadwaterError):
    """AWS does not know the shard or the stream any more."""


class CredentialsError(FatalError):
    """AWS does not accept the credentials; they may be refreshed."""


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
        raise TransientError(f"{what}: the answer's checksum does not fit")
    return cast("bytes", body)


def explain(error: ClientError | BotoCoreError, what: str, *, listing: str = TABLES) -> HeadwaterError:
    """Return an AWS error in our meanings: what, where, and what to type next; `listing` shows what there is."""
    if isinstance(error, NoCredentialsError):
        return CredentialsError(
            f"{what}: there are no AWS credentials", hint="aws configure; aws sts get-caller-identity"
        )
    if isinstance(error, NoRegionError):
        return FatalError(f"{what}: there is no AWS Region", hint="export AWS_DEFAULT_REGION=eu-west-1")
    if not isinstance(error, ClientError):
        return TransientError(f"{what}: AWS cannot be reached: {error}", hint="headwater check")
    code, message = error.response.get("Error", {}).get("Code", ""), error.response.get("Error", {}).get("Message", "")
    if code == "ExpiredIteratorException":
        return ExpiredIteratorError(f"{what}: the iterator has expired")
    if code == "TrimmedDataAccessException":
        return TrimmedError(f"{what}: the records at the position have been trimmed")
    if code == "ResourceNotFoundException":
        return VanishedError(f"{what} does not exist", hint=listing)
    if code in CREDENTIALS:
        return CredentialsError(
            f"{what}: AWS does not accept the credentials ({code}: {message})", hint="aws sts get-caller-identity"
        )
    if (code not in THROTTLES and code.startswith(("AccessDenied", "KMS"))) or code == "UnauthorizedOperation":
        return CredentialsError(
            f"{what}: permission is missing: {message}", hint="headwater check; see README, IAM policy"
        )
    if code in THROTTLES or error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0) >= 500:
        return TransientError(f"{what}: {code}: {message}")
    return FatalError(f"{what}: {code}: {message}", hint="headwater check")
