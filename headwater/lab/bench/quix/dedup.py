# ruff: noqa: INP001 - a program that is run in another environment, no package
"""Deduplication in Quix Streams. Arguments: servers, group, input, output, state directory, processing guarantee."""

from __future__ import annotations

import sys
from typing import Any

from quixstreams import Application  # type: ignore[import-not-found]  # in an environment of its own


def main(servers: str, group: str, source: str, output: str, directory: str, guarantee: str) -> None:
    """Run until it is stopped."""
    app = Application(
        broker_address=servers,
        consumer_group=group,
        auto_offset_reset="earliest",
        processing_guarantee=guarantee,
        commit_interval=0.1,
        state_dir=directory,
        loglevel="WARNING",
        producer_extra_config={"compression.type": "lz4"},
    )
    changes = app.topic(source, key_deserializer="bytes", value_deserializer="bytes")
    unique = app.topic(output, key_serializer="bytes", value_serializer="bytes")

    def is_new(value: bytes, state: Any) -> bool:
        if state.get("seen") is not None:
            return False
        state.set("seen", 1)
        return True

    app.dataframe(changes).filter(is_new, stateful=True).to_topic(unique)
    app.run()


if __name__ == "__main__":
    main(*sys.argv[1:])
