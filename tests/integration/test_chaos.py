"""Workers and broker hurt under load: the short form; `headwater chaos --faults 100` is the long one."""

from __future__ import annotations

import json

import pytest
from conftest import Headwater


@pytest.mark.kafka
def test_ten_faults_lose_double_and_reorder_nothing(headwater: Headwater) -> None:
    done = headwater("chaos", "--faults", "10", "--seed", "1", "--rate", "3000", "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert sum(report["faults"].values()) == 10
    assert (report["lost"], report["duplicated"], report["out_of_order"]) == (0, 0, 0)
    assert report["input"] == report["output"] > 0
