"""A Kafka Connect worker for tests, in standalone mode, with connectors and converters from Maven Central."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from urllib.request import urlopen

from headwater.lab import processes
from headwater.lab.cache import cached, copy_jars, is_cached
from headwater.lab.kafka import LOG4J
from headwater.lab.processes import LOOPBACK, Process

HERE = Path(__file__).parent / "connect"
POM = HERE / "pom.xml"
CACHE = "connect-debezium-3.6.0"
SECONDS = 120.0
Properties = Mapping[str, str]


def missing() -> str | None:
    """Return why it cannot run on this machine, in words; None if it can."""
    if shutil.which("javac") is None:
        return "there is no javac on PATH"
    if not is_cached(CACHE, POM) and shutil.which("mvn") is None:
        return "there is no Maven on PATH to fetch it with"
    return None


def jars() -> Path:
    """Return the directory of the jars, fetched from Maven Central if need be."""
    return cached(CACHE, POM, lambda into: copy_jars(POM, into))


@dataclass(frozen=True)
class Java:
    """The classes of tests/connect, compiled, and what they need."""

    class_path: str

    @classmethod
    def compiled(cls, directory: Path) -> Java:
        """Compile them."""
        classes = f"{jars()}/*"
        sources = sorted(map(str, HERE.glob("*.java")))
        code, output = processes.run(["javac", "-nowarn", "-cp", classes, "-d", directory, *sources], seconds=SECONDS)
        assert code == 0, output
        return cls(os.pathsep.join([classes, str(directory)]))

    def run(self, name: str, *arguments: str | Path) -> list[str]:
        """Return the lines that a program prints."""
        code, output = processes.run(["java", "-cp", self.class_path, name, *arguments], seconds=SECONDS)
        assert code == 0, output
        return output.splitlines()


@dataclass(frozen=True)
class Connect:
    """A worker that runs."""

    process: Process

    def look_at(self, connector: str) -> None:
        """Fail where the worker has ended, or a task of the connector has failed."""
        assert self.process.alive(), f"Kafka Connect has ended: {self.process.log}"
        with suppress(OSError), urlopen(f"http://{self.process.address}/connectors/{connector}/status") as answer:
            for task in json.load(answer)["tasks"]:
                assert task["state"] != "FAILED", task["trace"]


@contextmanager
def running(java: Java, directory: Path, servers: str, connectors: Mapping[str, Properties]) -> Iterator[Connect]:
    """Run a worker with these connectors until the end of the block."""
    port = processes.free_port()
    log4j = directory / "log4j2.xml"
    log4j.write_text(LOG4J)
    own = {
        "bootstrap.servers": servers,
        "listeners": f"http://{LOOPBACK}:{port}",
        "key.converter": "org.apache.kafka.connect.storage.StringConverter",
        "value.converter": "org.apache.kafka.connect.storage.StringConverter",
        "offset.storage.file.filename": str(directory / "offsets"),
        "offset.flush.interval.ms": "500",
        "plugin.discovery": "service_load",
        "consumer.isolation.level": "read_committed",
        "consumer.auto.offset.reset": "earliest",
    }
    files = [_written(directory / "worker.properties", own)]
    files += [_written(directory / f"{name}.properties", {"name": name, **one}) for name, one in connectors.items()]
    options = ["-Xmx1g", "-XX:TieredStopAtLevel=1", f"-Dlog4j2.configurationFile={log4j}", "-cp", java.class_path]
    process = processes.start(
        "Kafka Connect",
        ["java", *options, "org.apache.kafka.connect.cli.ConnectStandalone", *files],
        log=directory / "connect.log",
        address=f"{LOOPBACK}:{port}",
        environment={},
        detached=False,
    )
    try:
        processes.wait_until_ready(process, partial(processes.listens, LOOPBACK, port), seconds=SECONDS)
        yield Connect(process)
    finally:
        processes.stop([process])


def _written(file: Path, properties: Properties) -> Path:
    file.write_text("".join(f"{name}={value}\n" for name, value in properties.items()))
    return file
