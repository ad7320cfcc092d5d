"""The client of a replica's tables, with a role to assume, and what is looked at before a worker begins."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import boto3
import botocore.session
from botocore.config import Config
from botocore.credentials import (
    AssumeRoleCredentialFetcher,
    CredentialProvider,
    CredentialResolver,
    DeferredRefreshableCredentials,
)
from botocore.exceptions import NoCredentialsError

from pipeline.errors import FatalError, TransientError
from pipeline.services import aws
from pipeline.settings.root import Settings
from pipeline.settings.sinks import ReplicaSettings
from pipeline.settings.sources import DynamoDBStreamSettings
from pipeline.sinks.replica.changes import target
from pipeline.sources.dynamodb.streams import captures_table, is_pattern
from pipeline.topics.names import Topics

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient

log = logging.getLogger(__name__)
VERSION_KEY = "item"
"""The partition key of a table of versions, text."""
EXPIRES = "expires"
"""Its attribute for Time To Live."""
Shape = tuple[tuple[str, str, str], ...]
"""The key attributes of a table: name, HASH or RANGE, type."""


class _Role(CredentialProvider):
    """Credentials of a role, taken with those of boto3's default chain and renewed before they expire."""

    METHOD = "headwater-role"

    def __init__(self, role_arn: str, region: str | None) -> None:
        super().__init__()
        self._role_arn, self._region = role_arn, region

    def load(self) -> Any:
        """Return credentials that are asked for when the first call needs them."""
        chain = botocore.session.get_session()
        chain.set_config_variable("region", self._region)
        own = chain.get_credentials()
        if own is None:
            raise NoCredentialsError
        fetcher = AssumeRoleCredentialFetcher(
            chain.create_client, own, self._role_arn, extra_args={"RoleSessionName": "headwater-replica"}
        )
        return DeferredRefreshableCredentials(fetcher.fetch_credentials, self.METHOD)


def connect(settings: ReplicaSettings, threads: int) -> DynamoDBClient:
    """Return a client of the replica's tables that this many threads can use at once."""
    session = botocore.session.get_session()
    if settings.role_arn is not None:
        roles = CredentialResolver([_Role(settings.role_arn, settings.region)])
        session.register_component("credential_provider", roles)
    config = Config(
        user_agent=aws.USER_AGENT,
        max_pool_connections=threads,
        connect_timeout=5,
        read_timeout=10,
        retries={"mode": "standard", "total_max_attempts": 3},
    )
    try:
        made = boto3.session.Session(region_name=settings.region, botocore_session=session)
        return made.client("dynamodb", endpoint_url=settings.endpoint_url, config=config)
    except aws.ERRORS as error:
        known = aws.explained_aws(error, f"the replica {settings.name}")
        if isinstance(known, aws.CredentialsError):
            raise known from error
        raise FatalError(
            known.message, hint="set region and endpoint_url of [[replicas]]; aws sts get-caller-identity"
        ) from error


Naming = Callable[[DynamoDBStreamSettings], Iterable[str]]


def named(source: DynamoDBStreamSettings) -> list[str]:
    """Return the tables that a source names itself: those that patterns or tags find are not among them."""
    return [table for table in source.tables if not is_pattern(table)]


def sources(
    settings: Settings, replica: ReplicaSettings, naming: Naming = named
) -> Mapping[str, DynamoDBStreamSettings | None]:
    """Return the tables that are replicated, each with its source; `naming` says which tables a source has."""
    found: dict[str, DynamoDBStreamSettings | None] = {}
    reading = [one for one in settings.sources if isinstance(one, DynamoDBStreamSettings)]
    for flow in settings.flows:
        if set(Topics(settings, [flow]).sinks) & set(replica.sinks):
            for table in flow.tables or [name for source in reading for name in naming(source)]:
                found[table] = next((source for source in reading if captures_table(source, table)), None)
    return found


def replica_preflight(settings: Settings, replica: ReplicaSettings, client: DynamoDBClient) -> None:
    """Look at the tables; raise FatalError when one is not there or has another key.

    What it cannot tell it leaves: tables found by patterns, and sources that do not answer. A replica must begin also when its
    source is gone.
    """
    tables = sources(settings, replica)
    for table, source in tables.items():
        there = target(replica.table, table)
        shape = _shape(client, there, _missing(replica, there))
        if replica.version == "attribute" and replica.version_attribute in {name for name, _, _ in shape}:
            raise FatalError(
                f"the replica {replica.name}: {replica.version_attribute} is an attribute of the key of the table {there}",
                hint="set version_attribute of [[replicas]] to another name",
            )
        if source is not None and (own := _shape_of_source(table, source)) not in {None, shape}:
            raise FatalError(
                f"the replica {replica.name}: the table {there} has the key {_words(shape)}, its source table {table} "
                f"has {_words(own or ())}",
                hint=f"aws dynamodb describe-table --table-name {there}",
            )
    if replica.version == "attribute" and not replica.tombstone_seconds:
        return
    for name in {target(replica.version_table, table) for table in tables}:
        shape = _shape(client, name, _missing(replica, name) + f"; {_how_to_make(name)}")
        if shape != ((VERSION_KEY, "HASH", "S"),):
            raise FatalError(
                f"the replica {replica.name}: the table of versions {name} has the key {_words(shape)}, it needs "
                f"{VERSION_KEY} (HASH, S) alone",
                hint=_how_to_make(name),
            )


def _how_to_make(name: str) -> str:
    return (
        f"aws dynamodb create-table --table-name {name} --billing-mode PAY_PER_REQUEST "
        f"--attribute-definitions AttributeName={VERSION_KEY},AttributeType=S "
        f"--key-schema AttributeName={VERSION_KEY},KeyType=HASH"
    )


def _missing(replica: ReplicaSettings, table: str) -> str:
    return "aws dynamodb list-tables" + (f" --region {replica.region}" if replica.region else "")


def _shape(client: DynamoDBClient, table: str, hint: str) -> Shape:
    try:
        found = client.describe_table(TableName=table)["Table"]
    except aws.ERRORS as error:
        known = aws.explained_aws(error, f"the table {table} of the replica", listing=hint)
        if isinstance(known, TransientError):
            raise known from error
        raise FatalError(known.message, hint=known.hint) from error
    types = {one["AttributeName"]: one["AttributeType"] for one in found["AttributeDefinitions"]}
    return tuple((key["AttributeName"], key["KeyType"], types[key["AttributeName"]]) for key in found["KeySchema"])


def _shape_of_source(table: str, source: DynamoDBStreamSettings) -> Shape | None:
    try:
        return _shape(aws.client("dynamodb", source.region, 1), table, "")
    except (FatalError, TransientError) as error:
        log.warning("The key of the table %s cannot be compared with its replica's: %s", table, error.message)
        return None


def _words(shape: Iterable[tuple[str, str, str]]) -> str:
    return ", ".join(f"{name} ({kind}, {of_type})" for name, kind, of_type in shape)
