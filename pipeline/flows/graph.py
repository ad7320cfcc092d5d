"""`headwater flows graph`: the flows as Mermaid, or as SVG."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

from pipeline.settings.enrich import EnrichSettings, JoinSettings, LookupSettings, PythonSettings, SqlSettings
from pipeline.settings.flows import FlowSettings

LEFT, WIDTH, LINE, GAP = 20, 250, 17, 26
COLUMNS = (LEFT, LEFT + WIDTH + 90, LEFT + 2 * WIDTH + 90 + 230)
"""Where tables, flows and sinks begin: rules are between the last two."""
MARGIN = 12
NAME, TEXT, RULE = 14, 12, 11
"""Sizes of text, in pixels."""
STYLE = f"""
  text {{ font-family: ui-sans-serif, -apple-system, "Segoe UI", "DejaVu Sans", Helvetica, Arial, sans-serif; }}
  .name {{ font-size: {NAME}px; font-weight: 600; fill: #ffffff; }}
  .line {{ font-size: {TEXT}px; fill: #ffffff; }}
  .rule {{ font-size: {RULE}px; fill: #57606a; }}
  .halo {{ font-size: {RULE}px; stroke: #ffffff; stroke-width: 5px; }}
  .table {{ fill: #9a6700; }}
  .flow {{ fill: #1a7f37; }}
  .sink {{ fill: #0a5fb4; }}
  .way {{ fill: none; stroke: #6e7781; stroke-width: 1.5; }}
  @media (prefers-color-scheme: dark) {{ .rule {{ fill: #b1bac4; }} .halo {{ stroke: #0d1117; }} }}
"""


class Way(NamedTuple):
    """A way out of a flow."""

    topic: str
    """A sink, or `enriched.NAME` for what `through` publishes."""
    rule: str
    """What leads there; '' for everything."""


def steps(flow: FlowSettings) -> list[str]:
    """Return what a flow does, a line a step."""
    lines = []
    if flow.where is not None:
        lines.append(f"where {_short(flow.where)}")
    lines += [f"{step.kind} {_target(step)}".strip() for step in flow.enrich]
    shape = {"select": flow.select, "drop": flow.drop, "rename": tuple(flow.rename)}
    lines += [f"{name} {', '.join(attributes)}" for name, attributes in shape.items() if attributes]
    lines += [f"{mask.how} {mask.path}" for mask in flow.mask]
    encoding = " ".join(kind for kind in (flow.envelope.kind, flow.format.kind) if kind not in {"dynamodb", "json"})
    if flow.format.schemas:
        encoding = f"{encoding} with schemas"
    if flow.key_format.is_struct:
        encoding = f"{encoding}, keys {flow.key_format.kind}"
    leaves = [] if flow.leaves is None else [f"on_leave {flow.leaves}"]
    return [*lines, *([encoding] if encoding else []), *leaves]


def _target(step: EnrichSettings) -> str:
    """Return what a step asks, or the name of what it adds."""
    if isinstance(step, JoinSettings):
        return step.table or step.reference
    if isinstance(step, SqlSettings):
        return ", ".join(step.tables)
    if isinstance(step, PythonSettings):
        return step.name
    return (step.table if isinstance(step, LookupSettings) else None) or step.into


def ways(flow: FlowSettings) -> list[Way]:
    """Return the ways out of a flow, one a topic, with their rules in the order in which they are asked."""
    rules: dict[str, list[str]] = {f"enriched.{flow.through}": ["through"]} if flow.through else {}
    for number, to in enumerate(flow.to, 1):
        if len(flow.to) == 1 and to.where is None:
            rule = []
        elif flow.match == "all":
            rule = ["everything" if to.where is None else f"all: {_short(to.where)}"]
        else:
            rule = [f"{number}. {'the rest' if to.where is None else _short(to.where)}"]
        rules.setdefault(to.sink, []).extend(rule)
    if flow.otherwise:
        rules.setdefault(flow.otherwise, []).append("otherwise")
    return [Way(topic, ", ".join(of)) for topic, of in rules.items()]


def _short(where: object) -> str:
    text = where if isinstance(where, str) else str(where).replace("'", '"')
    return text if len(text) <= 32 else f"{text[:31]}…"


def mermaid(flows: Sequence[FlowSettings]) -> str:
    """Return the flows as a Mermaid flowchart."""
    lines = ["flowchart LR"]
    tables = {table: f"t{n}" for n, table in enumerate(_tables(flows))}
    topics = {topic: f"s{n}" for n, topic in enumerate(_topics(flows))}
    lines += [f'  {node}[("{_quoted(table)}")]' for table, node in tables.items()]
    for number, flow in enumerate(flows):
        words = "<br/>".join(map(_quoted, [flow.name, *steps(flow)]))
        lines.append(f'  f{number}["{words}"]')
    lines += [f'  {node}(["{_quoted(topic)}"])' for topic, node in topics.items()]
    for number, flow in enumerate(flows):
        lines += [f"  {tables[table]} --> f{number}" for table in flow.tables or ("all tables",)]
        lines += [f"  {tables[table]} -.-> f{number}" for table in _joined(flow)]
        for way in ways(flow):
            rule = f'|"{_quoted(way.rule)}"|' if way.rule else ""
            lines.append(f"  f{number} -->{rule} {topics[way.topic]}")
    return "\n".join(lines) + "\n"


def _quoted(words: str) -> str:
    return words.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;").replace(">", "&gt;")


def _tables(flows: Sequence[FlowSettings]) -> list[str]:
    return list(dict.fromkeys(t for flow in flows for t in (*(flow.tables or ("all tables",)), *_joined(flow))))


def _joined(flow: FlowSettings) -> list[str]:
    return list(dict.fromkeys([*flow.references, *flow.partitioned]))


def _topics(flows: Sequence[FlowSettings]) -> list[str]:
    return list(dict.fromkeys(way.topic for flow in flows for way in ways(flow)))


def svg(flows: Sequence[FlowSettings]) -> str:
    """Return the flows as a picture: tables, flows with their steps, sinks, from left to right."""
    columns: list[list[tuple[str, str, list[str]]]] = [
        [(table, "table", []) for table in _tables(flows)],
        [(flow.name, "flow", steps(flow)) for flow in flows],
        [(topic, "sink", []) for topic in _topics(flows)],
    ]
    heights = [sum(_height(lines) + GAP for _, _, lines in column) for column in columns]
    height = max(heights, default=0) + GAP
    places: dict[tuple[str, str], tuple[int, int]] = {}
    boxes = []
    for x, column, tall in zip(COLUMNS, columns, heights, strict=True):
        y = (height - tall + GAP) // 2
        for name, kind, lines in column:
            places[kind, name] = x, y + _height(lines) // 2
            boxes += _box(x, y, kind, name, lines)
            y += _height(lines) + GAP
    drawn, rules = [], list[str]()
    told: Counter[str] = Counter()
    for flow in flows:
        at = places["flow", flow.name]
        drawn += [_way(places["table", table], at) for table in flow.tables or ("all tables",)]
        drawn += [_way(places["table", table], at, ' stroke-dasharray="4 4"') for table in _joined(flow)]
        for way in ways(flow):
            end = places["sink", way.topic]
            drawn.append(_way(at, end))
            if way.rule:
                rules.append(_rule(at, end, way.rule, told[way.topic]))
                told[way.topic] += 1
    width = COLUMNS[-1] + WIDTH + LEFT
    body = "\n".join(drawn + rules + boxes)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}">\n'
        f"<style>{STYLE}</style>\n{body}\n</svg>\n"
    )


def _height(lines: Sequence[str]) -> int:
    return 36 + LINE * len(lines)


def fitting(text: str, size: int, room: int) -> str:
    """Return as much of a text as has room, in the widest of the fonts that may be used."""
    left = room - _width("…", size)
    if _width(text, size) <= room:
        return text
    end = 0
    while (left := left - _width(text[end], size)) >= 0:
        end += 1
    return f"{text[:end]}…"


def _width(text: str, size: int) -> float:
    return sum(
        size * (1.0 if char in "mwMW@%" or not char.isascii() else 0.8 if char.isupper() else 0.65) for char in text
    )


def _box(x: int, y: int, kind: str, name: str, lines: Sequence[str]) -> list[str]:
    room = WIDTH - 2 * MARGIN
    whole = escape("\n".join([name, *lines]))  # shown where the pointer is
    return [
        f'<rect class="{kind}" x="{x}" y="{y}" width="{WIDTH}" height="{_height(lines)}" rx="9"><title>{whole}</title></rect>',
        f'<text class="name" x="{x + WIDTH // 2}" y="{y + 23}" text-anchor="middle">{escape(fitting(name, NAME, room))}</text>',
        *(
            f'<text class="line" x="{x + MARGIN}" y="{y + 44 + LINE * n}">{escape(fitting(line, TEXT, room))}</text>'
            for n, line in enumerate(lines)
        ),
    ]


def _way(begin: tuple[int, int], end: tuple[int, int], more: str = "") -> str:
    x, y = begin[0] + WIDTH, begin[1]
    half = (end[0] - x) // 2
    return f'<path class="way" d="M{x},{y} C{x + half},{y} {end[0] - half},{end[1]} {end[0]},{end[1]}"{more}/>'


def _rule(begin: tuple[int, int], end: tuple[int, int], rule: str, before: int) -> str:
    """Return what is written on a way: at its sink, above the rules of other flows that were put there before."""
    x, y = end[0] - MARGIN, end[1] - 6 - LINE * before
    room = end[0] - (begin[0] + WIDTH) - 2 * MARGIN
    shown = escape(fitting(rule, RULE, room))
    place = f'x="{x}" y="{y}" text-anchor="end"'
    return (
        f'<text class="halo" {place} aria-hidden="true">{shown}</text>'  # ways pass behind it
        f'<text class="rule" {place}>{shown}<title>{escape(rule)}</title></text>'
    )
