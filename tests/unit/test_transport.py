"""The parts of the transport that need no broker."""

from __future__ import annotations

import struct

from confluent_kafka import Consumer
from faust.types import TP

from pipeline.state.seen import compact
from pipeline.transport import backlog as backlogs
from pipeline.transport.backlog import Backlog
from pipeline.transport.producer import partition_of
from pipeline.transport.reader import is_member

A, B = TP("t", 0), TP("t", 1)


def everything(_: TP) -> bool:
    return True


def test_partitions_take_turns() -> None:
    backlog = Backlog()
    backlog.add(A, range(3))
    backlog.add(B, range(3))
    order = []
    while (tp := backlog.next(everything)) is not None:
        order.append(tp)
        backlog.take(tp, 1)
    assert order == [A, B, A, B, A, B]


def test_to_ask_whether_there_is_work_takes_nobodys_turn() -> None:
    backlog = Backlog()
    backlog.add(A, [1])
    backlog.add(B, [1])
    assert backlog.next(everything) == A
    assert backlog.any(everything)
    assert backlog.next(everything) == B


def test_what_is_given_back_comes_first_and_in_order() -> None:
    backlog = Backlog()
    backlog.add(A, [1, 2, 3, 4])
    taken = backlog.take(A, 2)
    backlog.give_back(A, taken)
    assert backlog.take(A, 10) == [1, 2, 3, 4]


def test_a_held_partition_waits_for_all_its_holders_and_the_others_run() -> None:
    backlog = Backlog()
    backlog.add(A, [1])
    backlog.add(B, [1])
    backlog.held[A] = {"seen"}
    assert [backlog.next(everything) for _ in range(2)] == [B, B]


def test_the_reader_slows_down_above_the_bound_and_a_long_queue_is_paused() -> None:
    backlog = Backlog()
    backlog.add(A, range(backlogs.FULL + 1))
    backlog.measure()
    assert backlog.full
    backlog.add(A, range(backlogs.PARTITION_FULL))
    backlog.measure()
    assert backlog.standing == {A}
    full: bool = backlog.full
    assert not full, "a paused partition does not slow the others down"
    backlog.take(A, backlogs.PARTITION_FULL)
    backlog.measure()
    assert backlog.standing == frozenset()


def test_group_metadata_is_laid_out_as_the_fence_expects() -> None:
    """The bytes are opaque to the API: an upgrade of the library must not change them unseen."""
    consumer = Consumer({"bootstrap.servers": "127.0.0.1:1", "group.id": "the-group", "log_level": 0})
    metadata = consumer.consumer_group_metadata()
    consumer.close()
    assert metadata.startswith(b"CGMDv2:" + struct.pack("=i", -1) + b"the-group\0\0")
    assert not is_member(metadata), "a client that is no member holds generation -1, which the broker would accept"


def test_a_membership_has_a_generation_and_a_name() -> None:
    def metadata(generation: int, member: bytes) -> bytes:
        return b"CGMDv2:" + struct.pack("=i", generation) + b"g\0" + member + b"\0\1"

    assert is_member(metadata(7, b"member-1"))
    assert not is_member(metadata(-1, b"member-1"))
    assert not is_member(metadata(7, b""))


def test_keys_go_to_the_partitions_that_java_clients_choose() -> None:
    # murmur2 of these in Apache Kafka's own tests: UtilsTest.testMurmur2.
    assert [partition_of(key, 1 << 31) for key in (b"21", b"foobar", b"a-little-bit-long-string")] == [
        -973932308 & 0x7FFFFFFF,
        -790332482 & 0x7FFFFFFF,
        -985981536 & 0x7FFFFFFF,
    ]


def test_event_ids_of_any_form_keep_apart() -> None:
    aws = b"c4ca4238a0b923820dcc509a6f75849b"
    forms = [aws, aws.upper(), b"d2f91752-db69-40ed-9fd5-c6d935759cc7", bytes.fromhex(aws.decode()), b"1", b"x" * 32]
    assert len({compact(form) for form in forms}) == len(forms)
    assert len(compact(aws)) == 16
