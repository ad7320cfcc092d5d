"""Three brokers, and the one dies that coordinates the group and the transactions, under load."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Consumer, KafkaException, Producer, TopicPartition
from support.fleet import Fleet
from support.waiting import until

from headwater.lab import kafka, processes
from headwater.lab.processes import LOOPBACK, Process, free_port
from headwater.lab.stack import Endpoints
from pipeline.topics.admin import admin

pytestmark = pytest.mark.kafka
NODES = (2, 3)
"""Beside the first, which is the controller as well and lives on."""


@dataclass
class Cluster:
    """Brokers by node ID; the first address is that of the controller's node."""

    addresses: list[str]
    brokers: dict[int, Process]

    @property
    def conf(self) -> dict[str, Any]:
        return {"bootstrap.servers": ",".join(self.addresses)}

    def leaders(self, topic: str) -> dict[int, int]:
        """Return the leader of each partition of a topic."""
        found = admin(self.conf).list_topics(topic, timeout=10).topics[topic]
        return {number: partition.leader for number, partition in found.partitions.items()}


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    directory = tmp_path / "cluster"
    first = kafka.apache_kafka(directory, "the test asks for it", print)
    config = directory / "server.properties"
    config.write_text(
        config.read_text().replace("replication.factor=1", "replication.factor=3").replace("min.isr=1", "min.isr=2")
    )
    command = [word.replace("-Xms256m", "-Xms64m").replace("-Xmx1g", "-Xmx400m") for word in first.command]
    brokers = [replace(first, command=tuple(command))]
    brokers += [another(brokers[0], directory, node) for node in NODES]
    started: dict[int, Process] = {}
    try:
        for number, broker in enumerate(brokers, 1):
            started[number] = broker.start(detached=False)
        for broker, process in zip(brokers, started.values(), strict=True):
            broker.wait_until_ready(process)
        yield Cluster([broker.address for broker in brokers], started)
    finally:
        processes.stop(list(started.values()))


def another(first: kafka.Broker, directory: Path, node: int) -> kafka.Broker:
    """Prepare one more broker of the first one's cluster."""
    home, port = directory.with_name(f"node-{node}"), free_port()
    home.mkdir()
    config, before = home / "server.properties", (directory / "server.properties").read_text()
    own = {
        "process.roles": "broker",
        "node.id": str(node),
        "listeners": f"PLAINTEXT://{LOOPBACK}:{port}",
        "advertised.listeners": f"PLAINTEXT://{LOOPBACK}:{port}",
        "log.dirs": str(home / "data"),
    }
    config.write_text(before + "".join(f"{name}={value}\n" for name, value in own.items()))
    (cluster,) = re.findall(r"cluster\.id=(.*)", (directory / "data" / "meta.properties").read_text())
    java = first.command[: first.command.index("-cp") + 2]
    tool = ("kafka.tools.StorageTool", "format", "-t", cluster, "-c", str(config), "--no-initial-controllers")
    code, output = processes.run([*java, *tool], seconds=60)
    assert code == 0, output
    return replace(first, port=port, command=(*first.command[:-1], str(config)), log=home / "kafka.log")


def coordinated_by(leaders: Mapping[int, int], node: int, name: str) -> str:
    """Return a name that begins so and whose coordinator is this broker: it leads the partition of the name's hash in Java."""
    for number in range(1_000):
        signed = 0
        for letter in (found := f"{name}{number}"):
            signed = (31 * signed + ord(letter)) & 0xFFFFFFFF
        signed -= (signed & 0x80000000) << 1
        if leaders[abs(signed) % len(leaders)] == node:
            return found
    pytest.fail(f"no partition is led by broker {node}: {leaders}")


def test_the_coordinator_of_group_and_transactions_dies_and_nothing_is_lost_or_doubled(
    stack: Endpoints, cluster: Cluster, tmp_path: Path
) -> None:
    use_once(cluster)
    groups, transactions = cluster.leaders("__consumer_offsets"), cluster.leaders("__transaction_state")
    victim = next(node for node in NODES if node in groups.values() and node in transactions.values())
    endpoints = replace(stack, bootstrap_servers=",".join(cluster.addresses))
    fleet = Fleet(endpoints, tmp_path, prefix=coordinated_by(groups, victim, "t"), replicas=3)
    for worker in ("worker-1", "worker-2"):
        state = tmp_path / f"{worker}.state"
        state.mkdir()
        (state / "transactional-id").write_text(coordinated_by(transactions, victim, worker))
    with fleet.running(2) as workers, fleet.under_load(workers) as raw:
        cluster.brokers[victim].kill()
        until(lambda: victim not in cluster.leaders("__consumer_offsets").values(), "another coordinator")
        more = len(raw) + 2_000

        def went_on() -> bool:
            workers.watch()  # one whose transaction hangs in librdkafka ends after a minute
            return len(raw) >= more

        until(went_on, "changes that were committed by it", 150)


def use_once(cluster: Cluster) -> None:
    """Let Kafka make its internal topics."""
    producer = Producer({**cluster.conf, "transactional.id": "first"})
    producer.init_transactions(60)
    consumer = Consumer({**cluster.conf, "group.id": "first"})

    def answers() -> bool:
        try:
            return bool(consumer.committed([TopicPartition("any", 0)], 10))
        except KafkaException:  # the coordinator is being chosen
            return False

    until(answers, "a group coordinator")
    consumer.close()
