"""Which lake of the settings a command works on."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.errors import UsageError
from pipeline.settings.root import Settings
from pipeline.sinks.lake.configured import choose

FLOWS = [{"name": "f", "from": ["orders"], "to": "orders"}]
ICEBERG = {"name": "tables", "url": "file:///w", "table": "iceberg", "catalog": {"type": "sql"}}


def settings(**more: Any) -> Settings:
    return Settings.model_validate({"prefix": "p", "flows": FLOWS, **more})


def test_without_a_name_it_is_that_of_lake() -> None:
    found = choose(settings(lake={"url": "file:///a"}, lakes=[{"name": "b", "url": "file:///b"}]))
    assert (found.url, found.group, found.sinks) == ("file:///a", "p", {"orders": "p.sink.orders"})


def test_a_lake_of_lakes_is_found_by_its_name_and_has_a_group_of_its_own() -> None:
    some = settings(lakes=[{"name": "b", "url": "file:///b"}, ICEBERG])
    assert (choose(some, "b").url, choose(some, "b").group) == ("file:///b", "p.lake.b")
    assert choose(some) == choose(some, "b")  # the only one of files
    with pytest.raises(UsageError, match="there is no lake 'c'"):
        choose(some, "c")
    with pytest.raises(UsageError, match="this lake has Iceberg tables"):
        choose(some, "tables")


def test_two_lakes_must_be_named_and_no_lake_is_an_error() -> None:
    both = [{"name": "b", "url": "file:///b"}, {"name": "c", "url": "file:///c"}]
    with pytest.raises(UsageError, match="which lake: b, c"):
        choose(settings(lakes=both))
    with pytest.raises(UsageError, match="there is no lake in the settings"):
        choose(settings())
