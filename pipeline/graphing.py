"""`headwater flows graph`: the flows as Mermaid, or as SVG."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from pipeline.flow_settings import Flow

COLUMN, WIDTH, LINE, GAP = 330, 230, 17, 26
STYLE = """
  text { font-family: ui-sans-serif, -apple-system, "Segoe UI", "DejaVu Sans", Helvetica, Arial, sans-serif; }
  .name { font-size: 14px; font-weight: 600; fill: #ffffff; }
  .line { font-size: 12px; fill: #ffffff; }
  .table { fill: #9a6700; }
  .flow { fill: #1a7f37; }
  .sink { fill: #0a5fb4; }
  .way { fill: none; stroke: #6e7781; stroke-width: 1.5; }
"""


def steps(flow: Flow) -> list[str]:
    """Return what a flow does, a line a step."""
    lines = []
    if flow.where is not None:
        lines.append(f"where {_short(flow.where)}")
    for step in flow.enrich:
        target = getattr(step, "table", None) or getattr(step, "into", None) or getattr(step, "name", "")
        lines.append(f"{step.kind} {target}".strip())
    shape = {"select": flow.select, "drop": flow.drop, "rename": tuple(flow.rename)}
    lines += [f"{name} {', '.join(attributes)}" for name, attributes in shape.items() if attributes]
    lines += [f"{mask.how} {mask.path}" for mask in flow.mask]
    if flow.through:
        lines.append(f"through {flow.through}")
    encoding = " ".join(kind for kind in (flow.envelope.kind, flow.format.kind) if kind not in {"dynamodb", "json"})
    return [*lines, *([encoding] if encoding else [])]


def _short(where: object) -> str:
    text = where if isinstance(where, str) else str(where).replace("'", '"')
    return text if len(text) <= 32 else f"{text[:31]}…"


def mermaid(flows: Sequence[Flow]) -> str:
    """Return the flows as a Mermaid flowchart."""
    lines = ["flowchart LR"]
    tables = {table: f"t{n}" for n, table in enumerate(_tables(flows))}
    sinks = {sink: f"s{n}" for n, sink in enumerate(_sinks(flows))}
    lines += [f'  {node}[("{_quoted(table)}")]' for table, node in tables.items()]
    for number, flow in enumerate(flows):
        words = "<br/>".join(map(_quoted, [flow.name, *steps(flow)]))
        lines.append(f'  f{number}["{words}"]')
    lines += [f'  {node}(["{_quoted(sink)}"])' for sink, node in sinks.items()]
    for number, flow in enumerate(flows):
        lines += [f"  {tables[table]} --> f{number}" for table in flow.tables or ("all tables",)]
        lines += [f"  {tables[table]} -.-> f{number}" for table in _joined(flow)]
        lines += [f"  f{number} --> {sinks[sink]}" for sink in flow.sinks]
    return "\n".join(lines) + "\n"


def _quoted(words: str) -> str:
    return words.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;").replace(">", "&gt;")


def _tables(flows: Sequence[Flow]) -> list[str]:
    return list(dict.fromkeys(t for flow in flows for t in (*(flow.tables or ("all tables",)), *_joined(flow))))


def _joined(flow: Flow) -> list[str]:
    return list(dict.fromkeys([*flow.references, *flow.partitioned]))


def _sinks(flows: Sequence[Flow]) -> list[str]:
    return list(dict.fromkeys(sink for flow in flows for sink in flow.sinks))


def svg(flows: Sequence[Flow]) -> str:
    """Return the flows as a picture: tables, flows with their steps, sinks, from left to right."""
    columns: list[list[tuple[str, str, list[str]]]] = [
        [(table, "table", []) for table in _tables(flows)],
        [(flow.name, "flow", steps(flow)) for flow in flows],
        [(sink, "sink", []) for sink in _sinks(flows)],
    ]
    heights = [sum(_height(lines) + GAP for _, _, lines in column) for column in columns]
    height = max(heights, default=0) + GAP
    places: dict[tuple[str, str], tuple[int, int]] = {}
    boxes = []
    for number, (column, tall) in enumerate(zip(columns, heights, strict=True)):
        x, y = 20 + number * COLUMN, (height - tall + GAP) // 2
        for name, kind, lines in column:
            places[kind, name] = x, y + _height(lines) // 2
            boxes += _box(x, y, kind, name, lines)
            y += _height(lines) + GAP
    ways = []
    for flow in flows:
        at = places["flow", flow.name]
        ways += [_way(places["table", table], at) for table in flow.tables or ("all tables",)]
        ways += [_way(places["table", table], at, ' stroke-dasharray="4 4"') for table in _joined(flow)]
        ways += [_way(at, places["sink", sink]) for sink in flow.sinks]
    width = 40 + 2 * COLUMN + WIDTH
    body = "\n".join(ways + boxes)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}">\n'
        f"<style>{STYLE}</style>\n{body}\n</svg>\n"
    )


def _height(lines: Sequence[str]) -> int:
    return 36 + LINE * len(lines)


def _box(x: int, y: int, kind: str, name: str, lines: Sequence[str]) -> list[str]:
    return [
        f'<rect class="{kind}" x="{x}" y="{y}" width="{WIDTH}" height="{_height(lines)}" rx="9"/>',
        f'<text class="name" x="{x + WIDTH // 2}" y="{y + 23}" text-anchor="middle">{escape(name)}</text>',
        *(
            f'<text class="line" x="{x + 12}" y="{y + 44 + LINE * n}">{escape(line)}</text>'
            for n, line in enumerate(lines)
        ),
    ]


def _way(begin: tuple[int, int], end: tuple[int, int], more: str = "") -> str:
    x, y = begin[0] + WIDTH, begin[1]
    half = (end[0] - x) // 2
    return f'<path class="way" d="M{x},{y} C{x + half},{y} {end[0] - half},{end[1]} {end[0]},{end[1]}"{more}/>'
