# ruff: noqa: INP001 - a program that is run in another environment, no package
"""Parquet files by Quix Streams' file sink, as its documentation has it. Arguments: servers, group, input, directory, state."""

from __future__ import annotations

import json
import sys
from typing import Any

from quixstreams import Application  # type: ignore[import-not-found]  # in an environment of its own
from quixstreams.sinks.community.file.formats import ParquetFormat  # type: ignore[import-not-found]
from quixstreams.sinks.community.file.local import LocalFileSink  # type: ignore[import-not-found]


def row(change: dict[str, Any]) -> dict[str, Any]:
    """Return the columns of a change: images as JSON."""
    body = change["dynamodb"]
    return {
        "event_id": change["eventID"],
        "table": change["eventSourceARN"].split("/")[1],
        "op": change["eventName"],
        "changed_at": body["ApproximateCreationDateTime"],
        "sequence": body["SequenceNumber"],
        "item_key": json.dumps(body["Keys"]),
        "before": json.dumps(body.get("OldImage")),
        "after": json.dumps(body.get("NewImage")),
    }


def main(servers: str, group: str, source: str, directory: str, state: str) -> None:
    """Write files until it is stopped."""
    app = Application(
        broker_address=servers,
        consumer_group=group,
        auto_offset_reset="earliest",
        state_dir=state,
        commit_every=50_000,
        commit_interval=5.0,
    )
    sink = LocalFileSink(directory=directory, format=ParquetFormat(compression="zstd"))
    changes = app.dataframe(app.topic(source, value_deserializer="json"))
    changes.apply(row).sink(sink)
    app.run()


if __name__ == "__main__":
    main(*sys.argv[1:])
