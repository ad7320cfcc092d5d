"""The local stack on real processes: it serves, it stops, it leaves nothing behind, it says what is wrong."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import boto3
import pytest
from confluent_kafka import Consumer, Producer
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic
from support.paths import ROOT
from support.waiting import until

from headwater.lab import cache, kafka, processes
from headwater.lab.processes import Process
from headwater.lab.stack import (
    BrokerChoice,
    Endpoints,
    Stack,
    local_down,
    local_endpoints,
    local_status,
    local_up,
)
from pipeline.errors import HeadwaterError

OUTSIDE = ("HEADWATER_KAFKA__BOOTSTRAP_SERVERS", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3")


@pytest.fixture(autouse=True)
def nothing_is_external(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in OUTSIDE:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def noida(tmp_path: Path) -> Iterator[Stack]:
    with Stack(tmp_path / "stack", broker="noida", progress=print) as stack:
        yield stack


# What it serves


@pytest.mark.kafka
def test_apache_kafka_carries_a_record_also_after_it_was_killed(tmp_path: Path) -> None:
    with Stack(tmp_path, broker="kafka", progress=print) as stack:
        endpoints = started(stack)
        assert endpoints.broker == "Apache Kafka 4.2.0"
        topic = create_topic(endpoints)
        produce(endpoints, topic, b"before")
        stack.kill_broker()
        assert [status.name for status in local_status(tmp_path)] == ["ministack 1.5.33"]
        stack.start_broker()
        produce(endpoints, topic, b"after")
        assert consume(endpoints, topic, 2) == [b"before", b"after"]
        running = stack.processes
    assert_gone(running)


def test_noida_carries_a_record_also_after_a_restart(noida: Stack) -> None:
    endpoints = started(noida)
    topic = create_topic(endpoints)
    produce(endpoints, topic, b"one")
    assert consume(endpoints, topic, 1) == [b"one"]
    noida.kill_broker()
    noida.start_broker()
    produce(endpoints, topic, b"two")


def test_ministack_has_tables_with_streams_and_buckets(noida: Stack) -> None:
    endpoints = started(noida)
    assert endpoints.aws_endpoint_url == endpoints.s3_endpoint_url
    assert changes_of_a_new_table(endpoints) == ["INSERT"]
    assert objects_of_a_new_bucket(endpoints) == ["a/b.parquet"]


def test_the_tables_and_the_bucket_of_compose_can_be_made_twice(noida: Stack) -> None:
    endpoints = started(noida)
    script = ROOT / "docker" / "prepare.py"
    for _ in range(2):
        subprocess.run([sys.executable, str(script)], env=os.environ | endpoints.environment(), check=True)
    dynamodb = client(endpoints, "dynamodb", endpoints.aws_endpoint_url)
    assert sorted(dynamodb.list_tables()["TableNames"]) == ["customers", "orders"]
    dynamodb.close()


@pytest.mark.kafka  # DynamoDB Local needs the same Java and Maven
def test_dynamodb_local_comes_with_another_s3(tmp_path: Path) -> None:
    with Stack(tmp_path, broker="noida", aws="dynamodb-local", progress=print) as stack:
        endpoints = started(stack)
        assert (endpoints.aws, endpoints.s3) == ("DynamoDB Local 3.1.0", "ministack 1.5.33")
        assert changes_of_a_new_table(endpoints) == ["INSERT"]
        assert objects_of_a_new_bucket(endpoints) == ["a/b.parquet"]
        running = stack.processes
    assert_gone(running)


@pytest.mark.kafka
@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="looks into /proc/net")
def test_everything_listens_on_the_loopback_only(tmp_path: Path) -> None:
    with Stack(tmp_path, broker="kafka", aws="dynamodb-local", progress=print) as stack:
        assert started(stack)
        addresses = {address for process in stack.processes for address in listening(process.pid)}
    assert len(addresses) >= 4  # Kafka listens on two
    assert {host for host, _ in addresses} <= {"0100007F", "0000000000000000FFFF00000100007F"}


# What the environment names is used


def test_what_is_external_is_not_started(noida: Stack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there = started(noida)
    monkeypatch.setenv("HEADWATER_KAFKA__BOOTSTRAP_SERVERS", f"127.0.0.1:1,{there.bootstrap_servers}")
    monkeypatch.setenv("AWS_ENDPOINT_URL", there.aws_endpoint_url)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "theirs")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "theirs")
    with Stack(tmp_path / "second", broker="kafka", progress=print) as stack:
        endpoints = started(stack)
        assert stack.processes == []
        assert (endpoints.broker, endpoints.aws, endpoints.s3) == ("external", "external", "external")
        assert endpoints.s3_endpoint_url == there.aws_endpoint_url
    variables = endpoints.environment()
    assert "HEADWATER_KAFKA__REPLICATION_FACTOR" not in variables
    assert "headwater" not in variables.values(), "no dummy credentials where the user has set some"


@pytest.mark.kafka
def test_an_external_dynamodb_without_s3_gets_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_PROFILE", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name, raising=False)
    with Stack(tmp_path / "first", broker="noida", aws="dynamodb-local", progress=print) as first:
        there = started(first)
        monkeypatch.setenv("AWS_ENDPOINT_URL", there.aws_endpoint_url)
        with Stack(tmp_path / "second", broker="noida", progress=print) as second:
            endpoints = started(second)
            assert (endpoints.aws, endpoints.s3) == ("external", "ministack 1.5.33")
            assert endpoints.s3_endpoint_url != there.s3_endpoint_url
            assert changes_of_a_new_table(endpoints) == ["INSERT"], "on this machine, dummy credentials do no harm"
            monkeypatch.setenv("AWS_ENDPOINT_URL_S3", there.s3_endpoint_url)
        with Stack(tmp_path / "third", broker="noida", progress=print) as third:
            endpoints = started(third)
            assert (endpoints.s3, endpoints.s3_endpoint_url) == ("external", there.s3_endpoint_url)


def test_dummy_credentials_reach_stand_ins_only(noida: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    for service in ("DYNAMODB", "DYNAMODB_STREAMS", "STS"):
        monkeypatch.setenv(f"AWS_ENDPOINT_URL_{service}", "http://127.0.0.1:1")
    monkeypatch.setenv("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS", "true")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "theirs")
    endpoints = started(noida)
    for name, value in endpoints.environment().items():
        monkeypatch.setenv(name, value)
    session = boto3.Session()
    for service in ("dynamodb", "dynamodbstreams", "sts", "s3"):
        client = session.client(service)  # type: ignore[call-overload]
        assert client.meta.endpoint_url == endpoints.aws_endpoint_url, service
        client.close()
    assert not session.get_credentials().token  # type: ignore[union-attr]


def test_a_remote_endpoint_gets_the_users_credentials_or_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID", raising=False)
    monkeypatch.delenv("AWS_PROFILE", raising=False)
    aws = "https://dynamodb.eu-west-1.amazonaws.com"
    endpoints = Endpoints("external", "", "b:9092", "external", aws, "external", "https://s3.amazonaws.com", Path())
    assert set(endpoints.environment()) == set(OUTSIDE)


# Nothing is left behind


def test_stop_ends_every_process_and_its_children(noida: Stack) -> None:
    running = noida.processes
    assert len(running) == 2
    noida.stop()
    assert_gone(running)
    assert local_status(noida.directory) == []


@pytest.mark.parametrize("broker", ["noida", pytest.param("kafka", marks=pytest.mark.kafka)])
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process that its parent has died")
def test_no_process_outlives_a_parent_that_was_killed(broker: BrokerChoice, tmp_path: Path) -> None:
    parent = subprocess.Popen([sys.executable, "-c", START_AND_HANG, str(tmp_path), broker], stdout=subprocess.PIPE)
    with parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"up\n"
        running = [status.pid for status in local_status(tmp_path)]
        assert len(running) == 2
        parent.kill()
    until(lambda: all(processes.birth(pid) is None for pid in running), "their end")


def test_processes_live_on_when_the_thread_that_started_them_ends(tmp_path: Path) -> None:
    stack = Stack(tmp_path, broker="noida", progress=print)
    thread = threading.Thread(target=stack.start)
    thread.start()
    thread.join()
    try:
        assert [status.alive for status in local_status(tmp_path)] == [True, True]
        create_topic(started(stack))
    finally:
        stack.stop()


def test_a_program_that_ignores_sigterm_is_killed_with_its_children(tmp_path: Path) -> None:
    program = "trap '' TERM; sleep 600 & echo $!; wait; wait"
    log = tmp_path / "log"
    process = processes.start("deaf", ["sh", "-c", program], log=log, address="", environment={}, detached=True)
    until(lambda: log.read_text().strip() != "", "its output")
    processes.stop([process], grace=0.1)
    assert_gone([process])
    until(lambda: processes.birth(int(log.read_text())) is None, "the end of its child")


def test_ctrl_c_while_it_starts_stops_what_was_started(tmp_path: Path) -> None:
    found: list[int] = []

    def interrupt(message: str) -> None:
        if "ministack" in message and local_status(tmp_path):
            found.extend(status.pid for status in local_status(tmp_path))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Stack(tmp_path, broker="noida", progress=interrupt).start()
    assert len(found) == 1
    assert processes.birth(found[0]) is None


# up, status, down


@pytest.mark.kafka
def test_local_up_outlives_the_process_that_called_it(tmp_path: Path) -> None:
    call = "import sys; from pathlib import Path; from headwater.lab.stack import local_up; "
    call += "local_up(Path(sys.argv[1]), 'kafka', progress=lambda message: None)"
    subprocess.run([sys.executable, "-c", call, str(tmp_path)], check=True)
    try:
        assert [status.alive for status in local_status(tmp_path)] == [True, True]
        endpoints = local_endpoints(tmp_path)
        assert endpoints is not None
        topic = create_topic(endpoints)
        produce(endpoints, topic, b"hello")
        assert consume(endpoints, topic, 1) == [b"hello"]
    finally:
        stopped = local_down(tmp_path)
    assert [status.name for status in stopped] == ["Apache Kafka 4.2.0", "ministack 1.5.33"]
    until(lambda: all(processes.birth(status.pid) is None for status in stopped), "their end")
    assert local_status(tmp_path) == []
    assert local_down(tmp_path) == []


@pytest.mark.kafka
@pytest.mark.parametrize("port", ["free", "taken"])
def test_data_stay_from_one_start_to_the_next(port: str, tmp_path: Path) -> None:
    stack = Stack(tmp_path, broker="kafka", progress=print)
    with stack:
        first = started(stack)
        topic = create_topic(first)
        produce(first, topic, b"kept")
    with socket.socket() as other:
        if port == "taken":
            other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            other.bind(("127.0.0.1", int(first.bootstrap_servers.rpartition(":")[2])))
            other.listen()
        with stack:
            second = started(stack)
            assert (second.bootstrap_servers == first.bootstrap_servers) == (port == "free")
            assert consume(second, topic, 1) == [b"kept"]


def test_a_second_local_up_tells_the_endpoints_of_the_stack_that_runs(tmp_path: Path) -> None:
    first = local_up(tmp_path, "noida", progress=print)
    before = local_status(tmp_path)
    try:
        assert local_up(tmp_path, "noida", progress=print) == first
        assert local_status(tmp_path) == before, "the first one is not disturbed"
    finally:
        local_down(tmp_path)


def test_local_up_refuses_a_stack_of_which_some_parts_run(tmp_path: Path) -> None:
    local_up(tmp_path, "noida", progress=print)
    try:
        os.kill(local_status(tmp_path)[0].pid, signal.SIGKILL)
        until(lambda: not local_status(tmp_path)[0].alive, "the end of one part")
        with pytest.raises(HeadwaterError, match=r"is running there \(try: headwater local down --dir /"):
            local_up(tmp_path, "noida", progress=print)
    finally:
        local_down(tmp_path)


def test_a_stale_file_never_kills_a_stranger(tmp_path: Path) -> None:
    stranger = subprocess.Popen(["sleep", "600"])
    fields = {"name": "x", "pid": stranger.pid, "born": "another/1", "address": "", "log": str(tmp_path / "log")}
    (tmp_path / "stack.json").write_text(json.dumps({"processes": [fields], "endpoints": None}))
    with stranger:
        assert [status.alive for status in local_status(tmp_path)] == [False]
        assert local_down(tmp_path) == []
        assert stranger.poll() is None
        stranger.kill()


# Bad input gets one clear message


def test_a_port_in_use_is_named(noida: Stack) -> None:
    port = int(started(noida).bootstrap_servers.rpartition(":")[2])
    noida.kill_broker()
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(("127.0.0.1", port))
        other.listen()
        with pytest.raises(HeadwaterError, match=rf"port {port} .* in use \(try: ss ") as caught:
            noida.start_broker()
    assert "\n" not in str(caught.value)


def test_a_directory_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(HeadwaterError, match=r"file.*: Not a directory \(try: ls -ld") as caught:
        Stack(tmp_path / "file" / "stack", broker="noida", progress=print).start()
    assert "\n" not in str(caught.value)


def test_a_full_disk_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headwater.lab.stack.DISK_NEEDED", 2**62)
    with pytest.raises(HeadwaterError, match=r"the disk is full .*\(try: df -h"):
        Stack(tmp_path, broker="noida", progress=print).start()


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("HEADWATER_KAFKA__BOOTSTRAP_SERVERS", "127.0.0.1:1"),
        ("AWS_ENDPOINT_URL", "http://127.0.0.1:1"),
        ("AWS_ENDPOINT_URL", "x"),
    ],
)
def test_an_external_part_that_is_away_is_named(
    variable: str, value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(HeadwaterError, match=f"{variable}={value}: .*try: unset {variable}"):
        Stack(tmp_path, broker="noida", progress=print).start()
    assert local_status(tmp_path) == []


def test_without_java_auto_falls_back_and_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kafka, "java_version", lambda: 11)
    with Stack(tmp_path, broker="auto", progress=print) as stack:
        endpoints = started(stack)
        assert endpoints.broker.startswith("noida-db")
        assert "Java is 11, older than 17" in endpoints.reason
    with pytest.raises(HeadwaterError, match=r"Java is 11.*\(try: "):
        Stack(tmp_path, broker="kafka", progress=print).start()


@pytest.mark.kafka
def test_auto_prefers_apache_kafka(tmp_path: Path) -> None:
    assert kafka.choose("auto", tmp_path, print).name == "Apache Kafka 4.2.0"


def test_a_broker_that_ends_as_it_starts_shows_its_log(tmp_path: Path) -> None:
    command = ("sh", "-c", "echo starting; echo 'FATAL: no space left on device'; echo bye; exit 3")
    broker = kafka.Broker("broken", "", processes.free_port(), command, tmp_path / "broken.log")
    process = broker.start(detached=False)
    with pytest.raises(HeadwaterError, match=r"broken on .* ended as it started: FATAL: no space left") as caught:
        broker.wait_until_ready(process)
    assert "\n" not in str(caught.value)
    assert "bye" in caught.value.__notes__[0]
    processes.stop([process])


def test_a_fetch_that_fails_leaves_no_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    made_from = tmp_path / "pom.xml"
    made_from.write_text("<project/>")

    def fails(into: Path) -> None:
        (into / "half.jar").write_text("half")
        cache.fetch(["sh", "-c", "echo '[ERROR] no route to host'; exit 1"], what="it", again="mvn")

    with pytest.raises(HeadwaterError, match=r"sh could not fetch it: \[ERROR\] no route to host \(try: mvn\)"):
        cache.cached("it", made_from, fails)
    assert not cache.is_cached("it", made_from)
    made = cache.cached("it", made_from, lambda into: (into / "whole.jar").touch())
    assert sorted(path.name for path in made.iterdir()) == [".made-from", "whole.jar"]
    made_from.write_text("<project><other/></project>")
    assert not cache.is_cached("it", made_from), "another recipe makes another cache"


def test_two_that_fetch_at_once_fetch_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    made_from = tmp_path / "pom.xml"
    made_from.touch()
    calls: list[Path] = []
    barrier = threading.Barrier(2)

    def fetch() -> None:
        barrier.wait()
        cache.cached("it", made_from, calls.append)

    threads = [threading.Thread(target=fetch) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(calls) == 1


# What the tests above are written with

START_AND_HANG = """
import sys, signal
from pathlib import Path
from headwater.lab.stack import Stack
Stack(Path(sys.argv[1]), broker=sys.argv[2], progress=lambda message: None).start()
print("up", flush=True)
signal.pause()
"""


def started(stack: Stack) -> Endpoints:
    assert stack.endpoints is not None
    return stack.endpoints


def create_topic(endpoints: Endpoints) -> str:
    topic = f"test-{uuid.uuid4()}"
    admin = AdminClient({"bootstrap.servers": endpoints.bootstrap_servers})
    admin.create_topics([NewTopic(topic, 1, 1)])[topic].result(30)
    return topic


def produce(endpoints: Endpoints, topic: str, value: bytes) -> None:
    failed: list[Any] = []
    producer = Producer({"bootstrap.servers": endpoints.bootstrap_servers})
    producer.produce(topic, value, on_delivery=lambda error, _: failed.append(error) if error else None)
    assert producer.flush(30) == 0
    assert failed == []


def consume(endpoints: Endpoints, topic: str, count: int) -> list[bytes]:
    consumer = Consumer(
        {
            "bootstrap.servers": endpoints.bootstrap_servers,
            "group.id": topic,
            "auto.offset.reset": "earliest",
            "session.timeout.ms": 6000,
        }
    )
    try:
        consumer.subscribe([topic])
        return [message.value() or b"" for message in consumer.consume(count, timeout=30)]
    finally:
        consumer.close()


def client(endpoints: Endpoints, service: str, url: str) -> Any:
    variables = endpoints.environment()
    return boto3.client(  # type: ignore[call-overload]
        service,
        endpoint_url=url,
        region_name=variables["AWS_DEFAULT_REGION"],
        aws_access_key_id=variables["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=variables["AWS_SECRET_ACCESS_KEY"],
    )


def changes_of_a_new_table(endpoints: Endpoints) -> list[str]:
    dynamodb = client(endpoints, "dynamodb", endpoints.aws_endpoint_url)
    streams = client(endpoints, "dynamodbstreams", endpoints.aws_endpoint_url)
    try:
        table = dynamodb.create_table(
            TableName="orders",
            AttributeDefinitions=[{"AttributeName": "id", "AttributeType": "S"}],
            KeySchema=[{"AttributeName": "id", "KeyType": "HASH"}],
            BillingMode="PAY_PER_REQUEST",
            StreamSpecification={"StreamEnabled": True, "StreamViewType": "NEW_AND_OLD_IMAGES"},
        )["TableDescription"]
        dynamodb.put_item(TableName="orders", Item={"id": {"S": "1"}})
        arn = table["LatestStreamArn"]
        shard = streams.describe_stream(StreamArn=arn)["StreamDescription"]["Shards"][0]["ShardId"]
        where = {"StreamArn": arn, "ShardId": shard, "ShardIteratorType": "TRIM_HORIZON"}
        iterator = streams.get_shard_iterator(**where)["ShardIterator"]
        return [record["eventName"] for record in streams.get_records(ShardIterator=iterator)["Records"]]
    finally:
        dynamodb.close()
        streams.close()


def objects_of_a_new_bucket(endpoints: Endpoints) -> list[str]:
    s3 = client(endpoints, "s3", endpoints.s3_endpoint_url)
    try:
        s3.create_bucket(Bucket="lake", CreateBucketConfiguration={"LocationConstraint": "eu-west-1"})
        s3.put_object(Bucket="lake", Key="a/b.parquet", Body=b"PAR1")
        return [found["Key"] for found in s3.list_objects_v2(Bucket="lake")["Contents"]]
    finally:
        s3.close()


def assert_gone(running: list[Process]) -> None:
    assert running
    for process in running:
        assert processes.birth(process.pid) is None, process
        until(lambda group=process.pid: living_members(group) == [], "the end of the group")  # type: ignore[misc]


def living_members(group: int) -> list[str]:
    """The processes of a group, zombies aside; nothing where there is no /proc."""
    found = []
    for file in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            state, _, its_group = file.read_text(errors="replace").rpartition(")")[2].split()[:3]
            found += [file.parent.name] if its_group == str(group) and state not in "ZX" else []
    return found


def listening(pid: int) -> set[tuple[str, str]]:
    """The addresses, in hexadecimal, on which a process listens for TCP connections."""
    inodes = set()
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(OSError):  # closed since
            inodes.add(str(descriptor.readlink()).removeprefix("socket:[").rstrip("]"))
    rows = [
        line.split()
        for name in ("tcp", "tcp6")
        for line in Path(f"/proc/{pid}/net/{name}").read_text().splitlines()[1:]
    ]
    found = [row[1].partition(":") for row in rows if row[3] == "0A" and row[9] in inodes]
    return {(host, port) for host, _, port in found}
