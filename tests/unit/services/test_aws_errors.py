from __future__ import annotations

from email.utils import formatdate
from pathlib import Path
from types import SimpleNamespace

import botocore.session
import pytest
from botocore import exceptions
from botocore.exceptions import BotoCoreError, ClientError
from botocore.parsers import ResponseParserError

from pipeline.errors import FatalError, HeadwaterError, RejectedError, TransientError
from pipeline.operate.check import _try
from pipeline.services import aws
from pipeline.services.aws import (
    ClockError,
    CredentialsError,
    DeniedError,
    ExpiredIteratorError,
    KeyStateError,
    TrimmedError,
    VanishedError,
    explained_aws,
)
from pipeline.services.aws_errors import CODES, Meaning, meaning_of
from pipeline.settings.sources import DynamoDBStreamSettings
from pipeline.sources.dynamodb.streams import DynamoDBStreams

SERVICES = ("dynamodb", "dynamodbstreams", "kinesis", "s3", "sts", "kms", "resourcegroupstaggingapi")
WHAT = "the table orders"


def modelled(service: str) -> set[str]:
    """Return the codes of a service, as its model has them."""
    shapes = botocore.session.get_session().get_service_model(service).error_shapes
    return {code for shape in shapes for code in (shape.name, shape.metadata.get("error", {}).get("code", shape.name))}


def answered(code: str, message: str = "no", status: int = 400, operation: str = "DescribeTable") -> HeadwaterError:
    response = {"Error": {"Code": code, "Message": message}, "ResponseMetadata": {"HTTPStatusCode": status}}
    return explained_aws(ClientError(response, operation), WHAT)  # type: ignore[arg-type]  # its stubs want every member


@pytest.mark.parametrize("service", SERVICES)
def test_every_error_code_of_an_api_that_is_called_has_a_meaning_and_a_hint(service: str) -> None:
    codes = modelled(service)
    assert len(codes) > 3
    for code in codes:
        assert code in CODES or code.removesuffix("Exception") in CODES, f"{code} of {service} is not in the table"
        error = answered(code)
        assert isinstance(error, TransientError | RejectedError | FatalError | TrimmedError | VanishedError)
        assert error.hint or isinstance(error, ExpiredIteratorError | TrimmedError)
        assert WHAT in error.message
        assert "\n" not in str(error)


def test_every_meaning_has_a_class() -> None:
    assert set(aws.CLASSES) == set(Meaning)


@pytest.mark.parametrize(
    "code",
    [
        *("RequestLimitExceeded", "ThrottledException", "LimitExceededException", "SlowDown", "KMSThrottlingException"),
        *("InternalFailure", "ServiceUnavailable", "KMSInternalException", "PaginationTokenExpiredException"),
        *("Throttling", "RequestThrottledException", "TooManyRequestsException"),
    ],
)
def test_a_throttle_and_a_problem_of_aws_pass(code: str) -> None:
    assert type(answered(code)) is TransientError


def test_an_unknown_code_passes_when_aws_answers_with_a_5xx_alone() -> None:
    assert type(answered("Novel", status=503)) is TransientError
    assert type(answered("Novel")) is FatalError


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("RequestExpired", "Request has expired."),
        ("RequestTimeTooSkewed", "The difference between the request time and the current time is too large."),
        ("InvalidSignatureException", "Signature expired: 20260101T000000Z is now earlier than 20260101T001000Z"),
        (
            "InvalidSignatureException",
            "Signature not yet current: 20260101T001000Z is still later than 20260101T000500Z",
        ),
        ("SignatureDoesNotMatch", "Signature expired: 20260101T000000Z is now earlier than 20260101T001000Z"),
    ],
)
def test_a_wrong_clock_is_told_from_wrong_credentials(code: str, message: str) -> None:
    error = answered(code, message, 403)
    assert isinstance(error, ClockError)
    assert "clock" in error.message
    assert "timedatectl" in error.hint


@pytest.mark.parametrize("code", ["InvalidSignatureException", "SignatureDoesNotMatch"])
def test_a_signature_that_does_not_fit_and_names_no_time_is_of_wrong_credentials(code: str) -> None:
    error = answered(code, "The request signature we calculated does not match the signature you provided.", 403)
    assert isinstance(error, CredentialsError)
    assert not isinstance(error, ClockError)


@pytest.mark.parametrize("code", ["ExpiredToken", "ExpiredTokenException"])
def test_an_expired_token_may_be_renewed(code: str) -> None:
    error = answered(code)
    assert isinstance(error, TransientError)
    assert "expired" in error.message
    assert "renew" in error.hint


@pytest.mark.parametrize(
    ("code", "hint"),
    [
        ("KMSDisabledException", "enable-key"),
        ("KMSInvalidStateException", "cancel-key-deletion"),
        ("KMSNotFoundException", "list-aliases"),
        ("KMSOptInRequired", "sign the account up"),
    ],
)
def test_a_state_of_a_kms_key_has_the_hint_that_fixes_it(code: str, hint: str) -> None:
    error = answered(code)
    assert isinstance(error, KeyStateError)
    assert hint in error.hint


def test_a_kms_key_that_may_not_be_used_is_a_matter_of_its_policy() -> None:
    error = answered("KMSAccessDeniedException")
    assert isinstance(error, DeniedError)
    assert "kms:Decrypt" in error.hint


@pytest.mark.parametrize("operation", ["AssumeRole", "GetRoleCredentials", "AssumeRoleWithWebIdentity"])
@pytest.mark.parametrize(
    "code", ["ResourceNotFoundException", "AccessDenied", "ForbiddenException", "ValidationException"]
)
def test_what_fails_on_the_way_to_credentials_says_nothing_of_the_thing_that_was_asked_for(
    operation: str, code: str
) -> None:
    assert type(answered(code, operation=operation)) is CredentialsError


PROVIDERS: list[Exception] = [
    exceptions.CredentialRetrievalError(provider="custom-process", error_msg="sso session\nexpired"),
    exceptions.NoCredentialsError(),
    exceptions.PartialCredentialsError(provider="env", cred_var="AWS_SECRET_ACCESS_KEY"),
    exceptions.TokenRetrievalError(provider="sso", error_msg="gone"),
    exceptions.SSOTokenLoadError(error_msg="no token"),
    exceptions.UnauthorizedSSOTokenError(),
    exceptions.MetadataRetrievalError(error_msg="timeout"),
    exceptions.LoginRefreshRequired(),
    exceptions.RefreshWithMFAUnsupportedError(),
    RuntimeError("Credentials were refreshed, but the refreshed credentials are still expired."),
    FileNotFoundError(2, "No such file or directory: 'credentials.sh'"),
    ValueError("Expecting value: line 1 column 1 (char 0)"),
]


@pytest.mark.parametrize("error", PROVIDERS, ids=lambda error: type(error).__name__)
def test_a_provider_of_credentials_that_fails_may_work_again(error: Exception) -> None:
    assert isinstance(error, aws.ERRORS)
    told = explained_aws(error, WHAT)
    assert isinstance(told, CredentialsError)
    assert isinstance(told, TransientError)
    assert "credentials" in told.message
    assert "\n" not in str(told)
    assert told.hint


@pytest.mark.parametrize(
    "error",
    [
        exceptions.ProfileNotFound(profile="nope"),
        exceptions.NoRegionError(),
        exceptions.ConfigParseError(path="config", error=ValueError("x")),
        exceptions.InvalidRegionError(region_name="eu west"),
        ValueError("Invalid endpoint: nowhere"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_is_set_up_wrong_does_not_pass(error: Exception) -> None:
    told = explained_aws(error, WHAT)
    assert type(told) is FatalError
    assert told.hint


@pytest.mark.parametrize(
    "error",
    [
        exceptions.EndpointConnectionError(endpoint_url="http://nowhere"),
        exceptions.ReadTimeoutError(endpoint_url="http://nowhere"),
        exceptions.SSLError(endpoint_url="http://nowhere", error=ValueError("x")),
        ResponseParserError("Unable to parse response (not well-formed), invalid XML received:\n<html>"),
        KeyError("Table"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_network_that_fails_passes(error: Exception) -> None:
    assert type(explained_aws(error, WHAT)) is TransientError


def every(of: type[BaseException]) -> list[type[BaseException]]:
    return [one for sub in of.__subclasses__() for one in (sub, *every(sub))]


def test_every_error_of_botocore_is_explained_in_one_line() -> None:
    for kind in every(BotoCoreError):
        error = kind.__new__(kind)
        Exception.__init__(error, "what\nit says")
        assert "\n" not in str(explained_aws(error, WHAT))  # type: ignore[arg-type]  # it is one


def test_check_tells_of_a_provider_that_fails_in_one_line() -> None:
    def fails() -> str:
        raise RuntimeError("the refreshed credentials are still expired")

    (finding,) = _try("AWS identity", fails)
    assert (finding.ok, "credentials" in finding.detail) == (False, True)


def test_a_client_is_not_made_without_credentials_since_it_would_never_get_any(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("boto3.session.Session.get_credentials", lambda self: None)
    with pytest.raises(CredentialsError):
        aws.client("dynamodb", "eu-west-1", 1)


def test_a_profile_that_is_not_there_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_PROFILE", "nope")
    with pytest.raises(FatalError, match="nope") as told:
        aws.client("dynamodb", "eu-west-1", 1)
    assert "list-profiles" in told.value.hint


def test_codes_are_found_with_and_without_their_suffix() -> None:
    assert meaning_of("IDPRejectedClaimException") == CODES["IDPRejectedClaim"]


def test_a_provider_that_fails_at_a_look_is_an_error_of_the_look(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    script = tmp_path / "credentials.sh"
    script.write_text("#!/bin/sh\necho 'sso session expired' >&2; exit 1\n")
    script.chmod(0o700)
    (tmp_path / "config").write_text(f"[default]\nregion = eu-west-1\ncredential_process = {script}\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    tagged = DynamoDBStreams(DynamoDBStreamSettings(kind="dynamodb-stream", tags={"cdc": "on"}))
    named = DynamoDBStreams(DynamoDBStreamSettings(kind="dynamodb-stream", tables=("orders",)))
    for look in (lambda: tagged.tables(set()), lambda: named.stream_of("orders"), lambda: named.shards_of("arn")):
        with pytest.raises(CredentialsError, match="sso session expired"):
            look()


@pytest.mark.parametrize("off", [-90_000.0, 90_000.0])
def test_a_clock_that_is_a_day_off_is_corrected_by_what_aws_says(off: float) -> None:
    clock = aws.AwsClock(lambda: 1_796_000_000.0 + off)
    clock.take(SimpleNamespace(headers={"Date": formatdate(1_796_000_000, usegmt=True)}))
    assert clock.now() == 1_796_000_000.0


def test_answers_without_a_time_and_small_differences_change_no_clock() -> None:
    clock = aws.AwsClock(lambda: 1_796_000_002.5)
    answers: list[dict[str, str]] = [{}, {"Date": "nonsense"}, {"Date": formatdate(1_796_000_000, usegmt=True)}]
    for headers in answers:
        clock.take(SimpleNamespace(headers=headers))
    clock.take()
    assert clock.now() == 1_796_000_002.5
