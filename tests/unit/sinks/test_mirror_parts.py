"""What of the mirror needs no cluster: which topics are copied, settings, and what a position says of refused records."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from pipeline.errors import UsageError
from pipeline.limits import MESSAGE_MAX
from pipeline.settings.sinks import MirrorSettings
from pipeline.sinks.mirror.other_cluster import MirrorPosition, metadata_of, position_of
from pipeline.sinks.mirror.sink import copied
from pipeline.transport.logs import UNKNOWN, Log

SINKS = {"orders": "headwater.sink.orders", "customers": "headwater.sink.customers"}


def mirror(**settings: object) -> MirrorSettings:
    return MirrorSettings.model_validate({"bootstrap_servers": "other:9092", **settings})


def test_all_sinks_are_copied_unless_some_are_named() -> None:
    assert set(copied(mirror(), SINKS, 4)) == set(SINKS.values())
    assert set(copied(mirror(sinks=["orders"]), SINKS, 4)) == {"headwater.sink.orders"}


def test_a_topic_there_has_as_many_partitions_and_takes_as_large_records() -> None:
    (there,) = copied(mirror(sinks=["orders"], topic="from-eu.{sink}"), SINKS, 12).values()
    assert (there.name, there.partitions) == ("from-eu.orders", 12)
    assert there.config["max.message.bytes"] == str(MESSAGE_MAX)
    assert there.config["retention.ms"] == "-1"


def test_a_sink_that_no_flow_has_is_refused() -> None:
    with pytest.raises(UsageError, match="no flow has a sink others") as caught:
        copied(mirror(sinks=["orders", "others"]), SINKS, 4)
    assert caught.value.hint == "sinks of [[mirrors]]: orders, customers"


def test_a_mirror_without_anything_to_copy_is_refused() -> None:
    with pytest.raises(UsageError, match="no flow has a sink to copy"):
        copied(mirror(), {}, 4)


def test_two_topics_do_not_become_one() -> None:
    with pytest.raises(UsageError, match="several topics one"):
        copied(mirror(topic="all"), SINKS, 4)
    assert len(copied(mirror(topic="all", sinks=["orders"]), SINKS, 4)) == 1


def test_properties_are_written_as_in_a_properties_file_and_ours_are_refused() -> None:
    found = mirror(properties={"sasl": {"username": "u"}, "security.protocol": "SASL_SSL"})
    assert found.conf == {"bootstrap.servers": "other:9092", "sasl.username": "u", "security.protocol": "SASL_SSL"}
    for name in ("transactional.id", "isolation.level", "group.id"):
        with pytest.raises(ValidationError, match="Headwater sets this itself"):
            mirror(properties={name: "x"})


def test_a_secret_may_be_in_a_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    found = mirror(properties={"sasl.password": "env:THERE_SECRET"})
    with pytest.raises(UsageError, match="the variable THERE_SECRET is not set"):
        _ = found.conf
    monkeypatch.setenv("THERE_SECRET", "s3cret")
    assert found.conf["sasl.password"] == "s3cret"
    assert "s3cret" not in repr(found)


HERE, THERE = Log("6LOg2QcVTjaWiUMaXmJpGA", "9zrC-LVLQ_iJHcE8wDcuEw"), Log("lkc-7x", "Bq2p0XvMR_-nZ1s7tQxY3w")


def test_a_position_names_what_it_leaves_out_and_the_logs_it_is_between() -> None:
    position = MirrorPosition(200, frozenset({30, 7, 100}), HERE, THERE)
    assert position_of(200, metadata_of(position)) == position
    most = MirrorPosition(2**63 - 1, frozenset(2**63 - 1 - n for n in range(100)), HERE, THERE)
    assert len(metadata_of(most)) < 4096  # offset.metadata.max.bytes


def test_a_position_that_was_set_by_hand_names_no_log() -> None:
    assert position_of(5, None) == position_of(5, "") == position_of(5, "set by hand") == MirrorPosition(5)
    assert position_of(5, None).log == UNKNOWN


def test_a_position_of_the_version_before_is_read_and_that_version_reads_ours() -> None:
    assert position_of(101, "7,30,100") == MirrorPosition(101, frozenset({7, 30, 100}))
    ours = metadata_of(MirrorPosition(101, frozenset({7, 30, 100}), HERE, THERE))
    assert frozenset(int(word) for word in ours.split(",") if word.isdecimal()) == {7, 30, 100}  # as it reads it
