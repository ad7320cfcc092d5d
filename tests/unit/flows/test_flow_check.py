"""Flows that cannot run: each is refused, with file, line and what was expected, by `check` and `flows apply` alike."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.errors import UsageError
from pipeline.flows.apply import validate
from pipeline.flows.check import examine
from pipeline.flows.compile import FlowError, compile_flow, onlooking
from pipeline.flows.explain import explain
from pipeline.operate.check import check
from pipeline.settings.flows import FlowSettings
from pipeline.settings.load import load
from pipeline.settings.root import Settings

FILE = Path("headwater.toml")
EVENT = b'{"eventID":"e","eventName":"INSERT","tableName":"orders","dynamodb":{"Keys":{}}}'


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("HEADWATER_CONFIG", "NO_SUCH"):
        monkeypatch.delenv(name, raising=False)


def written(flows: str, sources: str = 'tables = ["orders"]') -> Settings:
    FILE.write_text(f"[[sources]]\n{sources}\n\n{flows}\n")
    return load()


REFUSED = [
    ('[[flows]]\nname = "a"\nwhere = "afer.x"\nto = "x"', "6: flow a, where: afer: there is no such name"),
    (
        '[[flows]]\nname = "a"\nwhere = { a = [{ wildcard = "**" }] }\nto = "x"',
        "6: flow a, where: a: wildcard: '**': expected",
    ),
    (
        (
            '[[flows]]\nname = "a"\nto = "x"\n[[flows.enrich]]\nkind = "compute"\nas = "1"\ninto = "b"\n'
            '[[flows.enrich]]\nkind = "compute"\nas = "2 +"\ninto = "c"'
        ),
        "13: flow a, enrich.1.as: ",
    ),
    (
        '[[flows]]\nname = "a"\n[[flows.to]]\nsink = "x"\nwhere = "op == \'u\'"\n[[flows.to]]\nsink = "y"\nwhere = "op =="',
        "11: flow a, to.1.where: ",
    ),
    (
        '[[flows]]\nname = "a"\nfrom = ["nope"]\nto = "x"',
        "6: flow a, from: no source captures nope: it would get nothing",
    ),
    (
        (
            '[[flows]]\nname = "a"\nto = "x"\nenrich = [\n  { kind = "compute", as = "1", into = "b" },\n'
            '  { kind = "join", table = "customers", on = "c", into = "d" },\n]'
        ),
        "9: flow a, enrich.1: reads the table customers, which no source captures",
    ),
    (
        (
            '[[flows]]\nname = "a"\nto = "x"\n[[flows.enrich]]\nkind = "lookup"\nurl = "http://x/{id}"\ninto = "b"\n'
            'headers = { authorization = "${NO_SUCH}" }'
        ),
        "11: flow a, enrich.0.headers: lookup: the variable NO_SUCH of a header is not set",
    ),
    (
        '[[flows]]\nname = "a"\nto = "x"\nenrich = [{ kind = "join", table = "one", state = "partitioned", into = "d" }]',
        "7: flow a, enrich.0: reads the table one, which no source captures",
    ),
    (
        '[[flows]]\nname = "a"\nto = "x"\n[[flows.enrich]]\nkind = "sql"\nquery = "SELECT id FROM changes"\ntables = ["two"]',
        "7: flow a, enrich.0: reads the table two, which no source captures",
    ),
    (
        '[[flows]]\nname = "a"\nto = "x"\nmask_key = "file:none.key"\nmask = [{ path = "p", how = "hash" }]',
        "7: flow a, mask_key: none.key: No such file",
    ),
]


@pytest.mark.parametrize(("flows", "words"), REFUSED, ids=[words for _, words in REFUSED])
def test_a_flow_that_cannot_run_is_refused_where_it_is(flows: str, words: str) -> None:
    settings = written(flows)
    with pytest.raises(UsageError) as caught:
        validate(settings, FILE)
    assert caught.value.message.startswith(f"headwater.toml:{words}")
    assert caught.value.hint not in {"", "headwater check", "headwater flows apply --check"}
    found = next(one for one in check(settings) if one.what == "flow a")
    assert not found.ok
    assert found.detail.startswith(f"headwater.toml:{words}".replace("flow a, ", "")), "the flow is named once"
    assert found.hint == caught.value.hint


def test_what_compiles_a_flow_says_where_it_is() -> None:
    settings = written('[[flows]]\nname = "a"\nto = [{ sink = "x", where = "op ==" }]')
    with pytest.raises(FlowError, match=r"^headwater\.toml:6: flow a, to\.0\.where: "):
        explain(settings.flows, EVENT, onlooking(settings.flows))


def test_a_flow_that_is_another_than_in_the_file_is_given_no_line() -> None:
    written('[[flows]]\nname = "a"\nwhere = "op == \'u\'"\nto = "x"')
    applied = FlowSettings.model_validate({"name": "a", "where": "op ==", "to": "x"})
    with pytest.raises(FlowError, match=r"^flow a, where: "):
        compile_flow(applied, onlooking([applied]))


@pytest.mark.parametrize(
    "sources", ['tables = ["ord*"]', 'tags = { cdc = "yes" }', 'kind = "kinesis"\nstreams = ["s"]']
)
def test_tables_that_may_come_later_are_not_errors(sources: str) -> None:
    settings = written('[[flows]]\nname = "a"\nfrom = ["nope"]\nto = "x"', sources)
    expected = ["flow a, from: no source captures nope by name"] if "ord" in sources else []
    assert validate(settings, FILE) == expected
    found = [one for one in check(settings) if one.what == "flow a"]
    assert all(one.ok for one in found)
    assert [one.detail for one in found if one.is_warning] == expected


def test_without_sources_other_workers_have_them() -> None:
    FILE.write_text('[[flows]]\nname = "a"\nfrom = ["nope"]\nto = "x"\n')
    assert validate(load(), FILE) == []


def test_that_there_are_no_flows_is_said() -> None:
    with pytest.raises(UsageError, match=r"there are no \[\[flows\]\]"):
        validate(written(""), FILE)


def test_a_key_that_is_there_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_SUCH", "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=")
    settings = written(
        '[[flows]]\nname = "a"\nto = "x"\nmask_key = "env:NO_SUCH"\nmask = [{ path = "p", how = "hash" }]\n'
        '[[flows.enrich]]\nkind = "lookup"\nurl = "https://{id}.x/"\ninto = "b"\nheaders = { a = "${NO_SUCH}" }'
    )
    assert examine(settings, settings.flows[0]) == []


@pytest.mark.parametrize(
    ("flows", "words"),
    [
        ('to = "x-{tabel}"', "flows.0.to.0.sink: unknown {tabel}, expected {table}, {op}, {source} (headwater.toml:6)"),
        ('to = "a b"', "flows.0.to.0.sink: expected letters, digits, . _ - {table} {op} {source} (headwater.toml:6)"),
        (
            'to = "x"\nmask_key = "x"',
            "flows.0.mask_key: expected file:PATH, env:NAME of a variable, or kms:PATH (headwater.toml:7)",
        ),
        (
            'to = "x"\n[[flows.mask]]\npath = "a..b"\nhow = "drop"',
            "flows.0.mask.0.path: expected a path such as email, address.street or phones[*].number (headwater.toml:8)",
        ),
        (
            'to = "x"\n[[flows.enrich]]\nkind = "join"\ntable = "t"\non = "x"\ninto = "y"\nmissing = "inner"',
            "flows.0.enrich.0.missing: Input should be 'null', 'drop' or 'reject' (headwater.toml:12)",
        ),
        (
            (
                'to = "x"\n[[flows.enrich]]\nkind = "compute"\nas = "1"\ninto = "y"\n'
                '[[flows.enrich]]\nkind = "compute"\ninto = "z"\nass = "2"'
            ),
            (
                "flows.0.enrich.1.as: Field required (headwater.toml:11); "
                "flows.0.enrich.1.ass: there is no such key, did you mean as? (headwater.toml:14)"
            ),
        ),
        (
            'to = "x"\nenrich = [{ kind = "lookup", url = "htp:/x/{id}", into = "y" }]',
            "flows.0.enrich.0.url: expected http://... or https://... (headwater.toml:7)",
        ),
        (
            'to = "x"\nformat = "avro"\nenvelope = "plain"',
            "flows.0.format: avro needs schema_registry.url (headwater.toml:7)",
        ),
        ('to = "x"\n[[flows]]\nname = "a"\nto = "y"', "flows.1.name: more than one is named a (headwater.toml:8)"),
        (
            'to = "x"\nmask = [{ path = "p", how = "drop" }]',
            "headwater flows new-key FILE makes one (headwater.toml:4)",
        ),
    ],
)
def test_a_setting_is_refused_in_words_and_with_its_line(flows: str, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        written(f'[[flows]]\nname = "a"\n{flows}')
    assert words in caught.value.message
    assert caught.value.message.count("(headwater.toml:") == words.count("(headwater.toml:"), "and nothing else is"
    assert caught.value.hint != "headwater check"


@pytest.mark.parametrize(
    ("envelope", "words"),
    [
        (
            {"kind": "dynamodb", "mode": "structured"},
            "mode: the envelope dynamodb has no such setting, only cloudevents",
        ),
        (
            {"kind": "dynamodb", "tombstone": True},
            "tombstone: the envelope dynamodb has no such setting, only plain, debezium",
        ),
        ({"kind": "plain", "images": "document"}, "images: the envelope plain has no such setting, only debezium"),
        (
            {"numbers": "string"},
            "numbers: the envelope dynamodb has no such setting, only plain, debezium, cloudevents",
        ),
    ],
)
def test_a_setting_that_an_envelope_does_not_have_is_refused(envelope: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        FlowSettings.model_validate({"name": "a", "to": "x", "envelope": envelope})
