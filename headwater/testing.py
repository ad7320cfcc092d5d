"""Try functions for flows without Kafka.

>>> from headwater import enrich
>>> from headwater.testing import change, run
>>> @enrich("vat")
... def vat(change):
...     return {"vat": change.after["total"] / 5}
>>> run(vat, change("orders", new={"order_id": "o-1", "total": 100}))
[{'vat': Decimal('20')}]
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from models.attributes import python_value, typed
from models.change import OPS, decode, item_key
from pipeline.steps.event import Event
from pipeline.steps.python import DROP, MARK, Function, call

__all__ = ["change", "run"]
_NAMES: dict[str, str] = {op: name for name, op in OPS.items()}


def change(
    table: str,
    *,
    new: Mapping[str, Any] | None = None,
    old: Mapping[str, Any] | None = None,
    key: Sequence[str] = (),
    op: str = "",
    event_id: str = "e-1",
    at: float | None = None,
) -> dict[str, Any]:
    """Return a change as it is on raw, made of plain Python values.

    `key` names the key attributes (the first of the item, if none is named); `op` is c, u, d or r and follows from the images
    where it is not given; `at` is when it happened, in seconds since the epoch.
    """
    item = new if new is not None else old
    if not item:
        raise ValueError("a change has a new or an old item")
    images = {name: image for name, image in (("NewImage", new), ("OldImage", old)) if image is not None}
    names = tuple(key) or (next(iter(item)),)
    return {
        "eventID": event_id,
        "eventName": _NAMES[op or ("d" if new is None else "c" if old is None else "u")],
        "tableName": table,
        "dynamodb": {
            "ApproximateCreationDateTime": time.time() if at is None else at,
            "Keys": {name: typed(item[name]) for name in names},
            **{name: {attribute: typed(value) for attribute, value in image.items()} for name, image in images.items()},
        },
    }


def run(function: Callable[..., Any], *records: Mapping[str, Any]) -> list[Any]:
    """Return what a function declared by `@enrich` adds to each record, given as one batch; DROP for one left out.

    Raises what the function raises.
    """
    declared = getattr(function, MARK, None)
    if not isinstance(declared, Function):
        raise TypeError(f"{function!r} is not declared by @enrich")
    events = []
    for record in records:
        value = json.dumps(record).encode()
        found = decode(value)
        events.append(Event(item_key(found.body.keys), value, found))
    call(declared)(events)
    for event in events:
        if event.error is not None:
            raise event.error
    return [
        DROP if event.gone else {name: python_value(json.loads(bytes(value))) for name, value in event.added.items()}
        for event in events
    ]
