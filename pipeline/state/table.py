"""`app.Table` of Headwater: Faust's mapping, and many keys at once."""
# ruff: noqa: SLF001 - Faust's stores have no other names for what their tables need of them

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, cast

import faust

from pipeline.state.table_store import TableStore


class Table(faust.Table[Any, Any]):
    """Set by `faust.App(..., Table=Table, store="headwater://")`, as Headwater's own app does.

    Its changelog gets the last value of each key that a slice has written, in bulk at the end of the slice, instead of a
    record a write. With another store it is Faust's table, and has Faust's path.

    The partition is that of the event under way. Where there is none (a step in the transaction's thread), name it.
    """

    store_sends = True
    """Tells the store to write the changelog."""

    def get_many(self, keys: Iterable[Any], *, partition: int | None = None) -> list[Any]:
        """Return the values in the order of the keys, by one look-up; for one that is missing the default, or None."""
        wanted = list(keys)
        if not isinstance(self.data, TableStore):
            return [self[key] if key in self else self._missing() for key in wanted]
        store = self.data
        for key in wanted:
            self.on_key_get(key)
        found = store.read_many([store._encode_key(key) for key in wanted], partition)
        return [self._missing() if value is None else store._decode_value(value) for value in found]

    def put_many(self, items: Mapping[Any, Any] | Iterable[tuple[Any, Any]], *, partition: int | None = None) -> None:
        """Set many keys: all of them are in the slice's transaction."""
        pairs = list(items.items() if isinstance(items, Mapping) else items)
        if not isinstance(self.data, TableStore):
            self.update(dict(pairs))
            return
        store = self.data
        writes = {store._encode_key(key): store._encode_value(value) for key, value in pairs}
        store.write_many(writes, partition)
        for key, value in pairs:
            self._take_note(store, key, partition)
            self._sensor_on_set(self, key, value)

    def delete_many(self, keys: Iterable[Any], *, partition: int | None = None) -> None:
        """Delete many keys, those that are not there as well."""
        gone = list(keys)
        if not isinstance(self.data, TableStore):
            for key in gone:
                self.pop(key, None)
            return
        store = self.data
        store.write_many({store._encode_key(key): None for key in gone}, partition)
        for key in gone:
            self._sensor_on_del(self, key)

    def _missing(self) -> Any:
        return None if self.default is None else self.default()

    def _take_note(self, store: TableStore, key: Any, partition: int | None = None) -> None:
        if self._should_expire_keys():
            number = store.number(store._encode_key(key), partition)
            self._maybe_set_key_ttl(key, cast("int", number))

    # -- Faust's mapping: the store writes the changelog --------------------------------------------------------------

    def __getitem__(self, key: Any) -> Any:
        """Return a value by one look-up (Faust's own way takes two)."""
        self.on_key_get(key)
        try:
            return self.data[key]
        except KeyError:
            return self.__missing__(key)

    def on_key_set(self, key: Any, value: Any) -> None:
        """Call before a key is set."""
        if not isinstance(self.data, TableStore):
            super().on_key_set(key, value)
            return
        self._take_note(self.data, key)
        self._sensor_on_set(self, key, value)

    def on_key_del(self, key: Any) -> None:
        """Call before a key is deleted."""
        if not isinstance(self.data, TableStore):
            super().on_key_del(key)
            return
        self._sensor_on_del(self, key)
