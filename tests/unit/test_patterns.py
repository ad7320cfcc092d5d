"""Patterns, operator by operator: the examples of AWS's documentation, and what lies beside them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.steps.filter import PatternError, compile_pattern, fields
from pipeline.steps.project import projection

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
        ({"a": [{"numeric": [">", 6e9]}]}, "up to 5,000,000,000"),
        ({"a": [{"exists": "yes"}]}, "a: exists: expected true or false"),
        ({"a": [{"cidr": "10.0.0.0/99"}]}, "a: cidr: expected a block"),
        ({"a": [{"anything-but": {"numeric": [1]}}]}, "a: anything-but: expected one of prefix"),
        ({"a": [{"anything-but": [None]}]}, "a: anything-but: expected strings or numbers"),
        ({"a": [{"wildcard": "a**b"}]}, "expected single"),
        ({"a": [{"prefix": "x", "suffix": "y"}]}, "a: expected an object with one operator"),
        ({"a": [["x"]]}, "a: expected a string, number"),
    ],
    ids=str,
)
def test_what_cannot_be_compiled_is_named_with_its_place(pattern: Any, words: str) -> None:
    with pytest.raises(PatternError, match=words):
        compile_pattern(pattern)


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
