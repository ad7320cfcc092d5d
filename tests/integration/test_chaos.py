"""Workers and broker hurt under load, each fault once: the short form of `make chaos`."""

from __future__ import annotations

import json

import pytest
from conftest import Headwater

pytestmark = pytest.mark.kafka


def test_every_fault_once_loses_doubles_and_reorders_nothing(headwater: Headwater) -> None:
    done = headwater("chaos", "--faults", "12", "--seed", "1", "--rate", "3000", "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert len(report["faults"]) + len(report["left_out"]) == 12
    assert sum(report["faults"].values()) == 12
    assert (report["lost"], report["duplicated"], report["out_of_order"]) == (0, 0, 0)
    assert report["input"] == report["output"] > 0
