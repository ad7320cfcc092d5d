"""The benchmark at a tiny size: its keys, and that no system loses or doubles anything."""

from __future__ import annotations

from typing import Any

import pytest

from headwater.lab.bench import dedup, flows, ingest, mirror, replay

pytestmark = pytest.mark.kafka

FIGURES = {"records_per_s", "cpu_s_per_million", "rss_mib"}


def test_a_tiny_run_has_every_figure_and_a_right_output() -> None:
    said: list[str] = []
    results = dedup.measure(
        dedup.DedupOptions(
            messages=4_000, rounds=1, recovery_ids=4_000, latency_seconds=2, latency_warm_up=1, standstill_rounds=1
        ),
        said.append,
    )
    shown: dict[str, Any] = results.as_json()
    assert set(shown) == {
        "hand_written",
        "faust_idiomatic",
        "faust_on_headwater",
        "headwater_at_least_once",
        "headwater_exactly_once",
        "broker",
    }
    assert set(shown["hand_written"]) == FIGURES
    assert set(shown["headwater_exactly_once"]) == FIGURES | {
        "p50_ms",
        "p99_ms",
        "recovery_ids_per_s",
        "ready_s",
        "standstill_stay_s",
        "standstill_move_s",
    }
    assert results.failures == []
    assert [results.median(key).outcome for key in results.rounds] == [(0, 0)] * 5
    assert shown["broker"].startswith("Apache Kafka")
    assert shown["headwater_exactly_once"]["ready_s"] > 0


def test_a_tiny_run_of_ingest_has_every_figure_and_a_right_output() -> None:
    said: list[str] = []
    results = ingest.measure(
        ingest.IngestOptions(messages=8_000, rounds=1, shards=(2,), idle_settle=0.1, idle_seconds=1), said.append
    )
    shown: dict[str, Any] = results.as_json()
    assert set(shown) == {"plain_boto3", "headwater", "idle_calls_per_s", "idle_cpu_share", "broker"}
    assert set(shown["headwater"]) == {"2"}
    assert set(shown["headwater"]["2"]) == set(shown["plain_boto3"]) == {"changes_per_s", "cpu_s_per_million"}
    assert results.failures == []
    assert shown["idle_calls_per_s"] > 0


def test_a_tiny_run_of_flows_has_every_figure_and_a_right_output() -> None:
    said: list[str] = []
    results = flows.measure(
        flows.FlowOptions(
            messages=6_000, rounds=1, systems=("headwater", "faust"), tasks=("pattern_filter", "avro", "sql")
        ),
        said.append,
    )
    shown = results.as_json()
    assert set(shown) == {"pattern_filter", "avro", "sql"}
    assert all(set(paces) == {"headwater", "faust"} for paces in shown.values())
    assert results.failures == []
    assert all(results.rounds[task, "headwater"][0].outcome == (0, 0) for task in shown)


def test_a_tiny_run_of_the_mirror_has_both_figures_and_a_right_copy() -> None:
    results = mirror.measure(mirror.MirrorOptions(messages=20_000, rounds=1), lambda _: None)
    assert set(results.as_json()) == {"headwater", "limit"}
    assert results.failures == []


def test_a_tiny_run_of_replay_has_every_figure_and_a_right_output() -> None:
    said: list[str] = []
    results = replay.measure(replay.ReplayOptions(messages=8_000, rounds=1), said.append)
    assert set(results.as_json()) == {"replay", "live"}
    assert results.failures == []
