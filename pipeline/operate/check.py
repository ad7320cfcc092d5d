"""`headwater check`: look at everything a worker needs, change nothing, say what to type next."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any
from urllib.parse import urlsplit

import boto3
from botocore.config import Config
from botocore.exceptions import ClientError
from confluent_kafka import KafkaError, KafkaException

from pipeline.errors import HeadwaterError
from pipeline.flows.check import examine
from pipeline.flows.compile import FlowError
from pipeline.packages import missing, own_packages
from pipeline.runtime.entry_points import known_agents, wanted_agents
from pipeline.services.aws import ERRORS, TABLES, client, explained_aws
from pipeline.settings.enrich import TOPIC
from pipeline.settings.flows import FlowSettings
from pipeline.settings.root import Settings, config_file
from pipeline.settings.sinks import LakeSettings, MirrorSettings, ReplicaSettings
from pipeline.settings.sources import DynamoDBStreamSettings, KinesisSettings
from pipeline.sinks.mirror.other_cluster import OtherCluster
from pipeline.sinks.mirror.sink import copied
from pipeline.sinks.replica.client import connect, replica_preflight
from pipeline.sources.base import ShardStart, StreamApi
from pipeline.sources.kinds import onlooker, snapshotter
from pipeline.sources.kinesis.consumers import Consumers
from pipeline.sources.kinesis.records import plain_json
from pipeline.sources.shard_positions import ShardOf
from pipeline.sources.snapshots.snapshotter import Snapshotter
from pipeline.topics.admin import LIMITED, TopicRefusedError, TopicState, admin, look, lowered, refusals, sized
from pipeline.topics.names import MAX_BYTES, Topic, Topics

LEAST_DISK = 1 << 30

FLOW_ORDER = ("ingest", "deduplicate", "transform")
"""The agents in the order in which a change meets them; destinations come after these."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at."""

    what: str
    ok: bool
    detail: str
    hint: str = ""
    is_warning: bool = False
    """It works as it is, and not in every case."""

    def json(self) -> dict[str, Any]:
        """Return it as plain data."""
        return asdict(self)


def check(settings: Settings) -> Iterator[Finding]:
    """Look at one thing after the other; a failure never stops the rest."""
    file = config_file(os.environ)
    where = f"{file}: " if file.is_file() else f"there is no {file} here, so these are defaults and the environment: "
    yield Finding("settings", True, f"{where}every key is known, every value fits")
    yield from _try("agents", lambda: _agents(settings))
    yield from _packages()
    for flow in settings.flows:
        warnings: list[str] = []
        what = f"flow {flow.name}"
        yield from _try(what, lambda flow=flow, warnings=warnings: _flow(settings, flow, warnings))  # type: ignore[misc]
        yield from (
            Finding(what, True, warning, "docs/how-to/write-a-flow.md", is_warning=True) for warning in warnings
        )
    yield from _try("state directory", lambda: _state(settings))
    yield from _kafka(settings)
    if settings.sources or (settings.lake.url or "").startswith("s3://"):
        yield from _try("AWS identity", _identity)
    for source in settings.sources:
        yield from _source(source)
    for lake in (settings.lake, *settings.lakes):
        if lake.url:
            yield from _try(f"lake {lake.url}", lambda lake=lake: _lake(lake))  # type: ignore[misc]
    for replica in settings.replicas:
        yield from _try(f"replica {replica.name}", lambda replica=replica: _replica(settings, replica))  # type: ignore[misc]
    for mirror in settings.mirrors:
        yield from _try(f"mirror {mirror.name}", lambda mirror=mirror: _mirror(settings, mirror))  # type: ignore[misc]


def _try(what: str, look_at: Callable[[], str]) -> Iterator[Finding]:
    try:
        yield Finding(what, True, look_at())
    except HeadwaterError as error:
        yield Finding(what, False, error.message.removeprefix(f"{what}: "), error.hint)
    except ModuleNotFoundError as error:
        if (lacks := missing.explained(error)) is None:
            raise
        yield Finding(what, False, lacks.message, lacks.hint)
    except ERRORS as error:
        found = explained_aws(error, what)
        yield Finding(what, False, found.message.removeprefix(f"{what}: "), found.hint)


def _agents(settings: Settings) -> str:
    known, wanted = known_agents(), wanted_agents(settings)
    if unknown := [name for name in wanted if name not in known]:
        raise HeadwaterError(f"there is no agent {', '.join(unknown)}", hint=f"headwater run {' '.join(known)}")
    apart = {
        "lake": settings.lakes,
        "mirror": settings.mirrors,
        "pubsub": settings.pubsubs,
        "replica": settings.replicas,
    }
    for name in dict.fromkeys([*wanted, *(name for name, some in apart.items() if some)]):
        known[name].load()  # a package that it needs may not be installed
    order = [name for name in FLOW_ORDER if name in wanted]
    return f"headwater run starts {', '.join([*order, *(name for name in wanted if name not in order)])}"


def _packages() -> Iterator[Finding]:
    """Tell what has the names of our packages."""
    if (found := missing.overwritten()) is not None:
        yield Finding("packages", False, found.message, found.hint)
    for hiding in own_packages.hidden():
        yield Finding("packages", True, str(hiding), "rename it if a function of yours imports it", is_warning=True)


def _flow(settings: Settings, flow: FlowSettings, warnings: list[str]) -> str:
    try:
        warnings += examine(settings, flow)
    except FlowError as error:
        raise HeadwaterError(error.detail, hint=error.hint) from error
    for table in flow.references:
        if table.startswith(TOPIC):
            _foreign(settings, table.removeprefix(TOPIC))
    return f"{', '.join(flow.tables) or 'all tables'} -> {', '.join(flow.sinks)}"


def _foreign(settings: Settings, topic: str) -> None:
    (found,) = look(admin(settings.kafka.conf), [Topic(topic, 0, "joined")], timeout=10)
    if not found.partitions:
        raise HeadwaterError(
            f"joins the topic {topic}, which is not there", hint=f"kafka-topics.sh --describe --topic {topic}"
        )


def _state(settings: Settings) -> str:
    place = settings.state_dir.absolute()
    while not place.exists():
        place = place.parent
    if not place.is_dir() or not os.access(place, os.W_OK):
        raise HeadwaterError(f"{place} is not writable", hint=f"ls -ld {place}")
    free = shutil.disk_usage(place).free
    if free < LEAST_DISK:
        raise HeadwaterError(f"{place} has only {free >> 20} MiB left", hint=f"df -h {place}")
    return f"{settings.state_dir}, {free >> 30} GiB free"


def _kafka(settings: Settings) -> Iterator[Finding]:
    servers = settings.kafka.bootstrap_servers
    client = admin(settings.kafka.conf)
    try:
        found = look(client, Topics(settings).all(), timeout=10)
    except HeadwaterError as error:
        yield Finding(f"Kafka {servers}", False, error.message, "headwater local up, or set kafka.bootstrap_servers")
        return
    yield Finding(f"Kafka {servers}", True, "reachable")
    try:
        found = sized(client, found)
        missing = [topic.wanted for topic in found if not topic.partitions]
        refused = refusals(client, missing, settings.kafka.replication_factor, validate_only=True)
    except KafkaException as error:
        yield Finding("topics", False, f"they cannot be read: {error.args[0].str()}", "headwater check")
        return
    if any(error.code() in LIMITED for error in refused.values()):
        fitting, allowed = lowered(client, missing, refused, settings.kafka.replication_factor)
        if allowed:
            hint = f"kafka.max_message_bytes = {allowed.size}"
            detail = f"{allowed}: topics are created with it, and larger records become dead letters"
            yield Finding("size of records", True, detail, hint, is_warning=True)
        refused = refusals(client, fitting, settings.kafka.replication_factor, validate_only=True)
    if (size := _size_of_all(found)) is not None:
        detail = f"the topics that are there take records of {size:,} bytes at most ({MAX_BYTES}), and one may have "
        wanted = f"{settings.kafka.max_message_bytes:,}: larger ones become dead letters"
        hint = f"kafka.max_message_bytes = {size}, or raise {MAX_BYTES} of all of them"
        yield Finding("size of records", True, detail + wanted, hint, is_warning=True)
        found = [replace(topic, max_bytes=None) for topic in found]
    for topic in found:
        yield _topic(topic, refused.get(topic.wanted.name))


def _size_of_all(found: Sequence[TopicState]) -> int | None:
    """Return the size of records that the topics take, where it is too small and the same for all: said once then."""
    there = [topic for topic in found if topic.partitions]
    sizes = {topic.max_bytes for topic in there}
    return sizes.pop() if len(there) > 1 and len(sizes) == 1 and all(topic.warning for topic in there) else None


def _topic(topic: TopicState, refused: KafkaError | None) -> Finding:
    what = f"topic {topic.wanted.name}"
    if topic.problem:
        return Finding(what, False, topic.problem, "set partitions to the topic's number")
    if topic.warning:
        hint = (
            f"kafka-configs.sh --alter --entity-type topics --entity-name {topic.wanted.name} --add-config "
            f"{MAX_BYTES}={topic.wanted.config[MAX_BYTES]}, or kafka.max_message_bytes = {topic.max_bytes}"
        )
        return Finding(what, True, topic.warning, hint, is_warning=True)
    if topic.partitions:
        return Finding(what, True, f"{topic.partitions} partitions")
    if refused is not None:
        error = TopicRefusedError(topic.wanted.name, refused)
        return Finding(what, False, error.message, error.hint)
    return Finding(what, True, "does not exist yet: the first worker creates it")


def _identity() -> str:
    config = Config(connect_timeout=5, read_timeout=10, retries={"total_max_attempts": 2})
    session = boto3.session.Session()
    client = session.client("sts", region_name=session.region_name or "us-east-1", config=config)
    return str(client.get_caller_identity()["Arn"])


def _source(settings: DynamoDBStreamSettings | KinesisSettings) -> Iterator[Finding]:
    what = f"source {settings.kind}"
    api, snapshots = onlooker(settings), snapshotter(settings)
    tables: Sequence[str]
    try:
        tables = api.tables(set())
    except HeadwaterError as error:
        yield Finding(what, False, error.message, error.hint)
        tables = api.named()
        if not tables:
            return
    name, hint = ("stream", "aws kinesis list-streams") if isinstance(settings, KinesisSettings) else ("table", TABLES)
    if not tables:
        yield Finding(what, False, f"there is no {name} of these names or tags yet", hint)
    for table in tables:
        look_at = partial(_table, api, settings, snapshots, table)
        yield from _try(f"{name} {table}", look_at)


def _table(
    api: StreamApi, settings: DynamoDBStreamSettings | KinesisSettings, snapshots: Snapshotter | None, table: str
) -> str:
    stream = api.stream_of(table)
    if snapshots is not None:
        snapshots.preflight(table)
    shards = api.shards_of(stream.arn)
    if isinstance(settings, KinesisSettings) and settings.read == "fan-out":
        return f"stream {table}, {len(shards)} shards listed, {_consumer(settings, plain_json(stream.arn))}"
    if shards:  # the permissions that reading needs, used once
        last = shards[-1].shard_id
        api.records(api.iterator(stream.arn, last, ShardStart()), ShardOf(table, stream.arn, last))
    return f"stream {stream.arn.rpartition('/')[2]}, {len(shards)} shards listed"


def _consumer(settings: KinesisSettings, stream_arn: str) -> str:
    found = Consumers(client("kinesis", settings.region, 1), settings.consumer).find(stream_arn)
    if found is not None:
        return f"the consumer {found[0].rpartition('/')[2]} is {found[1]}"
    if ":" in settings.consumer:
        raise HeadwaterError(
            f"there is no consumer {settings.consumer}",
            hint=f"aws kinesis list-stream-consumers --stream-arn {stream_arn}",
        )
    return f"the consumer {settings.consumer} is not there yet: the first worker registers it"


def _mirror(settings: Settings, mirror: MirrorSettings) -> str:
    wanted = copied(mirror, Topics(settings).sinks, settings.partitions)
    OtherCluster(mirror).look(list(wanted.values()), make=False)
    return f"{mirror.bootstrap_servers} answers; {', '.join(wanted)}"


def _replica(settings: Settings, replica: ReplicaSettings) -> str:
    replica_preflight(settings, replica, connect(replica, 2))
    return "the tables exist"


def _lake(lake: LakeSettings) -> str:
    url = lake.url or ""
    if lake.table == "iceberg":
        from pipeline.sinks.lake.iceberg.sink import look_at_table as look_at_catalog  # noqa: PLC0415 - an extra

        return look_at_catalog({"warehouse": url, **lake.catalog}, lake.namespace)
    parts = urlsplit(url)
    if parts.scheme == "file":
        return _try_directory(parts.path)
    if parts.scheme != "s3":
        from pipeline.sinks.lake.objects import Objects  # noqa: PLC0415 - an extra

        Objects(url).exists("headwater-check")
        return "readable; the first file shows whether it can be written"
    session = boto3.session.Session()
    client = session.client("s3", region_name=session.region_name or "us-east-1")
    key = f"{parts.path.strip('/')}/headwater-check".lstrip("/")
    # An upload that is begun and given up needs the permission to write and leaves nothing behind.
    try:
        upload = client.create_multipart_upload(Bucket=parts.netloc, Key=key)["UploadId"]
    except ClientError as error:
        code = error.response.get("Error", {}).get("Code", "")
        if code == "NoSuchBucket":
            raise HeadwaterError(f"there is no bucket {parts.netloc}", hint=f"aws s3 mb s3://{parts.netloc}") from error
        raise
    client.abort_multipart_upload(Bucket=parts.netloc, Key=key, UploadId=upload)
    return "writable"


def _try_directory(path: str) -> str:
    place = path if os.path.exists(path) else os.path.dirname(path)  # noqa: PTH110, PTH120 - a URL's path
    if not os.access(place, os.W_OK):
        raise HeadwaterError(f"{place} is not writable", hint=f"ls -ld {place}")
    return "writable"
