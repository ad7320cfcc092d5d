"""What is masked is gone from all that is written, and only what should can be told from what stands there instead."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support.made_events import done, event, names, outcome, record, values

from models.attributes import normal
from models.dead_letter import DeadLetter
from pipeline.settings.enrich import MaskSettings
from pipeline.settings.formats import EnvelopeSettings
from pipeline.steps.envelope import compile_envelope
from pipeline.steps.mask import canonical, compile_masks
from pipeline.steps.secrecy import MaskKey, WrongKeyError, open_letter, seal_letter

KEY, OTHER = MaskKey(bytes(range(32))), MaskKey(bytes(32))
SECRET = "5ecret"
HOW = ["hash", "redact", "truncate", "tokenise", "drop"]
ENVELOPES = [{"kind": "dynamodb"}, {"kind": "plain", "tombstone": False}, {"kind": "debezium"}, {"kind": "cloudevents"}]
holding = st.sampled_from(
    [
        ("secret", {"S": SECRET}),
        ("secret", {"B": SECRET}),
        ("secret.in.it", {"M": {"in": {"M": {"it": {"S": SECRET}}}}}),
        ("secret[*]", {"L": [{"S": SECRET}, {"N": "1"}]}),
        ("secret[*]", {"SS": [SECRET, "x"]}),
        ("secret[1].of", {"L": [{"S": "x"}, {"M": {"of": {"S": SECRET}}}]}),
        ("secret[*][*]", {"L": [{"L": [{"S": SECRET}]}, {"SS": [SECRET]}]}),
        ("secret", {"M": {SECRET: {"S": SECRET}}}),
    ]
)


@given(where=holding, how=st.sampled_from(HOW), others=st.dictionaries(names, values, max_size=3), both=st.booleans())
@settings(max_examples=200, deadline=None)
def test_nothing_of_a_masked_value_is_in_what_is_written(where: Any, how: str, others: Any, both: bool) -> None:
    path, value = where
    item = {"id": {"S": "x"}, **others, "secret": value}
    step = compile_masks([MaskSettings.model_validate({"path": path, "how": how, "keep": 2})], KEY)
    for new, old in ((item, item if both else None), (None, item)):
        for envelope in ENVELOPES:
            (one,) = done(step, record(new, old))
            compile_envelope(EnvelopeSettings.model_validate(envelope)).step([one])
            assert one.error is None
            assert one.output is not None
            assert SECRET.encode() not in one.output


@given(value=values)
@settings(max_examples=300, deadline=None)
def test_a_token_gives_back_the_value_and_its_type(value: Any) -> None:
    (one,) = done(compile_masks([MaskSettings(path="a", how="tokenise")], KEY), record({"id": {"S": "x"}, "a": value}))
    token = outcome(one)["after"]["a"]["S"]
    assert json.loads(KEY.detokenise(token)) == value
    with pytest.raises(WrongKeyError):
        OTHER.detokenise(token)


@example(first={"N": "0"}, second={"N": "-0"})
@given(first=values, second=values)
@settings(max_examples=500, deadline=None)
def test_values_are_hashed_alike_when_they_are_equal_and_only_then(first: Any, second: Any) -> None:
    assert (canonical(first) == canonical(second)) == (normal(first) == normal(second))


@given(key=st.none() | st.binary(max_size=40), value=st.none() | st.binary(max_size=80), reason=st.text(max_size=30))
@settings(max_examples=200, deadline=None)
def test_a_sealed_dead_letter_gives_back_what_it_hides_to_its_key_alone(key: Any, value: Any, reason: str) -> None:
    letter = DeadLetter("raw", 1, 2, "transform", ValueError(reason), key, value, [], "f")
    sealed = seal_letter(KEY, letter).value
    assert sealed is not None
    hidden = open_letter(KEY, sealed)
    assert (hidden.key, hidden.value, hidden.reason) == (key, value, f"ValueError: {reason}")
    for spoilt in (sealed[:-1] + bytes([sealed[-1] ^ 1]), sealed[:-1], sealed[:14]):
        with pytest.raises(WrongKeyError):
            open_letter(KEY, spoilt)
    with pytest.raises(WrongKeyError):
        open_letter(OTHER, sealed)


def test_events_that_are_masked_twice_do_not_share_what_is_written() -> None:
    value = record({"id": {"S": "x"}, "a": {"S": SECRET}})
    one, other = event(value), event(value)
    compile_masks([MaskSettings(path="a", how="drop")], KEY)([one])
    assert outcome(other)["after"]["a"] == {"S": SECRET}
