"""Workers, broker and topics hurt under load, each fault once: the short form of `make chaos`."""

from __future__ import annotations

import json
from typing import Any

import pytest
from conftest import Headwater

from headwater.lab.chaos_report import MEANING
from headwater.lab.faults import TOPICS

pytestmark = [pytest.mark.kafka, pytest.mark.alone]  # each fault must be over within a minute
OTHERS = [name for name in MEANING if name not in TOPICS]
RIGHT = {"lost": 0, "duplicated": 0, "out_of_order": 0, "stuck": 0}


def chaos(headwater: Headwater, *faults: str) -> dict[str, Any]:
    only = [word for name in faults for word in ("--only", name)]
    done = headwater("chaos", "--faults", str(len(faults)), "--seed", "1", "--rate", "2000", *only, "--json")
    assert done.returncode == 0, done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    assert len(report["faults"]) + len(report["left_out"]) == len(faults)
    assert sum(report["faults"].values()) == len(faults)
    assert {name: report[name] for name in RIGHT} == RIGHT
    assert report["input"] == report["output"] + report["in_gaps"] > 0
    assert report["output"] == report["sunk"] + report["dead_letters"]
    return report


def test_every_fault_of_workers_and_broker_once_loses_doubles_and_reorders_nothing(headwater: Headwater) -> None:
    report = chaos(headwater, *OTHERS)
    assert (report["in_gaps"], report["dead_letters"]) == (0, 0)


def test_every_fault_of_topics_and_steps_once_loses_nothing_but_what_a_gap_names(headwater: Headwater) -> None:
    report = chaos(headwater, *TOPICS)
    assert report["gaps"] > 0
    assert report["dead_letters"] == 2, "the change that is too large, and the one at which the step sleeps"
