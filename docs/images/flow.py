"""Draw docs/images/flow.svg, the picture of the flow: python docs/images/flow.py."""  # noqa: INP001 - a script

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

TARGET = Path(__file__).with_name("flow.svg")
WIDTH, HEIGHT = 960, 418
TOP, AGENTS, LOST = 62, 196, 350
"""The rows: what holds changes, what carries them, what is rejected or lost."""
BOX = 54

STYLE = """
  text { font-family: ui-sans-serif, -apple-system, "Segoe UI", "DejaVu Sans", Helvetica, Arial, sans-serif; }
  .name { font-size: 15px; font-weight: 600; fill: #ffffff; }
  .line { font-size: 12px; fill: #ffffff; }
  .note { font-size: 12px; fill: #57606a; }
  .band { font-size: 13px; font-weight: 600; fill: #57606a; }
  .frame { fill: #8c959f; fill-opacity: 0.10; stroke: #8c959f; stroke-opacity: 0.55; }
  .outside { fill: #9a6700; }
  .topic { fill: #0a5fb4; }
  .agent { fill: #1a7f37; }
  .lost { fill: #a13a34; }
  .way { fill: none; stroke: #6e7781; stroke-width: 2; }
  .aside { fill: none; stroke: #6e7781; stroke-width: 1.5; stroke-dasharray: 4 4; }
  .head { fill: #6e7781; }
  @media (prefers-color-scheme: dark) {
    .note, .band { fill: #b1bac4; }
    .way, .aside { stroke: #9198a1; }
    .head { fill: #9198a1; }
  }
"""

HOLDS = [
    (96, "outside", "DynamoDB", "streams of tables"),
    (288, "topic", "ingest", "as delivered"),
    (480, "topic", "raw", "every change once"),
    (672, "topic", "sink.*", "what flows emit"),
    (864, "outside", "Lake", "Parquet, Iceberg"),
]
CARRIES = [
    (192, "ingest", "walks shards", ["positions:", "topic shards"]),
    (384, "deduplicate", "drops repeats", ["event IDs: RocksDB,", "topic seen"]),
    (576, "transform", "filter, join, route", ["joined tables: RocksDB,", "topics reference.*"]),
    (768, "lake", "write-once files", ["beside it: mirror (cluster),", "replica (table), Pub/Sub"]),
]


def text(x: int, y: int, style: str, words: str) -> str:
    """Return a centred line of text."""
    return f'<text class="{style}" x="{x}" y="{y}" text-anchor="middle">{words}</text>'


def box(x: int, y: int, style: str, name: str, line: str, *, width: int = 146, round_by: int = 10) -> list[str]:
    """Return a box with a name and a line below it."""
    return [
        f'<rect class="{style}" x="{x - width // 2}" y="{y}" width="{width}" height="{BOX}" rx="{round_by}"/>',
        text(x, y + 23, "name", name),
        text(x, y + 42, "line", line),
    ]


def down(x: int, to: int) -> str:
    """Return the way from what holds changes at x to the agent at `to`, which is on the right of it."""
    y, end = TOP + BOX, AGENTS - 8
    return (
        f'<path class="way" marker-end="url(#head)" d="M{x},{y} C{x},{y + 45} {to - 34},{end - 45} {to - 34},{end}"/>'
    )


def up(x: int, to: int) -> str:
    """Return the way from the agent at x to where it writes, on the right of it."""
    y, end = AGENTS, TOP + BOX + 8
    x, to = x + 34, to - 10
    return f'<path class="way" marker-end="url(#head)" d="M{x},{y} C{x},{y - 45} {to},{end + 45} {to},{end}"/>'


def aside(x: int) -> str:
    """Return the way of what an agent cannot process."""
    return f'<path class="aside" marker-end="url(#head)" d="M{x},{AGENTS + 108} L{x},{LOST - 8}"/>'


def picture(parts: Sequence[str], width: int, height: int, label: str) -> str:
    """Return an SVG of these parts, with the head of an arrow that they may use; `label` says it in words."""
    body = "\n".join(
        [
            '<defs><marker id="head" viewBox="0 0 10 10" refX="4" refY="5" markerWidth="5" markerHeight="5" orient="auto">',
            '<path class="head" d="M0,0 L10,5 L0,10 z"/></marker></defs>',
            *parts,
        ]
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'role="img" aria-label="{label}">\n<style>{STYLE}</style>\n{body}\n</svg>\n'
    )


def draw() -> str:
    """Return the picture."""
    parts = [
        f'<rect class="frame" x="196" y="24" width="568" height="{BOX + 58}" rx="14"/>',
        text(480, 46, "band", "Kafka topics, by item key"),
        f'<rect class="frame" x="104" y="{AGENTS - 16}" width="752" height="124" rx="14"/>',
    ]
    for (x, agent, line, notes), before, after in zip(CARRIES, HOLDS, HOLDS[1:], strict=False):
        parts += [down(before[0], x), up(x, after[0]), *box(x, AGENTS, "agent", agent, line)]
        parts += [text(x, AGENTS + BOX + 20 + 16 * row, "note", words) for row, words in enumerate(notes)]
    for x, style, name, line in HOLDS:
        parts += box(x, TOP, style, name, line, round_by=26 if style == "topic" else 10)
    parts += [
        aside(192),
        aside(384),
        *box(384, LOST, "lost", "dead-letter", "rejected, with why", round_by=26),
        *box(192, LOST, "lost", "gaps", "known to be lost", round_by=26),
        f'<text class="note" x="500" y="{LOST + 23}">Green: agents of Headwater, one transaction for</text>',
        f'<text class="note" x="500" y="{LOST + 40}">outputs, state and offsets. Blue and red: topics.</text>',
        f'<text class="note" x="500" y="{LOST + 57}">A replay takes raw through the flows again.</text>',
    ]
    label = "DynamoDB streams, ingest topic, raw topic, sink topics, lake; an agent between each two"
    return picture(parts, WIDTH, HEIGHT, label)


if __name__ == "__main__":
    TARGET.write_text(draw())
    sys.stdout.write(f"{TARGET}\n")
