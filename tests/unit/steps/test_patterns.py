"""Patterns, operator by operator: the examples of AWS's documentation, and what lies beside them."""

from __future__ import annotations

import dataclasses
import itertools
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.compiled_flows import flow, sinks

from pipeline.steps.filter import PatternError, compile_pattern, fields
from pipeline.steps.project import Number, projection

EVENT = {
    "source": "aws.ec2",
    "time": "2017-10-02T18:43:48Z",
    "FileName": "picture.png",
    "FilePath": "dir/sub/picture.png",
    "service": "EventBridge",
    "LastName": "",
    "UserID": None,
    "ip": "10.0.0.17",
    "ip6": "2001:db8::1",
    "resources": ["arn:aws:ec2:one", "arn:aws:ec2:two"],
    "empty": [],
    "detail": {
        "state": "terminated",
        "c-count": 4,
        "x-limit": 301.8,
        "ok": True,
        "tags": [{"key": "a", "value": "1"}, {"key": "b", "value": "2"}],
    },
}


@pytest.mark.parametrize(
    ("pattern", "matches"),
    [
        # exact values
        ({"source": ["aws.ec2"], "detail": {"state": ["stopped", "terminated"]}}, True),
        ({"source": ["aws.s3"], "detail": {"state": ["terminated"]}}, False),
        ({"LastName": [""]}, True),
        ({"UserID": [None]}, True),
        ({"nothing": [None]}, False),
        ({"detail": {"c-count": [4]}}, True),
        ({"detail": {"c-count": [4.0]}}, False),
        ({"detail": {"c-count": ["4"]}}, False),
        ({"detail": {"ok": [True]}}, True),
        ({"detail": {"ok": [1]}}, False),
        ({"detail": ["terminated"]}, False),
        # arrays: one element is enough
        ({"resources": ["arn:aws:ec2:two"]}, True),
        ({"resources": [{"prefix": "arn:aws:s3"}]}, False),
        ({"detail": {"tags": {"key": ["a"], "value": ["1"]}}}, True),
        ({"detail": {"tags": {"key": ["a"], "value": ["2"]}}}, False),
        # prefix, suffix
        ({"time": [{"prefix": "2017-10-02"}]}, True),
        ({"service": [{"prefix": {"equals-ignore-case": "EVENTB"}}]}, True),
        ({"service": [{"prefix": "eventb"}]}, False),
        ({"FileName": [{"suffix": ".png"}]}, True),
        ({"FileName": [{"suffix": {"equals-ignore-case": ".PNG"}}]}, True),
        ({"detail": {"c-count": [{"prefix": "4"}]}}, False),
        # equals-ignore-case, wildcard
        ({"service": [{"equals-ignore-case": "eventbridge"}]}, True),
        ({"FilePath": [{"wildcard": "dir/*.png"}]}, True),
        ({"FilePath": [{"wildcard": "dir/*.jpg"}]}, False),
        ({"FilePath": [{"wildcard": "dir/\\*.png"}]}, False),
        # anything-but
        ({"detail": {"state": [{"anything-but": "initializing"}]}}, True),
        ({"detail": {"state": [{"anything-but": ["terminated", "stopped"]}]}}, False),
        ({"detail": {"x-limit": [{"anything-but": [100, 200, 300]}]}}, True),
        ({"detail": {"state": [{"anything-but": {"prefix": "term"}}]}}, False),
        ({"detail": {"state": [{"anything-but": {"prefix": ["init", "stop"]}}]}}, True),
        ({"FileName": [{"anything-but": {"suffix": ".png"}}]}, False),
        ({"detail": {"state": [{"anything-but": {"equals-ignore-case": ["TERMINATED"]}}]}}, False),
        ({"FilePath": [{"anything-but": {"wildcard": "*/sub/*"}}]}, False),
        ({"nothing": [{"anything-but": "x"}]}, False),
        ({"resources": [{"anything-but": "arn:aws:ec2:one"}]}, True),
        # numeric
        ({"detail": {"c-count": [{"numeric": [">", 0, "<=", 5]}]}}, True),
        ({"detail": {"c-count": [{"numeric": ["<", 4]}]}}, False),
        ({"detail": {"x-limit": [{"numeric": ["=", 301.8]}]}}, True),
        ({"detail": {"ok": [{"numeric": ["=", 1]}]}}, False),
        ({"detail": {"state": [{"numeric": [">", 0]}]}}, False),
        # cidr
        ({"ip": [{"cidr": "10.0.0.0/24"}]}, True),
        ({"ip": [{"cidr": "10.0.1.0/24"}]}, False),
        ({"ip6": [{"cidr": "2001:db8::/32"}]}, True),
        ({"source": [{"cidr": "10.0.0.0/24"}]}, False),
        # exists: of leaves only
        ({"detail": {"state": [{"exists": True}]}}, True),
        ({"detail": {"nothing": [{"exists": True}]}}, False),
        ({"detail": {"nothing": [{"exists": False}]}}, True),
        ({"nowhere": {"nothing": [{"exists": False}]}}, True),
        ({"UserID": [{"exists": True}]}, True),
        ({"detail": [{"exists": True}]}, False),
        ({"empty": [{"exists": True}]}, False),
        ({"source": [{"exists": False}, "aws.ec2"]}, True),
        # $or
        ({"$or": [{"source": ["aws.s3"]}, {"detail": {"c-count": [{"numeric": [">", 3]}]}}]}, True),
        ({"$or": [{"source": ["aws.s3"]}, {"source": ["aws.sqs"]}]}, False),
        ({"source": ["aws.s3"], "$or": [{"LastName": [""]}, {"UserID": [None]}]}, False),
        ({"detail": {"$or": [{"state": ["x"]}, {"ok": [True]}]}}, True),
    ],
    ids=json.dumps,
)
def test_operators(pattern: dict[str, Any], matches: bool) -> None:
    test = compile_pattern(pattern)
    assert test(EVENT) is matches
    assert test(projection(fields(pattern))(json.dumps(EVENT).encode())) is matches


@pytest.mark.parametrize(
    ("pattern", "matches"),
    [
        ({"NewImage": {"total": {"N": [{"numeric": [">", 5]}]}}}, True),
        ({"NewImage": {"total": {"N": [{"numeric": ["=", 10.5]}]}}}, True),
        ({"NewImage": {"total": {"N": [10.5]}}}, True),
        ({"NewImage": {"total": {"N": ["10.50"]}}}, True),
        ({"NewImage": {"total": {"N": ["10.5"]}}}, False),
        ({"NewImage": {"name": {"S": [{"numeric": [">", 5]}]}}}, False),
    ],
)
def test_numbers_of_dynamodb_are_numbers_where_a_flow_looks_at_them(pattern: dict[str, Any], matches: bool) -> None:
    event = {"NewImage": {"total": {"N": "10.50"}, "name": {"S": "7"}}}
    assert compile_pattern(pattern, dynamodb=True)(event) is matches
    if "numeric" in str(pattern):
        assert not compile_pattern(pattern)(event), "to AWS it is a string"


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        ([], "expected an object"),
        ({"$or": [{"a": [1]}]}, r"\$or: expected a list of at least two"),
        ({"$or": [1, 2]}, r"\$or: expected patterns, got 1"),
        ({"a": [{"prefix": 1}]}, "a: prefix: expected a string, got 1"),
        ({"a": [{"numeric": [">"]}]}, r"a: numeric: expected \[.>., 0\]"),
        ({"a": [{"numeric": ["!", 1]}]}, "a: numeric: expected one of ="),
        ({"a": [{"numeric": [">", 6e9]}]}, "up to 5,000,000,000, got"),
        ({"a": [{"numeric": [">", True]}]}, "and a number"),
        ({"a": [{"numeric": ["<", 5, ">", 0]}]}, "a: numeric: expected a range, the lower bound first"),
        ({"a": [{"numeric": [">", 5, "<", 0]}]}, "a: numeric: expected a range"),
        ({"a": [{"numeric": [">=", 5, "<=", 5]}]}, "a: numeric: expected a range"),
        ({"a": [{"numeric": ["=", 5, "=", 5]}]}, "a: numeric: expected a range"),
        ({"a": [{"numeric": [">", 0, ">", 5]}]}, "a: numeric: expected a range"),
        ({"a": [{"exists": "yes"}]}, "a: exists: expected true or false"),
        ({"a": [{"cidr": "10.0.0.0/99"}]}, "a: cidr: expected a block"),
        ({"a": [{"cidr": "10.0.0.1"}]}, "a: cidr: expected a block of addresses such as 10.0.0.0/24, got '10.0.0.1'"),
        ({"a": [{"anything-but": {"numeric": [1]}}]}, "a: anything-but: expected one of prefix"),
        ({"a": [{"anything-but": [None]}]}, "a: anything-but: expected only strings or only numbers"),
        ({"a": [{"anything-but": ["x", 1]}]}, "a: anything-but: expected only strings or only numbers"),
        ({"a": [{"anything-but": []}]}, "a: anything-but: expected only strings or only numbers"),
        ({"a": [{"anything-but": {"prefix": []}}]}, "a: anything-but: prefix: expected text that is not empty"),
        ({"a": [{"anything-but": {"suffix": ""}}]}, "a: anything-but: suffix: expected text that is not empty"),
        ({"a": [{"wildcard": "a**b"}]}, r"a: wildcard: 'a\*\*b': expected single"),
        ({"a": {"b": [{"wildcard": "a\\b"}]}}, r"a\.b: wildcard: .*: expected single"),
        ({"a": [{"anything-but": {"wildcard": "**"}}]}, "a: anything-but: wildcard: .*: expected single"),
        ({"a": [{"prefix": "x", "suffix": "y"}]}, "a: expected an object with one operator"),
        ({"a": [["x"]]}, "a: expected a string, number"),
    ],
    ids=str,
)
def test_what_cannot_be_compiled_is_named_with_its_place(pattern: Any, words: str) -> None:
    with pytest.raises(PatternError, match=words):
        compile_pattern(pattern)


def matches(pattern: dict[str, Any], event: str, *, dynamodb: bool = False) -> bool:
    """Say whether a pattern matches an event, given as JSON: by then it is known how numbers are written."""
    return compile_pattern(pattern, dynamodb=dynamodb)(projection(fields(pattern))(event.encode()))


@pytest.mark.parametrize("written", ["300", "300.0", "3.0e2", "3.0E2", "30e1"])
def test_exact_numbers_are_compared_as_they_are_written(written: str) -> None:
    assert matches({"a": [300]}, f'{{"a": {written}}}') is (written == "300")
    assert matches({"a": [300.0]}, f'{{"a": {written}}}') is (written == "300.0")
    assert matches({"a": [Number("3.0e2")]}, f'{{"a": {written}}}') is (written == "3.0e2")
    assert matches({"a": [{"numeric": ["=", 300]}]}, f'{{"a": {written}}}')
    assert not matches({"a": [{"prefix": "3"}]}, f'{{"a": {written}}}')
    assert matches({"N": [300]}, f'{{"N": "{written}"}}', dynamodb=True)


@pytest.mark.parametrize(
    ("written", "to_aws"),
    [
        ("5000000000", True),
        ("5.0e9", True),
        ("5000000001", False),
        ("5.1e9", False),
        ("0.123456", True),
        ("-122.41600944012424", True),
        ("0.1234567", True),
        ("1e99", False),
        ("1e999999999999999999", False),
    ],
)
def test_aws_compares_no_numbers_beyond_its_limits_but_flows_do(written: str, to_aws: bool) -> None:
    above = {"N": [{"numeric": [">", -500]}]}
    assert matches(above, f'{{"N": {written}}}') is to_aws
    for value in (written, f'"{written}"'):
        assert matches(above, f'{{"N": {value}}}', dynamodb=True)
    wide = {"a": [{"numeric": ["<", 6e9]}]}
    assert matches(wide, '{"a": 5999999999.9999999}', dynamodb=True)


@pytest.mark.parametrize("written", ["1e9999999999999999999999", '"Infinity"', '"NaN"', '"x"'])
def test_what_is_not_a_number_is_not_compared(written: str) -> None:
    assert not matches({"N": [{"numeric": [">", 0]}]}, f'{{"N": {written}}}', dynamodb=True)


# The example event and rules of AWS's documentation on patterns, by their meaning.
INSTANCE = {
    "version": "0",
    "source": "aws.ec2",
    "time": "2017-10-02T16:24:49Z",
    "detail": {"c-count": 5, "d-count": 3, "x-limit": 301.8, "source-ip": "10.0.0.33", "state": "running"},
}
COMPLEX: dict[str, Any] = {
    "time": [{"prefix": "2017-10-02"}],
    "detail": {
        "state": [{"anything-but": "initializing"}],
        "c-count": [{"numeric": [">", 0, "<=", 5]}],
        "d-count": [{"numeric": ["<", 10]}],
        "x-limit": [{"anything-but": [100, 200, 300]}],
        "source-ip": [{"cidr": "10.0.0.0/8"}],
    },
}
EITHER: dict[str, Any] = {
    "detail": {
        "$or": [
            {"c-count": [{"numeric": [">", 0, "<=", 5]}]},
            {"d-count": [{"numeric": ["<", 10]}]},
            {"x-limit": [{"numeric": ["=", 3.018e2]}]},
        ]
    }
}


def test_the_complex_example_of_aws() -> None:
    assert compile_pattern(COMPLEX)(INSTANCE)
    for name, wrong in {
        "state": "initializing",
        "c-count": 6,
        "d-count": 10,
        "x-limit": 200,
        "source-ip": "11.0.0.1",
    }.items():
        assert not compile_pattern(COMPLEX)({**INSTANCE, "detail": {**INSTANCE["detail"], name: wrong}}), name  # type: ignore[dict-item]
    assert not compile_pattern(COMPLEX)({**INSTANCE, "time": "2017-10-03T00:00:00Z"})


@pytest.mark.parametrize(
    ("detail", "told"),
    [
        ({"c-count": 5, "d-count": 10, "x-limit": 1}, True),
        ({"c-count": 6, "d-count": 9, "x-limit": 1}, True),
        ({"c-count": 6, "d-count": 10, "x-limit": 301.8}, True),
        ({"c-count": 6, "d-count": 10, "x-limit": 301.81}, False),
        ({"c-count": "5", "d-count": "9"}, False),
        ({}, False),
    ],
)
def test_one_way_of_or_is_enough(detail: dict[str, Any], told: bool) -> None:
    assert compile_pattern(EITHER)({"detail": detail}) is told


EXAMPLES: list[tuple[dict[str, Any], dict[str, Any], bool]] = [
    # exists looks at leaves: what has fields of its own is none
    ({"detail": {"c-count": [{"exists": False}]}}, {"detail": {"c-count": {"c1": 100}}}, True),
    ({"detail": {"c-count": [{"exists": True}]}}, {"detail": {"c-count": {"c1": 100}}}, False),
    ({"detail": {"c-count": [{"exists": False}]}}, {"detail": {"c-count": 5}}, False),
    # in an array a field is there when an element has it, and absent only beside what else was found
    ({"a": {"b": [{"exists": False}]}}, {"a": [{"b": 1}, {"c": 2}]}, False),
    ({"a": {"b": [{"exists": False}]}}, {"a": [{"c": 1}, {"c": 2}]}, True),
    ({"a": {"b": [{"exists": False}], "c": [2]}}, {"a": [{"b": 1}, {"c": 2}]}, True),
    ({"a": {"b": [{"exists": False}], "c": [2]}}, {"a": [{"b": 1, "c": 2}, {"c": 3}]}, False),
    ({"a": {"b": [{"exists": False}, 2]}}, {"a": [{"b": 1}, {"b": 2}]}, True),
    ({"a": {"b": [{"exists": False}, 2]}}, {"a": [{"b": 1}, {"c": 2}]}, False),
    ({"a": {"b": {"c": [{"exists": False}]}}}, {"a": [{"b": [{"c": 1}]}, {"b": [{}]}]}, False),
    ({"a": {"$or": [{"b": [{"exists": False}]}, {"c": [2]}]}}, {"a": [{"b": 1}, {"c": 2}]}, True),
    ({"a": {"$or": [{"b": [{"exists": False}]}, {"c": [3]}]}}, {"a": [{"b": 1}, {"c": 2}]}, False),
    ({"a": {"b": [{"exists": False}]}, "z": [1]}, {"a": [{"b": 1}, {}], "z": 1}, False),
    ({"a": [{"exists": False}]}, {"a": []}, True),
    ({"a": [{"exists": False}]}, {"a": [1]}, False),
    # elements are told apart: Anna is not Mr Jones
    (
        {"who": {"first": ["Anna"], "last": ["Smith"]}},
        {"who": [{"first": "Anna", "last": "Smith"}, {"last": "Jones"}]},
        True,
    ),
    (
        {"who": {"first": ["Anna"], "last": ["Jones"]}},
        {"who": [{"first": "Anna", "last": "Smith"}, {"last": "Jones"}]},
        False,
    ),
    # wildcard, and the characters themselves
    ({"path": [{"wildcard": "dir/*"}]}, {"path": "dir/"}, True),
    ({"path": [{"wildcard": "*/lib/*"}]}, {"path": "usr/lib/x"}, True),
    ({"path": [{"wildcard": "a*a"}]}, {"path": "a"}, False),
    ({"path": [{"wildcard": "\\*.png"}]}, {"path": "*.png"}, True),
    ({"path": [{"wildcard": "\\*.png"}]}, {"path": "x.png"}, False),
    ({"path": [{"wildcard": "C:\\\\*"}]}, {"path": "C:\\x"}, True),
    ({"path": [{"wildcard": "C:\\\\*"}]}, {"path": "C:/x"}, False),
    ({"path": [{"wildcard": "\\\\\\*"}]}, {"path": "\\*"}, True),
    ({"path": [{"wildcard": "plain"}]}, {"path": "plain"}, True),
    ({"path": [{"wildcard": "5*"}]}, {"path": 55}, False),
    # any case
    ({"state": [{"equals-ignore-case": "Running"}]}, {"state": "rUNNING"}, True),
    ({"state": [{"equals-ignore-case": "Running"}]}, {"state": "runnin"}, False),
    ({"state": [{"anything-but": {"equals-ignore-case": ["Initializing", "Stopped"]}}]}, {"state": "STOPPED"}, False),
    ({"state": [{"anything-but": {"equals-ignore-case": ["Initializing", "Stopped"]}}]}, {"state": "running"}, True),
    # anything but what begins, ends or looks so
    ({"region": [{"anything-but": {"prefix": "us-"}}]}, {"region": "us-east-1"}, False),
    ({"region": [{"anything-but": {"prefix": "us-"}}]}, {"region": "eu-west-1"}, True),
    ({"file": [{"anything-but": {"suffix": [".png", ".gif"]}}]}, {"file": "a.gif"}, False),
    ({"file": [{"anything-but": {"suffix": [".png", ".gif"]}}]}, {"file": "a.txt"}, True),
    ({"path": [{"anything-but": {"wildcard": ["*/lib/*", "*/bin/*"]}}]}, {"path": "usr/bin/x"}, False),
    ({"path": [{"anything-but": {"wildcard": ["*/lib/*", "*/bin/*"]}}]}, {"path": "usr/share/x"}, True),
    # addresses
    ({"ip": [{"cidr": "10.0.0.0/24"}]}, {"ip": "10.0.0.255"}, True),
    ({"ip": [{"cidr": "10.0.0.0/24"}]}, {"ip": "10.0.1.0"}, False),
    ({"ip": [{"cidr": "2001:db8::/64"}]}, {"ip": "2001:db8::ffff"}, True),
    ({"ip": [{"cidr": "2001:db8::/64"}]}, {"ip": "2001:db8:0:1::1"}, False),
    ({"ip": [{"cidr": "0.0.0.0/0"}]}, {"ip": "::1"}, False),
    # null is not the empty string, and neither is absent
    ({"user": [None]}, {"user": ""}, False),
    ({"user": [""]}, {"user": None}, False),
    ({"user": [{"exists": False}]}, {"user": None}, False),
]


@pytest.mark.parametrize(("pattern", "event", "told"), EXAMPLES, ids=json.dumps)
def test_examples_of_what_aws_documents(pattern: dict[str, Any], event: dict[str, Any], told: bool) -> None:
    assert compile_pattern(pattern)(event) is told
    assert matches(pattern, json.dumps(event)) is told


RECORD = {
    "eventID": "1",
    "eventName": "INSERT",
    "dynamodb": {
        "Keys": {"CustomerName": {"S": "Any Company"}},
        "NewImage": {
            "CustomerName": {"S": "Any Company"},
            "AccountManager": {"S": "Pat"},
            "PaymentTerms": {"S": "60 days"},
            "Age": {"N": "30"},
        },
    },
}


@pytest.mark.parametrize(
    ("pattern", "told"),
    [
        ({"dynamodb": {"Keys": {"CustomerName": {"S": ["Any Company"]}}}}, True),
        (
            {"dynamodb": {"NewImage": {"AccountManager": {"S": ["Pat", "Sam"]}, "PaymentTerms": {"S": ["60 days"]}}}},
            True,
        ),
        ({"dynamodb": {"NewImage": {"AccountManager": {"S": ["Pat"]}, "PaymentTerms": {"S": ["30 days"]}}}}, False),
        ({"dynamodb": {"NewImage": {"AccountManager": {"S": [{"exists": True}]}}}}, True),
        # Not {"AccountManager": [{"exists": true}]}: it has fields of its own.
        ({"dynamodb": {"NewImage": {"AccountManager": [{"exists": True}]}}}, False),
        ({"dynamodb": {"NewImage": {"Rating": {"N": [{"exists": False}]}}}}, True),
        ({"dynamodb": {"OldImage": {"Age": {"N": [{"exists": False}]}}}}, True),
        ({"eventName": ["INSERT"], "dynamodb": {"NewImage": {"Age": {"N": ["30"]}}}}, True),
        # A string to AWS, a number to a flow.
        ({"dynamodb": {"NewImage": {"Age": {"N": [{"numeric": [">", 18]}]}}}}, "flow"),
        ({"dynamodb": {"NewImage": {"Age": {"N": [{"anything-but": [30]}]}}}}, "aws"),
        ({"dynamodb": {"NewImage": {"Age": {"N": [{"anything-but": ["30"]}]}}}}, False),
    ],
    ids=str,
)
def test_filters_as_lambda_documents_them_for_dynamodb(pattern: dict[str, Any], told: bool | str) -> None:
    assert compile_pattern(pattern)(RECORD) is (told in {True, "aws"})
    assert compile_pattern(pattern, dynamodb=True)(RECORD) is (told in {True, "flow"})


ARN = "arn:aws:dynamodb:eu-west-1:1:table/orders/stream/2026"
entries_of_text = st.lists(
    st.sampled_from(
        ["INSERT", "aws:kinesis", "orders", "", {"exists": False}, {"exists": True}, {"anything-but": "aws:dynamodb"}]
    ),
    min_size=1,
    max_size=2,
)
scalars = st.sampled_from(["5", "5.0", "x", "", 5, 6, 5.0, 1e300, True, False, None])
excluded = st.lists(st.sampled_from(["5", "x", ""]), min_size=1) | st.lists(st.sampled_from([5, 5.0, 6]), min_size=1)


@given(scalars, excluded, st.sampled_from("NS"), st.booleans())
def test_anything_but_says_the_contrary_of_the_values_themselves(
    value: Any, wanted: list[Any], name: str, flow: bool
) -> None:
    exact = compile_pattern({name: wanted}, dynamodb=flow)
    other = compile_pattern({name: [{"anything-but": wanted}]}, dynamodb=flow)
    assert other({name: value}) is not exact({name: value})
    assert not other({}), "there is no value"


@given(
    st.dictionaries(
        st.sampled_from(["eventName", "eventSource", "tableName", "eventSourceARN"]), entries_of_text, min_size=1
    ),
    st.sampled_from(["INSERT", "MODIFY"]),
    st.fixed_dictionaries({}, optional={"eventSource": st.sampled_from(["aws:dynamodb", "aws:kinesis"])}),
    st.sampled_from([{"tableName": "orders"}, {"eventSourceARN": ARN}, {"tableName": "", "eventSourceARN": ARN}]),
)
def test_what_the_change_alone_tells_the_whole_pattern_says(
    where: dict[str, Any], name: str, source: dict[str, str], table: dict[str, str]
) -> None:
    value = json.dumps({"eventID": "e", "eventName": name, "dynamodb": {"Keys": {}}, **source, **table}).encode()
    compiled = flow(where=where)
    assert sinks(compiled, value) == (["s"] if matches(where, value.decode(), dynamodb=True) else [])


def test_what_the_change_alone_tells_is_not_decoded() -> None:
    compiled = flow(where={"dynamodb": {"NewImage": {"status": {"S": ["paid"]}}}, "eventName": ["REMOVE"]})
    looked: list[bytes] = []
    watched = dataclasses.replace(compiled, look=looked.append, where=lambda value, change, found: False)
    record = {"eventID": "e", "tableName": "orders", "dynamodb": {"Keys": {}}}
    for name in ("INSERT", "REMOVE"):
        assert sinks(watched, json.dumps({**record, "eventName": name}).encode()) == []
    assert [json.loads(value)["eventName"] for value in looked] == ["REMOVE"]


def held(wanted: dict[str, list[Any]], elements: list[dict[str, int]]) -> bool:
    """Say what a pattern of values, absences or both says of an array: by trying for each field which of them it is."""
    ways = [[(name, entry) for entry in entries] for name, entries in wanted.items()]
    for way in itertools.product(*ways):
        values = [(name, entry) for name, entry in way if isinstance(entry, int)]
        absent = [name for name, entry in way if not isinstance(entry, int)]
        if values:
            meant = [element for element in elements if all(element.get(name) == value for name, value in values)]
            if any(not one.keys() & absent for one in meant):
                return True
        elif not any(element.keys() & absent for element in elements):
            return True
    return False


@given(
    st.dictionaries(
        st.sampled_from("xyz"), st.lists(st.sampled_from([1, 2, {"exists": False}]), min_size=1, max_size=2), min_size=1
    ),
    st.lists(st.dictionaries(st.sampled_from("xyz"), st.sampled_from([1, 2]), max_size=3), max_size=3),
)
def test_a_field_is_absent_from_an_array_when_no_element_that_is_meant_has_it(
    wanted: dict[str, list[Any]], elements: list[dict[str, int]]
) -> None:
    assert compile_pattern({"a": wanted})({"a": elements}) is held(wanted, elements)
    assert compile_pattern({"a": wanted})({"a": [elements]}) is held(wanted, elements), "arrays in arrays are one"


def like(pattern: str, value: str) -> bool:
    """Say what a wildcard says, by the table of which beginnings match which."""
    reached = [True] + [False] * len(value)
    for char in pattern:
        if char == "*":
            reached = [any(reached[: n + 1]) for n in range(len(reached))]
        else:
            reached = [n > 0 and reached[n - 1] and value[n - 1] == char for n in range(len(reached))]
    return reached[-1]


@given(st.text("ab*", max_size=8).filter(lambda text: "**" not in text), st.text("ab", max_size=12))
def test_a_wildcard_matches_what_it_looks_like(pattern: str, value: str) -> None:
    assert compile_pattern({"a": [{"wildcard": pattern}]})({"a": value}) is like(pattern, value)


@pytest.mark.timeout(5)
def test_a_wildcard_does_not_try_all_ways_to_match() -> None:
    assert not compile_pattern({"a": [{"wildcard": "*a*a*a*a*a*a*b"}]})({"a": "a" * 100_000})


values = st.recursive(
    st.sampled_from(["a", "b", "", 1, 2, 1.5, True, None]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("xyz"), inner, max_size=3),
    max_leaves=8,
)
entries = st.sampled_from(
    ["a", 1, True, None, {"exists": True}, {"exists": False}, {"prefix": "a"}, {"anything-but": "a"}]
)
patterns = st.recursive(
    st.lists(entries, min_size=1, max_size=3),
    lambda inner: st.dictionaries(st.sampled_from("xyz"), inner, min_size=1, max_size=3),
    max_leaves=5,
).filter(lambda pattern: isinstance(pattern, dict))


@given(patterns, st.dictionaries(st.sampled_from("xyz"), values, max_size=3))
def test_what_is_projected_matches_as_the_whole_does(pattern: Any, event: dict[str, Any]) -> None:
    test = compile_pattern(pattern)
    assert test(projection(fields(pattern))(json.dumps(event).encode())) is test(event)
