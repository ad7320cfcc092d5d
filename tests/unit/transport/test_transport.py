"""The parts of the transport that need no broker."""

from __future__ import annotations

import struct

from confluent_kafka import Consumer

from pipeline.state.seen import compact_ids
from pipeline.transport.partition import partition_of
from pipeline.transport.reader import is_member


def test_invariant_3_group_metadata_is_laid_out_as_the_fence_expects() -> None:
    """The bytes are opaque to the API: an upgrade of the library must not change them unseen."""
    consumer = Consumer({"bootstrap.servers": "127.0.0.1:1", "group.id": "the-group", "log_level": 0})
    metadata = consumer.consumer_group_metadata()
    consumer.close()
    assert metadata.startswith(b"CGMDv2:" + struct.pack("=i", -1) + b"the-group\0\0")
    assert not is_member(metadata), "a client that is no member holds generation -1, which the broker would accept"


def test_invariant_3_a_membership_has_a_generation_and_a_name() -> None:
    def metadata(generation: int, member: bytes) -> bytes:
        return b"CGMDv2:" + struct.pack("=i", generation) + b"g\0" + member + b"\0\1"

    assert is_member(metadata(7, b"member-1"))
    assert not is_member(metadata(-1, b"member-1"))
    assert not is_member(metadata(0, b"member-1")), "a KIP-848 member that is about to join"
    assert not is_member(metadata(7, b""))


def test_faust_bug_keys_go_to_the_partitions_that_java_clients_choose() -> None:
    # murmur2 of these in Apache Kafka's own tests: UtilsTest.testMurmur2.
    assert [partition_of(key, 1 << 31) for key in (b"21", b"foobar", b"a-little-bit-long-string")] == [
        -973932308 & 0x7FFFFFFF,
        -790332482 & 0x7FFFFFFF,
        -985981536 & 0x7FFFFFFF,
    ]


def test_event_ids_of_any_form_keep_apart() -> None:
    aws = "c4ca4238a0b923820dcc509a6f75849b"
    forms = [
        aws,
        aws.upper(),
        "d2f91752-db69-40ed-9fd5-c6d935759cc7",
        aws[:30],
        aws + "00",
        "1",
        "x" * 32,
        "\u00e9" * 32,
    ]
    assert len(set(compact_ids(forms))) == len(forms)
    for form in forms:
        assert compact_ids([form]) == compact_ids([form, aws])[:1], "an ID has one form, whatever stands beside it"
    assert [len(compact_id) for compact_id in compact_ids([aws, aws.upper()])] == [16, 17]
    assert compact_ids([]) == []
