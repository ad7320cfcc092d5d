"""Reference tables: what is kept in memory is what the store has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from confluent_kafka import Message

from pipeline.state.reference import HOT_BYTES, ReferenceTable
from pipeline.state.store import Store


def record(offset: int, key: bytes, value: bytes | None) -> Message:
    return Message("reference", 0, offset=offset, key=key, value=value)


def test_an_item_is_read_again_when_the_topic_has_another(tmp_path: Path) -> None:
    transport: Any = None
    table = ReferenceTable(transport, "reference", "raw", tmp_path)
    table._store = Store(tmp_path / "store.db")
    long = b"x" * (HOT_BYTES + 1)
    for offset, (value, wanted) in enumerate([(b"1", b"1"), (b"2", b"2"), (None, None), (long, long), (b"3", b"3")]):
        table._apply([record(offset, b"k", value)])
        assert [table.get(b"k") for _ in range(2)] == [wanted, wanted]
    assert table.get(b"other") is None
    table._store.close()
