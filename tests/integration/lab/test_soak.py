"""The sources with everything that can happen to them: the short form; `make soak-sources` is the long one."""

from __future__ import annotations

import json

import pytest
from conftest import Headwater

pytestmark = pytest.mark.kafka


def test_a_minute_of_faults_and_kills_loses_doubles_and_reorders_nothing(headwater: Headwater) -> None:
    done = headwater("soak", "sources", "--seconds", "60", "--seed", "4", "--rate", "1000", "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["lost"], report["duplicated"], report["out_of_order"]) == (0, 0, 0)
    assert report["changes"] > 10_000
    assert report["reshards"] > 10
    assert report["kills"] >= 2
    assert report["renewals"] >= 1
    assert report["dry"] > 0
    assert report["provider_failures"] >= 1
    assert report["tables_come"] >= 1
    assert report["gaps_recorded"] >= report["trimmed_ranges"]


def test_streams_of_kinesis_that_grow_to_64_shards_are_read_whole_and_in_order(headwater: Headwater) -> None:
    done = headwater("soak", "sources", "--kinesis", "--seconds", "50", "--seed", "4", "--rate", "700", "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["lost"], report["duplicated"], report["out_of_order"]) == (0, 0, 0)
    assert report["changes"] > 10_000
    assert report["most_shards"] >= 16, "64 on a machine that keeps up"
    assert report["kills"] >= 2
    assert report["dry"] > 0
    assert report["provider_failures"] >= 1
    assert report["late"] > report["marked"] > 50, "some were put in order, the others marked"
