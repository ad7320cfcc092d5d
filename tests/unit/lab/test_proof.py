from __future__ import annotations

import time
from dataclasses import replace

import orjson
import pytest

from headwater.lab.proof import Actual, Item, ProofExpected, Truth, compare, item_key, json_item, normal_number
from models.change import Op, decode

DIGITS = "12345678901234567890123456789012345678"


def image(version: int, **attributes: dict[str, object]) -> Item:
    return {"id": {"S": "a"}, "version": {"N": str(version)}, **attributes}


def expected(op: Op, new: Item | None, old: Item | None, name: str = "a", table: str = "orders") -> ProofExpected:
    return ProofExpected(table, item_key({"id": {"S": name}}), op, new, old)


LIFE = [
    expected("c", image(1), None),
    expected("u", image(2, big={"N": DIGITS}, seal={"B": b"\x00\xff"}, tags={"SS": ["x", "y"]}), image(1)),
    expected("u", image(3), image(2, big={"N": DIGITS}, seal={"B": b"\x00\xff"}, tags={"SS": ["x", "y"]})),
    expected("d", None, image(3)),
    expected("c", image(4), None),
]
OTHER = [expected("c", image(1), None, name="b")]


def actual(change: ProofExpected, event_id: str) -> Actual:
    def dump(item: Item | None) -> bytes | None:
        return None if item is None else orjson.dumps(json_item(item))

    return change.table, change.key, event_id, change.op, dump(change.new), dump(change.old)


def delivered() -> list[Actual]:
    return [actual(change, f"event-{number}") for number, change in enumerate([*LIFE, *OTHER])]


def test_a_faithful_delivery_is_ok() -> None:
    verdict = compare(Truth([*LIFE, *OTHER]), delivered())

    assert verdict.ok
    assert (verdict.written, verdict.seen, verdict.examples) == (6, 6, ())


def test_items_may_come_in_any_order_among_each_other() -> None:
    came = delivered()

    assert compare(Truth([*LIFE, *OTHER]), [came[5], *came[:5]]).ok


@pytest.mark.parametrize("missing", range(6))
def test_any_lost_change_is_found(missing: int) -> None:
    came = delivered()
    del came[missing]

    verdict = compare(Truth([*LIFE, *OTHER]), came)

    assert not verdict.ok
    assert (verdict.lost, verdict.duplicated, verdict.out_of_order, verdict.altered) == (1, 0, 0, 0)
    assert verdict.examples[0].startswith("lost: orders")


def test_nothing_delivered_is_all_lost() -> None:
    verdict = compare(Truth([*LIFE, *OTHER]), [])

    assert (verdict.lost, verdict.seen, verdict.ok) == (6, 0, False)


def test_a_change_delivered_twice_is_found() -> None:
    came = delivered()

    verdict = compare(Truth([*LIFE, *OTHER]), [*came, came[1]])

    assert not verdict.ok
    assert (verdict.lost, verdict.duplicated, verdict.out_of_order) == (0, 1, 0)


def test_a_change_delivered_twice_under_another_event_id_is_found() -> None:
    came = delivered()
    again = (*came[1][:2], "another", *came[1][3:])

    assert compare(Truth([*LIFE, *OTHER]), [*came, again]).duplicated == 1


def test_an_event_id_given_to_two_changes_of_a_table_is_found() -> None:
    came = delivered()
    came[5] = (*came[5][:2], "event-0", *came[5][3:])

    verdict = compare(Truth([*LIFE, *OTHER]), came)

    assert (verdict.duplicated, verdict.lost) == (1, 0)


def test_the_same_event_id_in_two_tables_is_not_a_duplicate() -> None:
    changes = [expected("c", image(1), None), expected("c", image(1), None, table="customers")]

    assert compare(Truth(changes), [actual(change, "same") for change in changes]).ok


def test_changes_of_an_item_that_come_after_a_later_one_are_counted() -> None:
    came = delivered()

    verdict = compare(Truth([*LIFE, *OTHER]), [came[2], came[0], came[1], *came[3:]])

    assert not verdict.ok
    assert (verdict.out_of_order, verdict.lost, verdict.duplicated) == (2, 0, 0)


def test_a_delete_before_the_change_that_it_followed_is_out_of_order() -> None:
    came = delivered()
    came[2], came[3] = came[3], came[2]

    assert compare(Truth([*LIFE, *OTHER]), came).out_of_order == 1


@pytest.mark.parametrize(
    "attribute",
    [
        {"big": {"N": DIGITS[:-1] + "9"}},
        {"seal": {"B": "AP4="}},
        {"tags": {"SS": ["x"]}},
        {"tags": {"L": [{"S": "x"}, {"S": "y"}]}},
        {"tags": {}},
        {"more": {"NULL": True}},
    ],
)
def test_an_altered_image_is_found(attribute: Item) -> None:
    came = delivered()
    came[1] = (*came[1][:4], orjson.dumps({**json_item(LIFE[1].new or {}), **attribute}), came[1][5])

    verdict = compare(Truth([*LIFE, *OTHER]), came)

    assert not verdict.ok
    assert (verdict.altered, verdict.lost, verdict.unexpected) == (1, 0, 0)


def test_an_old_image_that_is_missing_is_an_alteration() -> None:
    came = delivered()
    came[1] = (*came[1][:5], None)

    assert compare(Truth([*LIFE, *OTHER]), came).altered == 1


def test_another_op_is_an_alteration() -> None:
    came = delivered()
    came[1] = (*came[1][:3], "c", *came[1][4:])

    assert compare(Truth([*LIFE, *OTHER]), came).altered == 1


def test_other_spellings_of_equal_values_are_not_alterations() -> None:
    came = delivered()
    spelled = {**json_item(LIFE[1].new or {}), "version": {"N": "2.0"}, "tags": {"SS": ["y", "x"]}}
    came[1] = (*came[1][:4], orjson.dumps(spelled), came[1][5])

    assert compare(Truth([*LIFE, *OTHER]), came).ok


def test_a_change_that_was_never_written_is_found() -> None:
    stranger = actual(expected("c", image(1), None, name="stranger"), "x")
    unversioned = actual(expected("c", {"id": {"S": "a"}}, None), "y")

    verdict = compare(Truth([*LIFE, *OTHER]), [*delivered(), stranger, unversioned])

    assert not verdict.ok
    assert (verdict.unexpected, verdict.lost, verdict.duplicated) == (2, 0, 0)


def test_a_sink_is_compared_with_the_part_that_its_flow_lets_through() -> None:
    part = Truth([*LIFE, *OTHER]).where(lambda change: change.op != "d")
    came = delivered()

    assert len(part) == 5
    assert compare(part, [*came[:3], *came[4:]]).ok
    assert compare(part, came).unexpected == 1


def test_truth_is_each_items_changes_in_order() -> None:
    truth = Truth([LIFE[0], OTHER[0], *LIFE[1:]])

    assert list(truth) == [*LIFE, *OTHER]
    assert len(truth) == 6
    assert [change.version for change in truth] == [1, 2, 3, 3, 4, 1]


def test_examples_are_few_however_many_faults_there_are() -> None:
    many = [replace(change, key=item_key({"id": {"S": str(n)}})) for n in range(50) for change in LIFE]

    verdict = compare(Truth(many), [])

    assert verdict.lost == 250
    assert len(verdict.examples) == 10


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("1", "1"),
        ("1.0", "1"),
        ("-01.50", "-1.5"),
        ("0.00", "0"),
        ("-0", "0"),
        ("1E+2", "100"),
        ("1.5e-3", "0.0015"),
        (f"{DIGITS}0", f"{DIGITS}0"),
        (DIGITS, DIGITS),
    ],
)
def test_numbers_are_spelled_as_dynamodb_spells_them(text: str, normal: str) -> None:
    assert normal_number(text) == normal


def test_the_key_of_the_truth_is_the_key_of_the_stream_record() -> None:
    record = (
        b'{"eventID":"1","eventName":"INSERT","eventSourceARN":"arn:aws:dynamodb:r:1:table/orders/stream/x",'
        b'"dynamodb":{"Keys": {"order_id": {"B": "AP8="}, "line": {"N": "1"}, "name": {"S": "\\u5ba2 \\ud83e\\udd8a"}}}}'
    )
    keys = orjson.loads(bytes(decode(record).body.keys))

    from_stream = item_key({**keys, "order_id": {"B": b"\x00\xff"}})

    assert from_stream == item_key({"name": {"S": "客 🦊"}, "line": {"N": "1.0"}, "order_id": {"B": b"\x00\xff"}})
    assert from_stream == '{"line":{"N":"1"},"name":{"S":"客 🦊"},"order_id":{"B":"AP8="}}'.encode()


def test_the_comparison_is_linear_in_time() -> None:
    many = [replace(change, key=item_key({"id": {"S": str(n)}})) for n in range(4_000) for change in LIFE]
    came = [actual(change, str(number)) for number, change in enumerate(many)]

    started = time.process_time()
    verdict = compare(Truth(many), came)

    assert verdict.ok
    # Twenty times what it takes: a quadratic comparison of 20,000 would take minutes.
    assert time.process_time() - started < 10
