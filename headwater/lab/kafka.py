"""Brokers of the local stack: Apache Kafka in KRaft mode, and noida-db where there is no Java."""

from __future__ import annotations

import base64
import importlib.metadata
import importlib.util
import logging
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from headwater.lab import processes
from headwater.lab.cache import cached, copy_jars, is_cached, recipe
from headwater.lab.processes import LOOPBACK, Process
from pipeline.errors import HeadwaterError
from pipeline.files.private import private_directory

VERSION = "4.2.0"
CACHE = f"kafka-{VERSION}"
JAVA_NEEDED = 17
READY_SECONDS = 60.0
Progress = Callable[[str], None]

SERVER_PROPERTIES = """\
process.roles=broker,controller
node.id=1
controller.quorum.bootstrap.servers={host}:{controller_port}
listeners=PLAINTEXT://{host}:{port},CONTROLLER://{host}:{controller_port}
advertised.listeners=PLAINTEXT://{host}:{port},CONTROLLER://{host}:{controller_port}
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT
controller.listener.names=CONTROLLER
inter.broker.listener.name=PLAINTEXT
log.dirs={data}
auto.create.topics.enable=false
num.partitions=4
group.initial.rebalance.delay.ms=0
# Tests choose short session time-outs.
group.min.session.timeout.ms=1000
# With KIP-848 the broker chooses them (45 s by default).
group.consumer.min.session.timeout.ms=1000
group.consumer.session.timeout.ms=10000
group.consumer.min.heartbeat.interval.ms=500
group.consumer.heartbeat.interval.ms=1000
# One broker: one replica of everything, and few partitions, so that it starts and stops quickly.
offsets.topic.replication.factor=1
offsets.topic.num.partitions=4
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=4
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
share.coordinator.state.topic.num.partitions=4
# A broker that was killed may come back only when its session is over (9 s by default).
broker.session.timeout.ms=3000
broker.heartbeat.interval.ms=500
# How soon after its time-out a transaction is aborted (10 s by default).
transaction.abort.timed.out.transaction.cleanup.interval.ms=1000
"""

LOG4J = """\
<Configuration status="ERROR" shutdownHook="disable">
  <Appenders>
    <Console name="out"><PatternLayout pattern="%d{ISO8601} %p %c{1}: %m%n"/></Console>
  </Appenders>
  <Loggers>
    <Root level="INFO"><AppenderRef ref="out"/></Root>
    <Logger name="org.apache.kafka.common.config" level="WARN"/>
    <Logger name="kafka.server.KafkaConfig" level="WARN"/>
    <Logger name="kafka.utils.Log4jControllerRegistration" level="OFF"/>
  </Loggers>
</Configuration>
"""


@dataclass(frozen=True)
class Broker:
    """How to start a broker, again and again, on the same port and the same data."""

    name: str
    reason: str
    port: int
    command: tuple[str, ...]
    log: Path

    @property
    def address(self) -> str:
        """Return host:port."""
        return f"{LOOPBACK}:{self.port}"

    def start(self, *, detached: bool) -> Process:
        """Start it; `wait_until_ready` tells when it can be used."""
        if not processes.port_is_free(self.port):
            raise HeadwaterError(
                f"{self.name}: port {self.port} of {LOOPBACK} is in use", hint=f"ss -ltnp 'sport = :{self.port}'"
            )
        return processes.start(
            self.name, self.command, log=self.log, address=self.address, environment={}, detached=detached
        )

    def wait_until_ready(self, process: Process) -> None:
        """Return once clients are served; raise HeadwaterError if it ends or takes too long."""
        listens = partial(processes.listens, LOOPBACK, self.port)  # first, because librdkafka is slow to try again
        processes.wait_until_ready(process, listens, seconds=READY_SECONDS)
        processes.wait_until_ready(process, partial(_answers, self.address), seconds=READY_SECONDS)


def missing() -> str | None:
    """Return why Apache Kafka cannot run on this machine, in words; None if it can."""
    found = java_version()
    if found is None:
        return "there is no Java on PATH"
    if found < JAVA_NEEDED:
        return f"Java is {found}, older than {JAVA_NEEDED}"
    if not is_cached(CACHE, recipe("kafka/pom.xml")) and shutil.which("mvn") is None:
        return "there is no Maven on PATH to fetch it with"
    return None


@cache
def java_version() -> int | None:
    """Return the major version of the `java` on PATH, None where there is none that runs."""
    try:
        shown = subprocess.run(["java", "-version"], capture_output=True, text=True, check=False, timeout=30).stderr
    except (OSError, subprocess.TimeoutExpired):
        return None
    version = re.search(r'version "(?:1\.)?(\d+)', shown)
    return int(version[1]) if version else None


def jars(progress: Progress) -> Path:
    """Return the directory of Apache Kafka's jars, fetched from Maven Central if need be."""
    pom = recipe("kafka/pom.xml")
    if not is_cached(CACHE, pom):
        progress(f"fetching Apache Kafka {VERSION} from Maven Central (43 MB, once)")
    return cached(CACHE, pom, lambda into: copy_jars(pom, into))


def apache_kafka(
    directory: Path,
    reason: str,
    progress: Progress,
    *,
    properties: Mapping[str, str] | None = None,
    class_path: Sequence[Path] = (),
) -> Broker:
    """Prepare Apache Kafka on free ports with its data in `directory`: what is there already is kept.

    `properties` are laid over those of a broker here; `class_path` has the classes that they name.
    """
    if (why := missing()) is not None:
        raise HeadwaterError(
            f"Apache Kafka {VERSION}: {why}", hint="apt-get install default-jdk-headless maven, or --broker noida"
        )
    classes = os.pathsep.join([f"{jars(progress)}/*", *map(str, class_path)])
    private_directory(directory)
    config, log4j = directory / "server.properties", directory / "log4j2.xml"
    port, controller_port = _ports(config)
    config.write_text(
        SERVER_PROPERTIES.format(host=LOOPBACK, port=port, controller_port=controller_port, data=directory / "data")
        + "".join(f"{name}={value}\n" for name, value in (properties or {}).items())
    )
    log4j.write_text(LOG4J)
    java = ["java", f"-Dlog4j2.configurationFile={log4j}"]
    if not (directory / "data" / "meta.properties").exists():
        _format([*java, "-XX:TieredStopAtLevel=1", "-cp", classes], config)
    return Broker(
        name=f"Apache Kafka {VERSION}",
        reason=reason,
        port=port,
        command=(*java, "-Xms256m", "-Xmx1g", "-cp", classes, "kafka.Kafka", str(config)),
        log=directory / "kafka.log",
    )


def noida(directory: Path, reason: str, progress: Progress) -> Broker:
    """Prepare noida-db, a broker without dependencies, on a free port, with its data in `directory`."""
    package = importlib.util.find_spec("noida_db")
    if package is None or package.origin is None:
        raise HeadwaterError("noida-db is not installed", hint="pip install 'headwater[lab]'")
    private_directory(directory)
    port = processes.free_port()
    # The program itself: its Python wrapper would leave it behind on SIGTERM.
    program = Path(package.origin).with_name("noida-db")
    options = ("start", "--only", "kafka", "--kafka-port", str(port), "--data-dir", str(directory / "data"))
    name = f"noida-db {importlib.metadata.version('noida-db')}"
    return Broker(name, reason, port, (str(program), *options), directory / "noida.log")


def choose(choice: str, directory: Path, progress: Progress) -> Broker:
    """Prepare the broker asked for: kafka, noida, or auto (Apache Kafka where it can run, else noida-db)."""
    if choice == "kafka":
        return apache_kafka(directory, "it was asked for", progress)
    if choice == "noida":
        return noida(directory, "it was asked for", progress)
    if (why := missing()) is not None:
        return noida(directory, f"Apache Kafka cannot run here: {why}", progress)
    try:
        jars(progress)
    except HeadwaterError as error:
        return noida(directory, f"Apache Kafka could not be fetched: {error.message.splitlines()[0]}", progress)
    return apache_kafka(directory, f"Java {java_version()} and the jars are here", progress)


def require_reachable(bootstrap_servers: str) -> None:
    """Raise HeadwaterError unless one of the brokers, host:port, comma-separated, accepts connections."""
    for server in bootstrap_servers.split(","):
        host, _, port = server.strip().rpartition(":")
        if host and port.isdigit() and processes.listens(host.strip("[]"), int(port)):
            return
    raise HeadwaterError(
        f"HEADWATER_KAFKA__BOOTSTRAP_SERVERS={bootstrap_servers}: no broker answers there",
        hint="unset HEADWATER_KAFKA__BOOTSTRAP_SERVERS, to have a broker started here",
    )


def _ports(config: Path) -> tuple[int, int]:
    """Return the ports of the last time, as clients may know them, where they are free; else others."""
    if config.exists():
        found = re.search(r"^listeners=.*?:(\d+),.*?:(\d+)$", config.read_text(), re.MULTILINE)
        if found and processes.port_is_free(int(found[1])) and processes.port_is_free(int(found[2])):
            return int(found[1]), int(found[2])
    return processes.free_port(), processes.free_port()


def _format(java: list[str], config: Path) -> None:
    # A random ID whose first byte is fixed: base64 may begin with "-", which the tool would take for an option.
    cluster = base64.urlsafe_b64encode(b"H" + os.urandom(15)).decode().rstrip("=")
    tool = ["kafka.tools.StorageTool", "format", "-t", cluster, "-c", str(config), "--standalone"]
    code, output = processes.run([*java, *tool], seconds=READY_SECONDS)
    if code != 0:
        raise processes.explained(
            f"Apache Kafka could not format {config.parent}", output, hint=f"df -h {config.parent}"
        )


def _answers(address: str) -> bool:
    quiet = logging.getLogger("headwater.lab.librdkafka")
    quiet.setLevel(logging.CRITICAL)  # it is expected to fail at first
    client = AdminClient({"bootstrap.servers": address, "socket.timeout.ms": 2000}, logger=quiet)
    try:
        return bool(client.list_topics(timeout=2).brokers)
    except KafkaException:
        return False
