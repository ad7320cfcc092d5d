"""Every setting of Faust on this transport: kept, given to librdkafka, without effect, or refused. None is ignored silently."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast

from faust.exceptions import ImproperlyConfigured
from faust.types import AppT

from pipeline.apps.credentials import properties_of
from pipeline.transport.base import BaseTransport, Mapped

log = logging.getLogger(__name__)

Side = Literal["all", "consumer", "producer"]
Kind = Literal["kept", "mapped", "no effect", "refused"]
PROPERTIES = "HEADWATER_KAFKA__PROPERTIES"
"""The variable with librdkafka's properties, a JSON object. The same can be in the URL: `headwater://host?linger.ms=5`."""


@dataclass(frozen=True)
class Rule:
    """What happens to a setting that an app gives."""

    kind: Kind
    how: str = ""
    name: str = ""
    """Of librdkafka's property."""
    side: Side = "all"
    """The clients that get it."""
    convert: Callable[[Any], Any] = lambda value: value


def _ms(seconds: float) -> int:
    return int(seconds * 1000)


STORES = frozenset({"headwater", "memory", "rocksdb"})
"""Stores in whose place ours is used: they hold nothing that the changelog does not."""
LIBRDKAFKA = Rule("no effect", "librdkafka finds it out itself")
FAUSTS_RECOVERY = Rule("no effect", "of Faust's own recovery of tables, which does not run here")

RULES: Mapping[str, Rule] = {
    "broker_api_version": LIBRDKAFKA,
    "consumer_api_version": LIBRDKAFKA,
    "producer_api_version": LIBRDKAFKA,
    "broker_check_crcs": Rule("mapped", name="check.crcs", side="consumer"),
    "broker_client_id": Rule("kept"),
    "broker_commit_every": Rule("no effect", "a slice commits, about every 0.1 to 0.3 seconds"),
    "broker_commit_interval": Rule("no effect", "a slice commits, about every 0.1 to 0.3 seconds"),
    "broker_commit_livelock_soft_timeout": Rule(
        "no effect", "an event that is not acked in 60 seconds ends the worker, which names it"
    ),
    "broker_consumer": Rule("kept", "refused where it is another cluster than broker_producer: a transaction has one"),
    "broker_producer": Rule("kept", "see broker_consumer"),
    "broker_credentials": Rule(
        "mapped", "all four kinds; of an SSL context the authorities and what is checked, but no client key"
    ),
    "ssl_context": Rule(
        "mapped", "as in broker_credentials; a client certificate: ssl.certificate.location, ssl.key.location"
    ),
    "broker_heartbeat_interval": Rule("kept"),
    "broker_session_timeout": Rule("kept", "with group_protocol consumer (KIP-848) the broker sets it"),
    "broker_max_poll_interval": Rule(
        "mapped", "a thread of its own polls: a slow agent is not evicted", "max.poll.interval.ms", "consumer", _ms
    ),
    "broker_max_poll_records": Rule("no effect", "how much is delivered follows the pace of the agents"),
    "broker_rebalance_timeout": Rule("no effect", "it is broker_max_poll_interval here"),
    "broker_request_timeout": Rule("mapped", name="socket.timeout.ms", convert=_ms),
    "consumer_auto_offset_reset": Rule(
        "kept", "earliest or latest, for partitions of which the group has committed nothing"
    ),
    "consumer_connections_max_idle_ms": Rule("mapped", name="connections.max.idle.ms"),
    "consumer_group_instance_id": Rule("kept"),
    "consumer_max_fetch_size": Rule("mapped", name="max.partition.fetch.bytes", side="consumer"),
    "consumer_metadata_max_age_ms": Rule("mapped", name="metadata.max.age.ms"),
    "producer_acks": Rule("refused", "but for -1: a record that not all replicas have can be lost"),
    "producer_compression_type": Rule("mapped", "zstd where nothing is said", "compression.type", "producer"),
    "producer_connections_max_idle_ms": Rule("mapped", name="connections.max.idle.ms"),
    "producer_linger": Rule("mapped", name="linger.ms", side="producer", convert=_ms),
    "producer_linger_ms": Rule("mapped", name="linger.ms", side="producer"),
    "producer_max_batch_size": Rule("mapped", name="batch.size", side="producer"),
    "producer_max_request_size": Rule("mapped", "also how large a record may be", "message.max.bytes", "producer"),
    "producer_metadata_max_age_ms": Rule("mapped", name="metadata.max.age.ms"),
    "producer_partitioner": Rule("kept", "called for each record without a partition"),
    "producer_request_timeout": Rule("mapped", name="request.timeout.ms", side="producer", convert=_ms),
    "producer_threaded": Rule("no effect", "librdkafka has threads of its own"),
    "processing_guarantee": Rule("kept", "exactly_once where nothing is said"),
    "stream_buffer_maxsize": Rule(
        "kept", "of what waits in take(); else at most 500 events are delivered and not acked"
    ),
    "stream_processing_timeout": Rule(
        "no effect",
        "an event may take two thirds of transaction.timeout.ms, 10 seconds; then the worker ends and names it",
    ),
    "stream_publish_on_commit": Rule("mapped", "what is sent in an agent is always published by the commit"),
    "stream_recovery_delay": FAUSTS_RECOVERY,
    "recovery_consistency_check": FAUSTS_RECOVERY,
    "table_standby_replicas": Rule(
        "no effect", "tables of an app have no standbys; a worker reads the changelog from where its files end"
    ),
    "store": Rule(
        "mapped", "headwater://, also for memory:// and rocksdb://, which write before the commit; others are refused"
    ),
    "store_check_exists": Rule("no effect", "of another store"),
    "ConsumerScheduler": Rule("no effect", "partitions take turns"),
    "PartitionAssignor": Rule("no effect", "partitions are assigned by range, so that equal numbers meet"),
    "cython_optimizations": Rule("no effect", "streams have their own fast way"),
    "agent_supervisor": Rule("no effect", "an agent that raises ends its worker: its slice must not commit"),
    "stream_ack_cancelled_tasks": Rule("no effect", "an event that was not done is never acked"),
    "stream_ack_exceptions": Rule("no effect", "an event that was not done is never acked"),
}
"""The settings that are not simply Faust's own here. All others are kept as they are."""


def peek(conf: Any, name: str) -> Any:
    """Return a setting without having it count as used: Faust warns of changes after that, for instance by --web-port."""
    return object.__getattribute__(conf, name)


def given(app: AppT) -> dict[str, Any]:
    """Return the settings that an app gives: by argument, by a module of settings, or by a variable of the environment."""
    conf: Any = app.conf
    own: Any = app
    _, options = own._default_options  # noqa: SLF001 - Faust keeps them nowhere else
    source = own._load_settings_from_source(own._config_source, silent=True) if own._config_source else {}  # noqa: SLF001
    named = {name for name, value in {**options, **dict(source)}.items() if value is not None}
    by_variable = {
        name for name, param in conf.SETTINGS.items() if param.env_name and conf.getenv(param.env_name) is not None
    }
    return {name: peek(conf, name) for name in conf.SETTINGS if name in named | by_variable}


def look_at(app: AppT) -> None:
    """Give the settings of an app to its transport, warn of those without effect, and raise ImproperlyConfigured for others."""
    conf: Any = app.conf
    settings = given(app)
    has_own = getattr(app, "has_own_settings", False)
    for name, value in () if has_own else settings.items():
        rule = RULES.get(name)
        if rule is not None and rule.kind == "no effect" and value != conf.SETTINGS[name].default:
            log.warning("the setting %s has no effect on headwater://: %s", name, rule.how)
    _refuse(conf, settings)
    transport = cast("BaseTransport", app.transport)
    said: dict[Side, dict[str, Any]] = {"all": {}, "consumer": {}, "producer": {}}
    for name, value in settings.items():
        rule = RULES.get(name)
        if rule is not None and rule.kind == "mapped" and rule.name:
            said[rule.side][rule.name] = rule.convert(value)
    credentials = properties_of(peek(conf, "broker_credentials"), peek(conf, "ssl_context"))
    transport.mapped = Mapped(
        {**credentials, **said["all"], **_by_url(conf), **({} if has_own else _by_variable())},
        said["consumer"],
        said["producer"],
    )
    if "message.max.bytes" in said["producer"]:
        transport.message_max = int(said["producer"]["message.max.bytes"])
    if "processing_guarantee" in settings:
        transport.exactly_once = peek(conf, "processing_guarantee").value == "exactly_once"
    # Faust would have a transaction manager of its own, attach what is sent to offsets, and make a thread.
    changes: dict[str, Any] = {
        "processing_guarantee": type(peek(conf, "processing_guarantee")).AT_LEAST_ONCE,
        "stream_publish_on_commit": False,
        "producer_threaded": False,
    }
    if peek(conf, "store").scheme != "headwater":
        changes["store"] = type(peek(conf, "store"))("headwater://")
    for name, value in changes.items():
        object.__setattr__(conf, name, value)


def _refuse(conf: Any, settings: Mapping[str, Any]) -> None:
    if settings.get("producer_acks", -1) not in {-1, "all"}:
        raise ImproperlyConfigured(
            f"producer_acks={peek(conf, 'producer_acks')}: {RULES['producer_acks'].how}; leave it out"
        )
    if list(peek(conf, "broker_consumer")) != list(peek(conf, "broker_producer")):
        raise ImproperlyConfigured(
            "broker_consumer and broker_producer are two: a transaction has one cluster; a mirror copies to another "
            "(docs/how-to/mirror-to-another-cluster.md)"
        )
    if peek(conf, "store").scheme not in STORES:
        raise ImproperlyConfigured(f"store={str(peek(conf, 'store'))!r} writes before the commit; use headwater://")
    if peek(conf, "consumer_auto_offset_reset") not in {"earliest", "latest"}:
        raise ImproperlyConfigured(
            f"consumer_auto_offset_reset={peek(conf, 'consumer_auto_offset_reset')!r}: earliest or latest"
        )


def _by_url(conf: Any) -> dict[str, str]:
    """Return the properties in the broker's URL."""
    return {name: value for url in peek(conf, "broker") for name, value in url.query.items()}


def _by_variable() -> dict[str, Any]:
    """Return the properties in the variable of the environment."""
    text = os.environ.get(PROPERTIES, "")
    if not text:
        return {}
    try:
        found = json.loads(text)
    except ValueError as error:
        raise ImproperlyConfigured(f"{PROPERTIES} is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise ImproperlyConfigured(f"{PROPERTIES} is not a JSON object")
    return found
