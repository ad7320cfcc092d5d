"""Draw docs/images/transport.svg, the way of a record through the transport: python docs/images/transport.py."""  # noqa: INP001 - a script

from __future__ import annotations

import sys
from pathlib import Path

from flow import BOX, box, picture, text

TARGET = Path(__file__).with_name("transport.svg")
WIDTH, HEIGHT = 960, 430
LANES = [
    (16, "the reader's thread", 96),
    (150, "the event loop", 96),
    (284, "the transaction's thread", 96),
]
"""Rows, one a thread: top, name, height."""
READER, LOOP, WORK = (top + 30 for top, _, _ in LANES)


def lane(top: int, name: str, height: int) -> list[str]:
    """Return the frame of a thread."""
    return [
        f'<rect class="frame" x="150" y="{top}" width="660" height="{height}" rx="14"/>',
        f'<text class="band" x="796" y="{top + 20}" text-anchor="end">{name}</text>',
    ]


def way(*points: tuple[int, int]) -> str:
    """Return an arrow over these points."""
    return f'<path class="way" marker-end="url(#head)" d="M{" L".join(f"{x},{y}" for x, y in points)}"/>'


def note(x: int, y: int, *lines: str) -> list[str]:
    """Return lines of small text."""
    return [f'<text class="note" x="{x}" y="{y + 16 * row}">{words}</text>' for row, words in enumerate(lines)]


def draw() -> str:
    """Return the picture."""
    middle = BOX // 2
    parts: list[str] = []
    for row in LANES:
        parts += lane(*row)
    parts += [
        '<rect class="topic" x="16" y="16" width="96" height="364" rx="26"/>',
        text(64, 190, "name", "Kafka"),
        text(64, 210, "line", "the broker"),
        *box(270, READER, "agent", "reader", "polls, for ever"),
        *box(480, READER, "outside", "beginnings", "from where to read"),
        *box(270, LOOP, "agent", "backlog", "queues by partition"),
        *box(480, LOOP, "agent", "slices", "deliver, await acks"),
        *box(690, LOOP, "topic", "agents", "a Batch at a time"),
        *box(690, WORK, "topic", "steps", "produce(...)"),
        *box(480, WORK, "lost", "transaction", "one commit a slice"),
        *box(270, WORK, "outside", "participants", "state, sources"),
        way((112, READER + middle), (188, READER + middle)),
        way((270, READER + BOX), (270, LOOP - 8)),
        way((407, READER + middle), (352, READER + middle)),
        way((343, LOOP + middle), (398, LOOP + middle)),
        way((553, LOOP + middle), (608, LOOP + middle)),
        way((690, LOOP + BOX), (690, WORK - 8)),
        way((617, WORK + middle), (562, WORK + middle)),
        way((480, LOOP + BOX), (480, WORK - 8)),
        way((407, WORK + middle), (352, WORK + middle)),
        way((480, WORK + BOX), (480, 400), (64, 400), (64, 390)),
        *note(566, 396, "outputs, changelogs and offsets,", "under the group's membership"),
        *note(824, READER + 14, "A rebalance waits", "for the end of", "the slice."),
        *note(824, LOOP + 14, "Aborted: all goes", "back to the front", "of the backlog."),
        *note(824, WORK + 14, "State is written", "after the commit."),
    ]
    label = "Reader, backlog, slices, agents, steps, transaction; and back to Kafka in one commit"
    return picture(parts, WIDTH, HEIGHT, label)


if __name__ == "__main__":
    TARGET.write_text(draw())
    sys.stdout.write(f"{TARGET}\n")
