"""`headwater flows match`: events in, those that match out."""

from __future__ import annotations

import json
from pathlib import Path

from conftest import Headwater

EVENTS = ['{"a": "x", "n": 1}', '{"n":2,"a":"y"}', "", '{"a":"\\u0078"}']


def files(directory: Path, pattern: object, lines: list[str]) -> tuple[str, str]:
    (directory / "pattern.json").write_text(json.dumps(pattern))
    (directory / "events.jsonl").write_text("\n".join(lines))
    return "pattern.json", "events.jsonl"


def test_events_that_match_come_out_as_they_went_in(headwater: Headwater, tmp_path: Path) -> None:
    found = headwater("flows", "match", *files(tmp_path, {"a": ["x"]}, EVENTS))
    assert (found.returncode, found.stdout) == (0, '{"a": "x", "n": 1}\n{"a":"\\u0078"}')
    counted = headwater("flows", "match", *files(tmp_path, {"n": [{"numeric": [">", 0]}]}, EVENTS), "--count")
    assert (counted.returncode, counted.stdout) == (0, "2\n")


def test_a_line_that_is_not_json_is_named_and_the_others_continue(headwater: Headwater, tmp_path: Path) -> None:
    found = headwater("flows", "match", *files(tmp_path, {"a": ["x"]}, ['{"a":', *EVENTS]), "--count")
    assert (found.returncode, found.stdout) == (1, "2\n")
    assert "1 of 4 lines are not JSON; the first is line 1: " in found.stderr
    found = headwater("flows", "match", *files(tmp_path, {"a": ["x"]}, ["", "", "bad"]))
    assert "1 of 1 lines are not JSON; the first is line 3: " in found.stderr, "counted as an editor does"


def test_exact_fractions_are_as_the_pattern_has_them(headwater: Headwater, tmp_path: Path) -> None:
    pattern, events = files(tmp_path, {}, ['{"a": 300.0}', '{"a": 3.0e2}'])
    (tmp_path / pattern).write_text('{"a": [3.0e2]}')
    assert headwater("flows", "match", pattern, events).stdout == '{"a": 3.0e2}'


def test_a_pattern_that_cannot_be_compiled_is_a_usage_error(headwater: Headwater, tmp_path: Path) -> None:
    found = headwater("flows", "match", *files(tmp_path, {"a": "x"}, EVENTS))
    assert "docs/how-to/filter-changes.md" in found.stderr
    assert found.returncode == 2
    assert "pattern.json: a: expected a list of values or nested fields, got 'x'" in found.stderr
    missing = headwater("flows", "match", "nothing.json", "events.jsonl")
    assert (missing.returncode, "nothing.json: No such file" in missing.stderr) == (2, True)
