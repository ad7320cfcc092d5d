"""What the error codes of AWS mean. The one table of them: whoever explains an error of AWS asks here. Pure.

A test walks the service models of all APIs that are called: each of their codes is in the table. An unknown code is
transient when AWS answers with a 5xx, else fatal.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from enum import Enum
from typing import NamedTuple


class Meaning(Enum):
    """What an error says, and so what is done."""

    THROTTLED = "throttled"
    """Try again, slower."""
    PASSING = "passing"
    """AWS has a problem of its own, or something else is under way: try again."""
    STALE = "stale"
    """An iterator, or the token of a page, is too old: ask for a new one."""
    TRIMMED = "trimmed"
    """The records at the position are gone."""
    GONE = "gone"
    """AWS says that the thing does not exist. One answer proves nothing."""
    CREDENTIALS = "credentials"
    """AWS does not accept the credentials. They may be renewed: try again."""
    CLOCK = "clock"
    """The clock of this machine is wrong. It may be set right: try again."""
    PERMISSION = "permission"
    """The credentials are good, what they may do is not enough."""
    KEY = "key"
    """A key of AWS KMS is not in a usable state."""
    REJECTED = "rejected"
    """AWS never takes this request, because of what is in it: another one is taken."""
    FATAL = "fatal"
    """The call is wrong, or what it is about is set up wrong."""


class Code(NamedTuple):
    """What a code means."""

    meaning: Meaning
    hint: str
    """What to type next."""
    words: str = ""
    """What is wrong, where the message of AWS does not say it clearly."""


IDENTITY = "aws sts get-caller-identity"
CHECK = "headwater check"
POLICY = "headwater check; see README, IAM policy"
CLOCK = "timedatectl status; chronyc tracking"
KEYS = "aws kms describe-key --key-id KEY"
QUOTAS = "aws service-quotas list-service-quotas --service-code"
BUCKETS = "aws s3 ls"


def _all(meaning: Meaning, hint: str, codes: str, words: str = "") -> Iterator[tuple[str, Code]]:
    for code in codes.split():
        yield code, Code(meaning, hint, words)


CODES: dict[str, Code] = dict(
    [
        # -- throttles: one is routine, so the hint is for those that last
        *_all(
            Meaning.THROTTLED,
            f"if it continues: {QUOTAS} dynamodb (or kinesis)",
            "LimitExceededException ThrottlingException ThrottledException Throttling ThrottlingError RequestThrottled "
            "RequestThrottledException TooManyRequestsException BandwidthLimitExceeded PriorRequestNotComplete "
            "TransactionThrottledException EC2ThrottledException",
        ),
        *_all(
            Meaning.THROTTLED,
            "if it continues: raise the capacity of the table or the shards of the stream",
            "ProvisionedThroughputExceededException ProvisionedThroughputExceeded",
        ),
        *_all(
            Meaning.THROTTLED,
            f"{QUOTAS} dynamodb",
            "RequestLimitExceeded",
            "the throughput quota of the account is used up",
        ),
        *_all(Meaning.THROTTLED, f"if it continues: {QUOTAS} kms", "KMSThrottlingException"),
        *_all(Meaning.THROTTLED, "if it continues: spread the keys over more prefixes", "SlowDown"),
        # -- what passes by itself
        *_all(
            Meaning.PASSING,
            "if it continues: https://health.aws.amazon.com/health/status",
            "InternalServerError InternalServerErrorException InternalFailure InternalFailureException InternalError "
            "InternalServiceException KMSInternalException ServiceUnavailable ServiceUnavailableException "
            "ServiceUnavailableError RequestTimeout RequestTimeoutException DependencyTimeoutException "
            "KeyUnavailableException IDPCommunicationError HTTPError 500 502 503 504",
        ),
        *_all(
            Meaning.PASSING,
            "if it continues: who else works on it?",
            "ResourceInUseException TransactionConflictException TransactionConflict TransactionInProgressException "
            "ReplicatedWriteConflictException ConflictException ConcurrentModificationException OperationAborted "
            "TableInUseException BackupInUseException ExportConflictException ImportConflictException "
            "ConditionalRequestConflict",
        ),
        *_all(
            Meaning.STALE,
            CHECK,
            "ExpiredIteratorException ExpiredNextTokenException PaginationTokenExpiredException InvalidMarkerException",
        ),
        # -- what is no more
        *_all(Meaning.TRIMMED, "headwater gaps", "TrimmedDataAccessException"),
        *_all(
            Meaning.GONE,
            CHECK,
            "ResourceNotFoundException TableNotFoundException IndexNotFoundException ExportNotFoundException "
            "ImportNotFoundException BackupNotFoundException GlobalTableNotFoundException ReplicaNotFoundException "
            "PolicyNotFoundException",
        ),
        *_all(Meaning.FATAL, BUCKETS, "NoSuchBucket", "there is no such bucket"),
        *_all(Meaning.FATAL, BUCKETS, "NoSuchKey NoSuchUpload NoSuchAnnotation NoSuchVersion"),
        # -- who calls
        *_all(
            Meaning.CREDENTIALS,
            f"renew the credentials (aws sso login, or a new session token), then: {IDENTITY}",
            "ExpiredToken ExpiredTokenException TokenRefreshRequired ExpiredTradeInTokenException",
            "AWS does not accept the credentials: they have expired",
        ),
        *_all(
            Meaning.CREDENTIALS,
            IDENTITY,
            "UnrecognizedClientException InvalidClientTokenId InvalidAccessKeyId InvalidToken InvalidSecurity "
            "SignatureDoesNotMatch InvalidSignatureException IncompleteSignature IncompleteSignatureException "
            "MissingAuthenticationToken MissingAuthenticationTokenException MissingSecurityHeader AuthFailure "
            "NotAuthorizedException UnauthorizedException InvalidIdentityToken IDPRejectedClaim "
            "InvalidAuthorizationMessageException InvalidGrantTokenException InvalidGrantIdException "
            "SessionDurationEscalationException JWTPayloadSizeExceededException PackedPolicyTooLarge "
            "OutboundWebIdentityFederationDisabledException",
            "AWS does not accept the credentials",
        ),
        *_all(
            Meaning.CLOCK,
            CLOCK,
            "RequestExpired RequestTimeTooSkewed RequestInTheFuture",
            "the clock of this machine is wrong, so AWS refuses the signature",
        ),
        *_all(
            Meaning.PERMISSION,
            POLICY,
            "AccessDenied AccessDeniedException UnauthorizedOperation NotAuthorized AuthorizationError AllAccessDisabled "
            "ForbiddenException Forbidden 403",
            "permission is missing",
        ),
        *_all(
            Meaning.PERMISSION,
            "aws account list-regions",
            "RegionDisabledException OptInRequired NotSignedUp AccountProblem SubscriptionRequiredException",
            "the account may not use this service, or not in this Region",
        ),
        # -- keys of AWS KMS
        *_all(
            Meaning.PERMISSION,
            "allow kms:Decrypt and kms:GenerateDataKey in the key's policy: aws kms get-key-policy --key-id KEY",
            "KMSAccessDeniedException",
            "permission for the KMS key is missing",
        ),
        *_all(
            Meaning.KEY,
            "aws kms enable-key --key-id KEY",
            "KMSDisabledException DisabledException",
            "the KMS key is disabled",
        ),
        *_all(
            Meaning.KEY,
            f"{KEYS}; when it is to be deleted: aws kms cancel-key-deletion --key-id KEY",
            "KMSInvalidStateException",
            "the KMS key is not in a usable state",
        ),
        *_all(
            Meaning.KEY,
            f"{KEYS}; aws kms list-aliases",
            "KMSNotFoundException NotFoundException InvalidArnException InvalidAliasNameException",
            "the KMS key is not found",
        ),
        *_all(
            Meaning.KEY,
            "sign the account up for AWS KMS, then: aws kms list-keys",
            "KMSOptInRequired",
            "the account is not signed up for AWS KMS",
        ),
        *_all(
            Meaning.KEY,
            f"is it the key that has encrypted the data? {KEYS}",
            "IncorrectKeyException InvalidCiphertextException InvalidKeyUsageException KMSInvalidMacException "
            "KMSInvalidSignatureException",
            "this KMS key does not fit",
        ),
        *_all(
            Meaning.KEY,
            f"aws kms describe-custom-key-stores; {KEYS}",
            "CloudHsmClusterInUseException CloudHsmClusterInvalidConfigurationException "
            "CloudHsmClusterNotActiveException CloudHsmClusterNotFoundException CloudHsmClusterNotRelatedException "
            "CustomKeyStoreHasCMKsException CustomKeyStoreInvalidStateException CustomKeyStoreNameInUseException "
            "CustomKeyStoreNotFoundException IncorrectTrustAnchorException XksKeyAlreadyInUseException "
            "XksKeyInvalidConfigurationException XksKeyNotFoundException "
            "XksProxyIncorrectAuthenticationCredentialException XksProxyInvalidConfigurationException "
            "XksProxyInvalidResponseException XksProxyUriEndpointInUseException XksProxyUriInUseException "
            "XksProxyUriUnreachableException XksProxyVpcEndpointServiceInUseException "
            "XksProxyVpcEndpointServiceInvalidConfigurationException XksProxyVpcEndpointServiceNotFoundException",
            "the key store of the KMS key does not work",
        ),
        # -- what is in the request
        *_all(
            Meaning.REJECTED,
            "headwater dlq show",
            "ConditionalCheckFailedException ConditionalCheckFailed DuplicateItemException TransactionCanceledException "
            "ItemCollectionSizeLimitExceededException ItemCollectionSizeLimitExceeded EntityTooLarge",
        ),
        # -- what is set up wrong
        *_all(
            Meaning.FATAL,
            CHECK,
            "ValidationException ValidationError InvalidArgumentException InvalidArgument InvalidParameterException "
            "InvalidParameterValue InvalidParameterCombination MissingParameter MissingAction InvalidAction "
            "InvalidQueryParameter MalformedQueryString MalformedHttpRequestException UnknownOperationException "
            "UnsupportedOperationException SerializationException RequestEntityTooLarge RequestEntityTooLargeException "
            "ConstraintViolationException IdempotentParameterMismatchException IdempotencyParameterMismatch "
            "DryRunOperationException MalformedPolicyDocument MalformedPolicyDocumentException TagException "
            "InvalidRestoreTimeException TableAlreadyExistsException GlobalTableAlreadyExistsException "
            "ReplicaAlreadyExistsException AlreadyExistsException ExpiredImportTokenException "
            "InvalidImportTokenException IncorrectKeyMaterialException",
        ),
        *_all(
            Meaning.FATAL,
            "aws dynamodb update-continuous-backups --table-name TABLE "
            "--point-in-time-recovery-specification PointInTimeRecoveryEnabled=true",
            "PointInTimeRecoveryUnavailableException ContinuousBackupsUnavailableException InvalidExportTimeException",
            "point-in-time recovery is off, or does not reach so far back",
        ),
        *_all(
            Meaning.FATAL,
            f"{BUCKETS}; is it a bucket of this account and Region?",
            "BucketAlreadyExists BucketAlreadyOwnedByYou EncryptionTypeMismatch InvalidObjectState InvalidPrefix "
            "InvalidRequest InvalidWriteOffset TooManyParts UnsupportedMediaType ObjectAlreadyInActiveTierError "
            "ObjectNotInActiveTierError AnnotationLimitExceeded AnnotationNameTooLong InvalidAnnotationName "
            "InvalidBucketName PermanentRedirect AuthorizationHeaderMalformed IllegalLocationConstraintException "
            "PreconditionFailed",
        ),
    ]
)
"""By code, as AWS sends it."""

SKEW = re.compile(r"signature (?:has )?expired|signature not yet current|too skewed|request time|clock", re.IGNORECASE)
"""What the message of a refused signature has when the reason is the clock, and not the secret."""
SIGNATURES = {"SignatureDoesNotMatch", "InvalidSignatureException", "AuthFailure"}
PROVIDING = {
    "AssumeRole",
    "AssumeRoleWithSAML",
    "AssumeRoleWithWebIdentity",
    "CreateOAuth2Token",
    "CreateToken",
    "GetCredentialsForIdentity",
    "GetId",
    "GetRoleCredentials",
    "GetSessionToken",
}
"""Calls that botocore makes of itself to get credentials: what fails there says nothing of the thing that was asked for."""


def meaning_of(code: str, message: str = "", status: int = 0) -> Code:
    """Return what an error of AWS means, by its code, message and HTTP status."""
    if code in SIGNATURES and SKEW.search(message):
        return CODES["RequestTimeTooSkewed"]
    known = CODES.get(code) or CODES.get(code.removesuffix("Exception"))
    if known is not None:
        return known
    return CODES["InternalServerError"] if status >= 500 else Code(Meaning.FATAL, CHECK)
