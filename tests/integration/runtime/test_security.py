"""`[kafka.properties]` reach every client: workers and commands on brokers that ask who they are."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import (  # type: ignore[attr-defined]  # the package says so, not its types
    AdminClient,
    ScramCredentialInfo,
    ScramMechanism,
    UserScramCredentialUpsertion,
)
from conftest import Headwater
from support.fleet import Fleet, log_of
from support.waiting import until

from headwater.lab import kafka, processes
from headwater.lab.processes import LOOPBACK, free_port
from headwater.lab.recorder import Recorder
from headwater.lab.stack import Endpoints

pytestmark = pytest.mark.kafka
SECRET = "very-secret-indeed"
MECHANISMS = ("SCRAM", "TLS", "TOKEN")
LISTENERS = """
listeners=PLAINTEXT://{host}:{plain},CONTROLLER://{host}:{controller},SCRAM://{host}:{scram},TLS://{host}:{tls},TOKEN://{host}:{token}
advertised.listeners=PLAINTEXT://{host}:{plain},SCRAM://{host}:{scram},TLS://{host}:{tls},TOKEN://{host}:{token}
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,SCRAM:SASL_PLAINTEXT,TLS:SASL_SSL,TOKEN:SASL_PLAINTEXT
listener.name.scram.sasl.enabled.mechanisms=SCRAM-SHA-256
listener.name.scram.scram-sha-256.sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule required;
listener.name.tls.sasl.enabled.mechanisms=PLAIN
listener.name.tls.plain.sasl.jaas.config=org.apache.kafka.common.security.plain.PlainLoginModule required \\
  user_headwater="{secret}";
listener.name.tls.ssl.keystore.type=PKCS12
listener.name.tls.ssl.keystore.location={keystore}
listener.name.tls.ssl.keystore.password={secret}
listener.name.token.sasl.enabled.mechanisms=OAUTHBEARER
listener.name.token.oauthbearer.sasl.jaas.config=org.apache.kafka.common.security.oauthbearer.OAuthBearerLoginModule \\
  required unsecuredLoginStringClaim_sub="broker";
"""


@dataclass(frozen=True)
class Secured:
    """A broker with a listener for each way to say who one is."""

    ports: dict[str, int]
    certificate: Path

    def properties(self, mechanism: str, password: str = SECRET) -> dict[str, str]:
        """Return what a user writes under [kafka.properties]."""
        named = {"sasl.username": "headwater", "sasl.password": password}
        if mechanism == "SCRAM":
            return {"security.protocol": "SASL_PLAINTEXT", "sasl.mechanism": "SCRAM-SHA-256", **named}
        if mechanism == "TLS":
            return {
                "security.protocol": "SASL_SSL",
                "sasl.mechanism": "PLAIN",
                "ssl.ca.location": str(self.certificate),
                **named,
            }
        return {
            "security.protocol": "SASL_PLAINTEXT",
            "sasl.mechanism": "OAUTHBEARER",
            "enable.sasl.oauthbearer.unsecure.jwt": "true",
            "sasl.oauthbearer.config": "principal=headwater",
        }


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    directory = tmp_path_factory.mktemp("secured")
    keystore, certificate = directory / "broker.p12", directory / "broker.pem"
    store = ["-alias", "broker", "-storetype", "PKCS12", "-keystore", str(keystore), "-storepass", SECRET]
    pair = ["-genkeypair", "-keyalg", "RSA", "-dname", "CN=broker", "-ext", f"san=ip:{LOOPBACK}", "-validity", "30"]
    subprocess.run(["keytool", *pair, *store], check=True, capture_output=True)
    subprocess.run(
        ["keytool", "-exportcert", "-rfc", "-file", str(certificate), *store], check=True, capture_output=True
    )
    broker = kafka.apache_kafka(directory / "broker", "the test asks for it", print)
    config = directory / "broker" / "server.properties"
    controller = next(
        line.rpartition(":")[2] for line in config.read_text().splitlines() if line.startswith("controller.quorum")
    )
    ports = {mechanism: free_port() for mechanism in MECHANISMS}
    listeners = LISTENERS.format(
        host=LOOPBACK,
        plain=broker.port,
        controller=controller,
        secret=SECRET,
        keystore=keystore,
        **{name.lower(): port for name, port in ports.items()},
    )
    config.write_text(config.read_text() + listeners)
    process = broker.start(detached=False)
    try:
        broker.wait_until_ready(process)
        user = UserScramCredentialUpsertion(
            "headwater", ScramCredentialInfo(ScramMechanism.SCRAM_SHA_256, 4096), SECRET.encode()
        )
        client = AdminClient({"bootstrap.servers": broker.address})
        client.alter_user_scram_credentials([user])["headwater"].result(20)
        yield Secured(ports, certificate)
    finally:
        processes.stop([process])


def environment(secured: Secured, mechanism: str, password: str = SECRET) -> dict[str, str]:
    """Return every part of a worker that has a client of its own: standbys, a join's follower, the transaction."""
    flow = {
        "name": "all",
        "enrich": [{"kind": "join", "table": "t", "on": "id", "into": "it"}],
        "to": [{"sink": "all"}],
    }
    return {
        "HEADWATER_KAFKA__PROPERTIES": json.dumps(secured.properties(mechanism, password)),
        "HEADWATER_AGENTS": '["deduplicate", "transform"]',
        "HEADWATER_FLOWS": json.dumps([flow]),
        "HEADWATER_STANDBY_REPLICAS": "1",
        "HEADWATER_KAFKA__REPLICATION_FACTOR": "1",
    }


def address(stack: Endpoints, secured: Secured, mechanism: str) -> Endpoints:
    return replace(stack, bootstrap_servers=f"{LOOPBACK}:{secured.ports[mechanism]}")


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_every_client_says_who_it_is_and_nobody_tells_the_secret(
    stack: Endpoints, secured: Secured, tmp_path: Path, headwater: Headwater, mechanism: str
) -> None:
    fleet = Fleet(
        address(stack, secured, mechanism),
        tmp_path,
        environment(secured, mechanism),
        properties=secured.properties(mechanism),
    )
    said, standbys = [], mechanism == "SCRAM"  # once is enough: they need a second worker
    for command in ("topics", "check"):
        done = headwater(command, "--json", *(["--create"] if command == "topics" else []), **fleet.environment)
        assert done.returncode == 0, done.stderr
        said += [done.stdout, done.stderr]
    with Recorder(fleet.conf, f"{fleet.prefix}.sink.all") as sink, fleet.running(2 if standbys else 1) as workers:
        producer = Producer(fleet.conf)
        for number in range(100):
            change = {
                "eventID": f"e{number}",
                "eventName": "INSERT",
                "eventSourceARN": "arn:aws:dynamodb:eu-west-1:000000000000:table/t/stream/2026-11-23T00:00:00.000",
                "dynamodb": {"Keys": {"id": {"S": f"{number}"}}, "NewImage": {"id": {"S": f"{number}"}}},
            }
            producer.produce(fleet.topics.ingest, json.dumps(change), f"k{number}")
        assert producer.flush(20) == 0
        until(lambda: len(sink) == 100, "100 changes")
        until(lambda: not standbys or "Standby of" in "".join(map(log_of, workers.all)), "a standby")
        done = headwater("status", "--json", **fleet.environment)
        assert json.loads(done.stdout)["workers"] == len(workers.all), done.stderr
        said += [done.stdout, done.stderr, *map(log_of, workers.all)]
    assert SECRET not in "".join(said)
    assert "[CRITICAL]" not in "".join(map(log_of, workers.all))


@pytest.mark.parametrize("mechanism", ["SCRAM", "TLS"])
def test_wrong_credentials_are_one_clear_error(
    stack: Endpoints, secured: Secured, headwater: Headwater, mechanism: str
) -> None:
    wrong = {
        **address(stack, secured, mechanism).environment(),
        **environment(secured, mechanism, "wrong-" + SECRET),
        "HEADWATER_WEB__ENABLED": "false",
    }
    for command in (["run"], ["status"], ["topics"]) if mechanism == "SCRAM" else (["run"],):
        done = headwater(*command, **wrong)
        assert done.returncode == 1
        (line,) = done.stderr.strip().splitlines()
        assert line.startswith("headwater: Kafka refuses this client: ")
        assert "uthentication" in line
        assert SECRET not in done.stdout + done.stderr
    if mechanism != "SCRAM":  # once is enough
        return
    findings = json.loads(headwater("check", "--json", **wrong).stdout)
    assert next(f["detail"] for f in findings if not f["ok"]).startswith("Kafka refuses this client: ")


def test_a_certificate_that_nobody_has_signed_is_one_clear_error(
    stack: Endpoints, secured: Secured, headwater: Headwater
) -> None:
    properties = {name: value for name, value in secured.properties("TLS").items() if name != "ssl.ca.location"}
    done = headwater(
        "topics",
        **address(stack, secured, "TLS").environment(),
        HEADWATER_KAFKA__PROPERTIES=json.dumps(properties),
    )
    assert done.returncode == 1
    assert "certificate" in done.stderr
