"""The age of a change, as text that compares: `<time>.<rank>.<number>`, each part of a fixed width.

Of two changes of an item the newer one has the greater version, in whatever order, and how often, they come:

- time: `ts_us`, which every kind of change has.
- rank: 0 for a row of a snapshot, 1 for a change; so at equal time a row is older than any change.
- number: the sequence number, which grows with each change of an item in DynamoDB Streams. Where there is none (what DynamoDB
  delivers into Kinesis, rows) it is the offset in the sink topic, where all changes of an item share a partition: of
  two changes of the same microsecond the later one wins. That number is the same whenever the record is
  read again.

A row of a snapshot counts as `ROW_AGE` older than it says: its time is that of the clock of the machine that scanned, while
that of a change is AWS's. A change that came after the row must win whatever that clock says; a row must win only over
what was there long before, when a gap is repaired.

A replica keeps versions in DynamoDB, an Iceberg table in a column. It is text so that both can compare it.
"""

from __future__ import annotations

from models.change import Change

ROW_AGE = 60_000_000
"""Microseconds."""
TIME_DIGITS = 16
"""Microseconds until the year 2286."""
NUMBER_DIGITS = 40
"""DynamoDB's sequence numbers have 21 to 40 digits: too many for its numbers, which have 38."""


def version(change: Change, offset: int) -> str:
    """Return the version that an item has by a change at an offset of the sink topic; raise ValueError where it has none."""
    sequence = change.body.sequence
    if change.op == "r":
        return _version(max(0, change.ts_us - ROW_AGE), 0, str(offset))
    return _version(change.ts_us, 1, sequence or str(offset))


def version_before(time: int, sequence: str, offset: int) -> str:
    """Return the version of a row that was stored without one, by its time in microseconds, sequence number and offset.

    A row without a sequence number counts as one of a snapshot: what is newer must win, even if it was a change.
    """
    return _version(time, 1, sequence) if sequence else _version(max(0, time - ROW_AGE), 0, str(offset))


def _version(time: int, rank: int, number: str) -> str:
    if not 0 <= time < 10**TIME_DIGITS:
        raise ValueError(f"ApproximateCreationDateTime is out of range: {time} microseconds")
    if not (number.isascii() and number.isdecimal()) or len(number) > NUMBER_DIGITS:
        raise ValueError(f"SequenceNumber is not a number of at most {NUMBER_DIGITS} digits: {number!r}")
    return f"{time:0{TIME_DIGITS}d}.{rank}.{number:0>{NUMBER_DIGITS}}"
