"""What the apps of `support/faust_rows` share: an ordinary Faust app on Headwater's transport and store, by variables."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import Any

import faust

NAME = os.environ.get("ROW_NAME", "row")
PARTITIONS = 4


def row_app(**settings: Any) -> faust.App:
    """Return the app of a row; nothing connects before a worker starts."""
    return faust.App(
        NAME,
        **{
            "broker": f"headwater://{os.environ.get('ROW_BROKER', '127.0.0.1:9')}",
            "store": "headwater://",
            "datadir": os.environ.get("HEADWATER_STATE_DIR", "row.state"),
            "web_bind": "127.0.0.1",
            "web_host": "127.0.0.1",
            "canonical_url": f"http://127.0.0.1:{os.environ.get('HEADWATER_WEB__PORT', '6066')}",
            "web_port": int(os.environ.get("HEADWATER_WEB__PORT", "6066")),
            "topic_partitions": PARTITIONS,
            "topic_replication_factor": 1,
            "broker_session_timeout": 6,
            "broker_heartbeat_interval": 1,
            "consumer_group_instance_id": os.environ.get("ROW_INSTANCE") or None,
            **settings,
        },
    )


def name(topic: str) -> str:
    """Return the full name of a topic of this row."""
    return f"{NAME}-{topic}"


Numbers = Sequence[tuple[str, int]]
"""Keys and numbers, in the order in which they are written."""


def written() -> list[tuple[str, int]]:
    """Return what is written to the topic `in` where a row has no `inputs` of its own: 400 numbers, of seven keys."""
    return [(f"key-{number % 7}", number) for number in range(400)]


def in_order(pairs: Iterable[tuple[str, Any]]) -> dict[str, list[Any]]:
    """Return the values of each key, in their order."""
    found: dict[str, list[Any]] = {}
    for key, value in pairs:
        found.setdefault(key, []).append(value)
    return found
