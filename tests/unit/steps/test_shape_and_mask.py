"""Attributes that are selected, dropped, renamed and masked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from pydantic import ValidationError
from support.made_events import done, event, outcome, record

from models.attribute_path import parse
from models.dead_letter import DeadLetter
from pipeline.errors import UsageError
from pipeline.services.keys import mask_key, new_key
from pipeline.settings.enrich import MaskSettings
from pipeline.settings.flows import FlowSettings
from pipeline.steps.enrich import attribute
from pipeline.steps.event import Step
from pipeline.steps.mask import canonical, compile_masks
from pipeline.steps.secrecy import MaskKey, WrongKeyError, is_sealed, open_letter, seal_letter
from pipeline.steps.shape import drop, rename_attributes, select

KEY = MaskKey(bytes(range(32)))
ADA: dict[str, Any] = {
    "id": {"S": "c-1"},
    "email": {"S": "ada@example.com"},
    "address": {"M": {"street": {"S": "1 Loop"}, "city": {"S": "Delft"}}},
    "phones": {"L": [{"M": {"number": {"N": "123"}}}, {"M": {"number": {"N": "456"}}}]},
    "born": {"N": "1815"},
}
ADA_HASHED = "6e9e7624d7d7427af13781b87ca9ad97189029afc602cbac85efa7b5536eecbd"
OLD = {**ADA, "email": {"S": "old@example.com"}}


def masked(*masks: dict[str, Any], new: Any = ADA, old: Any = OLD) -> Any:
    (one,) = done(compile_masks([MaskSettings.model_validate(mask) for mask in masks], KEY), record(new, old))
    return outcome(one)


def test_selected_dropped_and_renamed_attributes_and_a_key_that_stays() -> None:
    (one,) = done(select(["email", "born"]), record(ADA, OLD))
    assert list(outcome(one)["after"]) == ["email", "born"]
    assert list(outcome(one)["before"]) == ["email", "born"]
    assert one.key == b'{"id":{"S":"c-1"}}'
    (one,) = done(drop(["email", "id"]), record(ADA))
    assert list(outcome(one)["after"]) == ["address", "phones", "born"]
    (one,) = done(rename_attributes({"email": "born", "born": "email", "nothing": "x"}), record(ADA))
    assert outcome(one)["after"]["born"] == {"S": "ada@example.com"}
    assert outcome(one)["after"]["email"] == {"N": "1815"}
    (one,) = done(rename_attributes({"email": "born"}), record(ADA))
    assert outcome(one)["after"]["born"] == {"S": "ada@example.com"}


def test_what_was_added_is_selected_dropped_and_renamed_by_its_own_name() -> None:
    one = event(record(ADA))
    one.added = {"customer": one.after["email"], "price": one.after["born"]}  # type: ignore[index]
    rename_attributes({"enriched.price": "enriched.cost"})([one])
    drop(["enriched.customer"])([one])
    assert outcome(one)["added"] == {"cost": {"N": "1815"}}
    select(["email"])([one])
    assert outcome(one)["added"] == {}


def test_a_hash_is_the_same_for_equal_values_and_another_with_another_key() -> None:
    one = masked({"path": "born", "how": "hash"}, old={**OLD, "born": {"N": "1815.0"}})
    assert one["after"]["born"] == one["before"]["born"]
    assert len(one["after"]["born"]["S"]) == 64
    other = done(compile_masks([MaskSettings(path="born", how="hash")], MaskKey(bytes(32))), record(ADA))
    assert outcome(other[0])["after"]["born"] != one["after"]["born"]
    text = masked({"path": "born", "how": "hash"}, new={**ADA, "born": {"S": "1815"}})
    assert text["after"]["born"] != one["after"]["born"], "text is no number"


def test_a_set_is_hashed_without_its_order() -> None:
    first = masked({"path": "s", "how": "hash"}, new={**ADA, "s": {"SS": ["a", "b", "c"]}})
    second = masked({"path": "s", "how": "hash"}, new={**ADA, "s": {"SS": ["c", "a", "b"]}})
    assert first["after"]["s"] == second["after"]["s"]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({"S": "\U0001fae8 'ada'\n"}, "S:\U0001fae8 'ada'\n"),  # a character that Python 3.11 does not know yet
        ({"N": "10.50"}, 'N:"10.5"'),
        ({"N": "-0.0"}, 'N:"0"'),
        ({"NS": ["2", "1.0"]}, 'NS:["1","2"]'),
        ({"BOOL": True}, "BOOL:true"),
        ({"M": {"b": {"L": [{"N": "1.0"}]}, "a": {"NULL": True}}}, 'M:[["a","NULL",true],["b","L",[["N","1"]]]]'),
    ],
)
def test_what_is_hashed_depends_on_no_version(value: dict[str, Any], text: str) -> None:
    assert canonical(value) == text.encode()


def test_a_hash_stays_what_it_was() -> None:
    """Hashes are kept for years: whoever changes this breaks every join with what was written before."""
    assert masked({"path": "email", "how": "hash"})["after"]["email"] == {"S": ADA_HASHED}


@pytest.mark.parametrize("path", ["mails[*]", "mails[1]"])
def test_the_members_of_a_set_are_masked_as_the_elements_of_a_list(path: str) -> None:
    new = {**ADA, "mails": {"SS": ["ada@example.com", "ann@example.com"]}}
    assert masked({"path": path, "how": "truncate", "keep": 1}, new=new)["after"]["mails"] == {"SS": ["a"]}
    assert "mails" not in masked({"path": path, "how": "drop"}, new=new)["after"]
    hashed = masked({"path": path, "how": "hash"}, new=new)["after"]["mails"]["SS"]
    assert len(hashed) == 2
    assert ADA_HASHED in hashed, "equal to the same text elsewhere"
    numbers = masked({"path": path, "how": "redact"}, new={**ADA, "mails": {"NS": ["1", "2"]}})
    assert numbers["after"]["mails"] == {"SS": ["***"]}


def test_what_is_redacted_truncated_and_dropped() -> None:
    one = masked(
        {"path": "email", "how": "truncate", "keep": 3},
        {"path": "address.street", "how": "redact", "text": "-"},
        {"path": "phones[*].number", "how": "drop"},
        {"path": "born", "how": "truncate"},
    )
    assert one["after"]["email"] == {"S": "ada"}
    assert one["before"]["email"] == {"S": "old"}
    assert one["after"]["address"]["M"] == {"street": {"S": "-"}, "city": {"S": "Delft"}}
    assert one["after"]["phones"] == {"L": [{"M": {}}, {"M": {}}]}
    assert one["after"]["born"] == {"S": "***"}


def test_one_element_and_a_whole_attribute() -> None:
    one = masked({"path": "phones[0]", "how": "redact"}, {"path": "email", "how": "drop"})
    assert one["after"]["phones"]["L"][0] == {"S": "***"}
    assert one["after"]["phones"]["L"][1] == {"M": {"number": {"N": "456"}}}
    assert "email" not in one["after"]
    assert masked({"path": "nothing.at.all", "how": "hash"})["after"] == ADA


def test_a_token_is_undone_by_the_key_alone() -> None:
    one = masked({"path": "email", "how": "tokenise"})
    token = one["after"]["email"]["S"]
    assert json.loads(KEY.detokenise(token)) == {"S": "ada@example.com"}
    with pytest.raises(WrongKeyError):
        MaskKey(bytes(32)).detokenise(token)
    assert token == masked({"path": "email", "how": "tokenise"})["after"]["email"]["S"]


def test_an_attribute_of_the_key_is_masked_everywhere_in_the_same_way() -> None:
    one = masked({"path": "id", "how": "hash"})
    assert one["after"]["id"] == one["before"]["id"]
    assert json.loads(one["key"]) == {"id": one["after"]["id"]}
    assert b"c-1" not in one["key"]


@pytest.mark.parametrize("how", ["redact", "truncate", "drop"])
def test_an_attribute_of_the_key_is_not_masked_so_that_items_run_together(how: str) -> None:
    assert "hash or tokenise it" in masked({"path": "id", "how": how})["error"]


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("address.street", {"S": "Oude Delft 1"}),
        ("address.street", {"L": [{"S": "Oude Delft 1"}]}),
        ("address.street", {"SS": ["Oude Delft 1"]}),
        ("address[*]", {"S": "Oude Delft 1"}),
        ("address[0].street", {"M": {"street": {"S": "Oude Delft 1"}}}),
        ("address[*].street", {"L": [{"S": "Oude Delft 1"}]}),
        ("address.street.name", {"M": {"street": {"S": "Oude Delft 1"}}}),
        ("address.of.home", {"M": {"of.home": {"S": "Oude Delft 1"}}}),
    ],
)
@pytest.mark.parametrize("how", ["hash", "redact", "truncate", "drop", "tokenise"])
def test_a_value_of_another_type_is_masked_rather_than_shown(path: str, value: dict[str, Any], how: str) -> None:
    one = masked({"path": path, "how": how, "keep": 2}, new={**ADA, "address": value})
    assert "Oude Delft" not in str(one)


def test_names_with_dots_are_masked_and_nothing_stays_nothing() -> None:
    one = masked({"path": "my.mail", "how": "redact"}, new={**ADA, "my.mail": {"S": "a@b"}, "my": {"NULL": True}})
    assert (one["after"]["my.mail"], one["after"]["my"]) == ({"S": "***"}, {"NULL": True})


def test_a_mask_of_what_no_step_adds_is_refused() -> None:
    flow = {"name": "a", "to": "a", "mask_key": "file:/k", "enrich": [{"kind": "compute", "as": "1", "into": "n"}]}
    for path in ("enriched.n", "enriched.n.a", "enriched.n[*]", "enriched"):
        FlowSettings.model_validate({**flow, "mask": [{"path": path, "how": "hash"}]})
    with pytest.raises(ValidationError, match=r"enriched\.m is not among what the steps add \(enriched\.n\)"):
        FlowSettings.model_validate({**flow, "mask": [{"path": "enriched.m", "how": "hash"}]})
    FlowSettings.model_validate(
        {**flow, "enrich": [{"kind": "python", "name": "f"}], "mask": [{"path": "enriched.m", "how": "hash"}]}
    )


def test_what_a_join_has_added_is_masked() -> None:
    one = event(record(ADA))
    one.added["customer"] = type(one.change.body.keys)(b'{"M":{"email":{"S":"x@y"},"tier":{"S":"gold"}}}')
    compile_masks([MaskSettings(path="enriched.customer.email", how="redact")], KEY)([one])
    assert outcome(one)["added"] == {"customer": {"M": {"email": {"S": "***"}, "tier": {"S": "gold"}}}}


def test_paths() -> None:
    assert parse("phones[*].number[2].x") == ("phones", None, "number", 2, "x")


def test_a_sealed_dead_letter_shows_nothing_and_the_key_opens_it() -> None:
    letter = DeadLetter(
        "raw", 1, 2, "transform", ValueError("ada@example.com is odd"), b"key ada", b"value ada", [], "f"
    )
    sealed = seal_letter(KEY, letter)
    shown = b"".join([sealed.key or b"", sealed.value or b"", *(value for _, value in sealed.headers)])
    assert b"ada" not in shown
    assert sealed.value is not None
    assert is_sealed(sealed.value)
    secret = open_letter(KEY, sealed.value)
    assert (secret.key, secret.value) == (b"key ada", b"value ada")
    assert secret.reason == "ValueError: ada@example.com is odd"
    with pytest.raises(WrongKeyError, match="it was sealed with the key"):
        open_letter(MaskKey(bytes(32)), sealed.value)
    with pytest.raises(WrongKeyError, match="changed"):
        open_letter(KEY, sealed.value[:-1] + bytes([sealed.value[-1] ^ 1]))


def test_a_key_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "mask.key"
    new_key(file)
    assert file.stat().st_mode & 0o777 == 0o600
    assert "object" not in repr(mask_key(f"file:{file}"))
    with pytest.raises(UsageError, match="a key is never overwritten"):
        new_key(file)
    (tmp_path / "short").write_text("YWJj")
    with pytest.raises(UsageError, match="32 bytes, this has 3"):
        mask_key(f"file:{tmp_path / 'short'}")
    (tmp_path / "odd").write_text("no base64!")
    with pytest.raises(UsageError, match="is not base64"):
        mask_key(f"file:{tmp_path / 'odd'}")
    with pytest.raises(UsageError, match="No such file"):
        mask_key(f"file:{tmp_path / 'nothing'}")


NESTED: dict[str, Any] = {
    "id": {"S": "1"},
    "address": {"M": {"street": {"S": "s"}, "city": {"S": "c"}, "at": {"M": {"x": {"N": "1"}, "y": {"N": "2"}}}}},
    "phones": {
        "L": [{"M": {"kind": {"S": "home"}, "number": {"N": "1"}}}, {"M": {"kind": {"S": "work"}}}, {"S": "none"}]
    },
    "address.city": {"S": "with a dot"},
    "*": {"S": "a star"},
}


def shaped(step: Step, item: dict[str, Any] = NESTED) -> dict[str, Any]:
    """Return what a step makes of an item, alike before and after."""
    found = outcome(done(step, record(item, item))[0])
    assert found["before"] == found["after"]
    return dict(found["after"])


def test_what_is_dropped_may_lie_deep() -> None:
    found = shaped(drop(["address.street", "address.at.x", "phones[*].kind", "nobody.at.all", "id.x"]))
    assert found["address"]["M"] == {"city": {"S": "c"}, "at": {"M": {"y": {"N": "2"}}}}
    assert found["phones"]["L"] == [{"M": {"number": {"N": "1"}}}, {"M": {}}, {"S": "none"}]
    assert set(found) == set(NESTED)
    assert shaped(drop(["phones[1]", "phones[0].number"]))["phones"]["L"] == [
        {"M": {"kind": {"S": "home"}}},
        {"S": "none"},
    ]


def test_a_dot_may_be_in_a_name_and_quotes_tell() -> None:
    both = shaped(drop(["address.city"]))
    assert "address.city" not in both
    assert "city" not in both["address"]["M"]
    one = shaped(drop(['"address.city"', '"*"']))
    assert set(NESTED) - set(one) == {"address.city", "*"}
    assert one["address"] == NESTED["address"]
    other = shaped(drop(['address."city"']))
    assert "address.city" in other
    assert "city" not in other["address"]["M"]


def test_what_is_selected_may_lie_deep() -> None:
    found = shaped(select(["id", "address.at.y", "phones[*].kind", "phones[2]", "id.x", "nobody"]))
    assert found == {
        "id": {"S": "1"},
        "address": {"M": {"at": {"M": {"y": {"N": "2"}}}}},
        "phones": {"L": [{"M": {"kind": {"S": "home"}}}, {"M": {"kind": {"S": "work"}}}, {"S": "none"}]},
    }
    assert shaped(select(["address.nobody", "id.x"])) == {}


def test_what_is_renamed_may_lie_deep() -> None:
    found = shaped(
        rename_attributes({"address.street": "road", "phones[*].kind": "number", "address.at": "city", "id": "key"})
    )
    assert found["address"]["M"] == {"road": {"S": "s"}, "city": NESTED["address"]["M"]["at"]}
    assert found["phones"]["L"][:2] == [{"M": {"number": {"S": "home"}}}, {"M": {"number": {"S": "work"}}}]
    assert found["key"] == {"S": "1"}


def test_what_was_added_is_shaped_by_the_same_paths() -> None:
    one = event(record(NESTED))
    one.added = {"c": msgspec.Raw(b'{"M":{"x":{"S":"1"},"y":{"S":"2"}}}'), "d": msgspec.Raw(b'{"S":"3"}')}
    for step in (
        drop(["enriched.c.x"]),
        rename_attributes({"enriched.c.y": "z", "enriched.d": "e"}),
        select(["enriched.c.z", "enriched.e"]),
    ):
        step([one])
    assert {name: json.loads(bytes(value)) for name, value in one.added.items()} == {
        "c": {"M": {"z": {"S": "2"}}},
        "e": {"S": "3"},
    }


def test_one_attribute_is_found_by_its_path() -> None:
    one = event(record({**NESTED, "ids": {"L": [{"S": "a"}, {"S": "b"}]}}))
    for path, value in [
        ("address.at.x", b'{"N":"1"}'),
        ("address.city", b'{"S":"with a dot"}'),
        ("ids[1]", b'{"S":"b"}'),
    ]:
        assert bytes(attribute(one, path) or b"") == value
    assert attribute(one, "ids[2]") is None
    assert attribute(one, "address.nobody.x") is None
