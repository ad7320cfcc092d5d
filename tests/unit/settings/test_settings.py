"""Settings: one typed model, every mistake in one line."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from pipeline.errors import UsageError
from pipeline.runtime.worker import Worker
from pipeline.settings.kafka import KafkaSettings
from pipeline.settings.load import load
from pipeline.settings.root import Settings


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("HEADWATER_KAFKA__BOOTSTRAP_SERVERS", "HEADWATER_CONFIG"):
        monkeypatch.delenv(name, raising=False)


def write(text: str) -> None:
    Path("headwater.toml").write_text(text)


def test_defaults_are_enough() -> None:
    settings = load()
    assert settings.prefix == "headwater"
    assert settings.kafka.bootstrap_servers == "127.0.0.1:9092"


def test_the_environment_wins_over_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    write('prefix = "file"\n[kafka]\nbootstrap_servers = "file:1"\nsession_timeout = 20\n')
    monkeypatch.setenv("HEADWATER_KAFKA__BOOTSTRAP_SERVERS", "env:1")
    settings = load()
    assert settings.prefix == "file"
    assert settings.kafka.bootstrap_servers == "env:1"
    assert settings.kafka.session_timeout == 20


def test_dot_env_is_read() -> None:
    Path(".env").write_text("HEADWATER_PREFIX=dotted\n")
    assert load().prefix == "dotted"


def test_client_properties_of_confluent_cloud_paste_in() -> None:
    write('[kafka.properties]\nsecurity.protocol = "SASL_SSL"\n"sasl.username" = "key"\n')
    assert load().kafka.properties == {"security.protocol": "SASL_SSL", "sasl.username": "key"}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("partition = 3", "partition: there is no such key, did you mean partitions?"),
        ("partitions = 0", "partitions: Input should be greater than or equal to 1"),
        ('[[sources]]\ntable = "a"', "sources.0.table"),
        ('[[flows]]\nname = "f"\nto = []', "flows.0.to"),
        ('[[flows]]\nname="f"\nto=[{sink="a"}]\n[[flows]]\nname="f"\nto=[{sink="b"}]', "more than one is named f"),
        ('[kafka.properties]\n"group.id" = "x"', "group.id: Headwater sets this itself"),
        ('prefix = "a b"', "prefix"),
        ("= 1", "headwater.toml"),
    ],
)
def test_a_mistake_is_one_line_that_names_the_key(text: str, words: str) -> None:
    write(text)
    with pytest.raises(UsageError) as caught:
        load()
    assert words in caught.value.message
    assert "\n" not in caught.value.message
    assert caught.value.exit_code == 2


def test_an_unknown_variable_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADWATER_KAFKA__BOOTSTRAP", "x")
    with pytest.raises(UsageError, match="unknown setting HEADWATER_KAFKA__BOOTSTRAP, did you mean"):
        load()


def test_a_named_file_must_be_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADWATER_CONFIG", "elsewhere.toml")
    with pytest.raises(UsageError, match=r"there is no file elsewhere\.toml"):
        load()


def test_an_unknown_variable_in_dot_env_is_an_error() -> None:
    Path(".env").write_text("HEADWATER_NONSENSE=1\n")
    with pytest.raises(UsageError, match=r"\.env: unknown setting HEADWATER_NONSENSE"):
        load()


def test_variables_of_other_programs_may_be_in_dot_env() -> None:
    Path(".env").write_text("OTHER=1\nHEADWATER_PREFIX=dotted\n")
    assert load().prefix == "dotted"


def test_json_that_does_not_parse_is_named_by_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADWATER_SOURCES", "[{")
    with pytest.raises(UsageError, match="environment: HEADWATER_SOURCES is not the JSON"):
        load()


def test_how_the_group_is_formed_is_said_in_one_place() -> None:
    with pytest.raises(ValidationError, match=r"group.protocol: set kafka.group_protocol instead"):
        KafkaSettings.model_validate({"properties": {"group.protocol": "consumer"}})
    with pytest.raises(ValidationError, match=r"group.instance.id: set kafka.instance_id instead"):
        KafkaSettings.model_validate({"properties": {"group.instance.id": "a"}})
    with pytest.raises(ValidationError, match="the broker sets it"):
        KafkaSettings.model_validate({"group_protocol": "consumer", "session_timeout": 6})
    assert "secret" not in repr(KafkaSettings.model_validate({"properties": {"sasl.password": "secret"}}))


def test_with_kip_848_no_time_outs_are_set_also_those_of_a_pasted_properties_file() -> None:
    pasted = {"session.timeout.ms": 45_000}
    kafka = {"group_protocol": "consumer", "instance_id": "a", "properties": pasted}
    conf = Worker(Settings.model_validate({"kafka": kafka})).transport.consumer_conf()
    assert (conf["group.protocol"], conf["group.remote.assignor"], conf["group.instance.id"]) == (
        "consumer",
        "range",
        "a",
    )
    assert not {"session.timeout.ms", "heartbeat.interval.ms", "partition.assignment.strategy"} & set(conf)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ('kind = "kinesis"\nstream = ["a"]', "sources.0.stream: there is no such key, did you mean streams?"),
        ('kind = "kinesis"', "sources.0.streams"),
        ('kind = "sqs"', "expected one of dynamodb-stream, kinesis"),
        ('kind = "kinesis"\nstreams = ["a"]\nevent_id_field = "id"', "only records of codec"),
    ],
)
def test_a_mistake_in_a_kinesis_source_is_named(source: str, words: str) -> None:
    write(f"[[sources]]\n{source}\n")
    with pytest.raises(UsageError) as caught:
        load()
    assert words in caught.value.message
