"""What happens to the settings of an ordinary Faust app on this transport. Nothing connects."""

from __future__ import annotations

import asyncio
import json
import logging
import ssl
from typing import Any, cast

import faust
import pytest
from faust.auth import GSSAPICredentials, OAuthCredentials, SASLCredentials, SSLCredentials
from faust.exceptions import ImproperlyConfigured
from faust.types.settings import Settings

from pipeline.apps.settings import PROPERTIES, RULES
from pipeline.apps.stream import Stream
from pipeline.apps.topic import Topic
from pipeline.state.table import Table
from pipeline.transport import Transport
from pipeline.transport.partition import partition_of


def app_with(broker: str = "headwater://127.0.0.1:9", **settings: Any) -> faust.App:
    app = faust.App("settings", **{"broker": broker, "store": "headwater://", "datadir": "settings.state", **settings})
    assert app.conf.id == "settings"
    return app


def transport_of(app: faust.App) -> Transport:
    assert isinstance(app.transport, Transport)
    return app.transport


def properties(**settings: Any) -> dict[str, Any]:
    """Return what the clients of the group get."""
    return transport_of(app_with(**settings)).consumer_conf()


def test_an_app_by_one_line_gets_our_classes() -> None:
    conf = cast("Any", app_with().conf)
    assert (conf.Stream, conf.Topic, conf.Table) == (Stream, Topic, Table)


def test_classes_of_the_app_stay() -> None:
    class Mine(faust.Stream[Any]):
        pass

    assert cast("Any", app_with(Stream=Mine).conf).Stream is Mine


def test_an_app_of_another_transport_is_left_alone() -> None:
    conf = cast("Any", app_with("kafka://127.0.0.1:9", store="memory://", producer_acks=1).conf)
    assert (conf.Stream, conf.Topic, conf.producer_acks) == (faust.Stream, faust.Topic, 1)


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        ({"broker_check_crcs": False}, {"check.crcs": False}),
        ({"broker_session_timeout": 20, "broker_heartbeat_interval": 2}, {"session.timeout.ms": 20_000}),
        ({"broker_max_poll_interval": 700}, {"max.poll.interval.ms": 700_000}),
        ({"broker_request_timeout": 50}, {"socket.timeout.ms": 50_000}),
        ({"consumer_max_fetch_size": 5_000}, {"max.partition.fetch.bytes": 5_000}),
        ({"consumer_group_instance_id": "one"}, {"group.instance.id": "one"}),
        ({"consumer_metadata_max_age_ms": 77}, {"metadata.max.age.ms": 77}),
        ({"broker_client_id": "me"}, {"client.id": "me"}),
    ],
    ids=str,
)
def test_a_setting_of_consumers_reaches_librdkafka(settings: dict[str, Any], wanted: dict[str, Any]) -> None:
    assert wanted.items() <= properties(**settings).items()


def test_settings_of_producers_reach_them_and_no_consumer() -> None:
    app = app_with(
        producer_compression_type="gzip",
        producer_linger=0.007,
        producer_max_batch_size=999,
        producer_max_request_size=2_000_000,
        producer_request_timeout=12,
    )
    wanted = {
        "compression.type": "gzip",
        "linger.ms": 7,
        "batch.size": 999,
        "message.max.bytes": 2_000_000,
        "request.timeout.ms": 12_000,
    }
    transport = transport_of(app)
    assert wanted.items() <= transport.producer_conf().items()
    assert not wanted.keys() & transport.consumer_conf().keys()
    assert transport.message_max == 2_000_000


def test_a_setting_by_a_variable_counts_as_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BROKER_REQUEST_TIMEOUT", "33")
    assert properties()["socket.timeout.ms"] == 33_000


def test_properties_stand_in_the_url_or_in_a_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PROPERTIES, json.dumps({"client.rack": "b"}))
    found = properties(broker="headwater://127.0.0.1:9?client.rack=a&socket.keepalive.enable=true")
    assert (found["client.rack"], found["socket.keepalive.enable"]) == ("b", "true")
    assert found["bootstrap.servers"] == "127.0.0.1:9"


def test_properties_that_are_no_json_are_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PROPERTIES, "client.rack=b")
    with pytest.raises(ImproperlyConfigured, match=PROPERTIES):
        app_with()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"producer_acks": 1}, "producer_acks=1"),
        (
            {"broker_consumer": "headwater://a:9", "broker_producer": "headwater://b:9"},
            "broker_consumer and broker_producer",
        ),
        ({"consumer_auto_offset_reset": "none"}, "consumer_auto_offset_reset='none'"),
        ({"broker_credentials": GSSAPICredentials(kerberos_domain_name="d")}, "kerberos_domain_name"),
    ],
    ids=str,
)
def test_a_setting_that_cannot_be_kept_is_refused_by_name(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ImproperlyConfigured, match=words):
        app_with(**settings)


def test_a_setting_without_effect_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        app_with(broker_commit_interval=1.0, producer_threaded=True)
    said = [record.getMessage() for record in caplog.records]
    assert [line.split(" has no effect")[0] for line in said] == [
        "the setting broker_commit_interval",
        "the setting producer_threaded",
    ]


def test_the_guarantee_is_exactly_once_unless_another_is_given() -> None:
    assert transport_of(app_with()).exactly_once
    assert transport_of(app_with(processing_guarantee="exactly_once")).exactly_once
    assert not transport_of(app_with(processing_guarantee="at_least_once")).exactly_once


def test_faust_does_not_attach_what_is_sent_to_offsets() -> None:
    assert not app_with(stream_publish_on_commit=True).conf.stream_publish_on_commit


def test_every_rule_is_about_a_setting_that_faust_has() -> None:
    assert RULES.keys() <= Settings.SETTINGS.keys()


def test_credentials_by_name_and_password() -> None:
    found = properties(broker_credentials=SASLCredentials(username="u", password="p", mechanism="SCRAM-SHA-256"))
    wanted = {
        "security.protocol": "SASL_PLAINTEXT",
        "sasl.mechanism": "SCRAM-SHA-256",
        "sasl.username": "u",
        "sasl.password": "p",
    }
    assert wanted.items() <= found.items()


def test_credentials_by_kerberos() -> None:
    found = properties(broker_credentials=GSSAPICredentials(kerberos_service_name="k"))
    assert (found["sasl.mechanism"], found["sasl.kerberos.service.name"]) == ("GSSAPI", "k")


def test_credentials_by_tokens() -> None:
    class Provider:
        async def token(self) -> str:
            await asyncio.sleep(0)
            return "a-token"

    found = properties(broker_credentials=OAuthCredentials(oauth_cb=cast("Any", Provider())))
    token, until = found["oauth_cb"]("")
    assert (found["sasl.mechanism"], token, until > 0) == ("OAUTHBEARER", "a-token", True)


def test_of_a_context_authorities_and_checks_are_taken() -> None:
    context = ssl.create_default_context()
    found = properties(broker_credentials=SSLCredentials(context))
    assert found["security.protocol"] == "SSL"
    assert found["enable.ssl.certificate.verification"] is True
    assert found["ssl.endpoint.identification.algorithm"] == "https"
    assert found.get("ssl.ca.pem", "").count("BEGIN CERTIFICATE") == len(context.get_ca_certs())


def test_a_context_that_checks_nothing_says_so() -> None:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    found = properties(ssl_context=context)
    assert found["enable.ssl.certificate.verification"] is False
    assert found["ssl.endpoint.identification.algorithm"] == "none"


def test_the_partitioner_of_the_app_is_asked() -> None:
    def last(key: bytes | None, every: list[int], available: list[int]) -> int:
        return every[-1]

    producer = cast("Any", app_with(producer_partitioner=last).producer)
    producer._counts["t"] = 5
    assert producer._chosen("t", b"key") == 4
    other = cast("Any", app_with().producer)
    other._counts["t"] = 5
    assert other._chosen("t", b"key") == -1, "librdkafka chooses"
    assert other.key_partition("t", b"key").partition == partition_of(b"key", 5)
