"""The flows of a replay: compiled with the references as they are now, which wait for nothing."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping

from confluent_kafka import OFFSET_BEGINNING, Message

from models.change import decode as decode_change
from pipeline.errors import UsageError
from pipeline.flows.compile import CompileContext, FixedRows, compile_flow, schema_registry
from pipeline.replay.plan import Replay
from pipeline.replay.transaction import REPLAY_TIMEOUT_S, on_cluster, reader
from pipeline.settings.enrich import PARTITIONED, TOPIC, JoinSettings
from pipeline.settings.flows import FlowSettings
from pipeline.settings.root import Settings
from pipeline.state.items import ITEMS, SCHEMAS, item_place, schema_of
from pipeline.state.reference import reference_item
from pipeline.steps.enrich import Lookup
from pipeline.steps.flow import Flow, Given
from pipeline.steps.python import load_functions
from pipeline.topics.names import Topics
from pipeline.topics.read import read_topic


def measured(settings: Settings, replay: Replay, records: Iterable[tuple[bytes | None, bytes, float]]) -> float:
    """Return how many records a second the flows manage, of these; 0 when there are none. Nothing is written."""
    flows = [flow for _, flow in compiled(settings, replay.flows).values()]
    given = []
    for number, (key, value, at) in enumerate(records):
        try:
            given.append(Given(number, key, value, decode_change(value), at))
        except ValueError:
            continue
    started = time.perf_counter()
    for flow in flows:
        flow.run(given)
    # Reading, producing and the transaction take about 10 us a record beside the flows.
    return len(given) / (time.perf_counter() - started + len(given) * 10e-6) if given else 0.0


def compiled(settings: Settings, names: Iterable[str]) -> dict[str, tuple[FlowSettings, Flow]]:
    """Compile the flows of a replay, with the references as they are now."""
    wanted = list(names)
    known = {flow.name: flow for flow in settings.flows}
    if unknown := [name for name in wanted if name not in known]:
        raise UsageError(f"there is no flow {unknown[0]!r}", hint=f"one of {', '.join(known)}; headwater flows graph")
    chosen = [without_waiting(flow) for name, flow in known.items() if not wanted or name in wanted]
    references = {table: references_of(settings, table) for flow in chosen for table in flow.references}
    partitioned = {table for flow in chosen for table in flow.partitioned}
    state = items_of_flow_state(settings) if partitioned else {}
    means = CompileContext(
        references={
            **{table: items.get for table, items in references.items()},
            **{f"{PARTITIONED}{table}": item_finder(state, table) for table in partitioned},
        },
        key_schema=lambda table: state.get(schema_of(table), b"").decode(),
        rows={table: FixedRows(items) for table, items in references.items()},
        functions=load_functions(settings.modules),
        topic=Topics(settings).sink,
        registry=schema_registry(settings),
    )
    return {flow.name: (flow, compile_flow(flow, means)) for flow in chosen}


def without_waiting(flow: FlowSettings) -> FlowSettings:
    """Return a flow whose joins do not wait: the references of a replay are all there, or never come."""
    enrich = tuple(
        step.model_copy(update={"hold": 0.0}) if isinstance(step, JoinSettings) else step for step in flow.enrich
    )
    return flow.model_copy(update={"enrich": enrich})


def references_of(settings: Settings, table: str) -> dict[bytes, bytes]:
    """Return the items of a reference table, as they are now."""
    topics, items = Topics(settings), dict[bytes, bytes]()
    is_topic = table.startswith(TOPIC)
    topic = table.removeprefix(TOPIC) if is_topic else topics.reference(table)
    for record in all_of(settings, topic):
        item = reference_item(record) if is_topic else record.value()
        if item:
            items[record.key() or b""] = item
        else:
            items.pop(record.key() or b"", None)
    return items


def items_of_flow_state(settings: Settings) -> dict[bytes, bytes]:
    """Return the items of all partitioned reference tables, as they are now, by their places in the flow state."""
    found = ((record.key() or b"", record.value()) for record in all_of(settings, Topics(settings).flow_state))
    latest = {key: value for key, value in found if key.startswith((ITEMS, SCHEMAS))}
    return {key: value for key, value in latest.items() if value is not None}


def item_finder(state: Mapping[bytes, bytes], table: str) -> Lookup:
    """Return what finds an item of a partitioned table by its key."""
    return lambda key: state.get(item_place(table, key))


def all_of(settings: Settings, topic: str) -> list[Message]:
    """Return all records of a topic; none when it is not there."""
    consumer = reader(settings, f"{settings.prefix}.replay")
    try:
        with on_cluster():
            partitions = consumer.list_topics(timeout=REPLAY_TIMEOUT_S).topics
            if topic not in partitions:
                return []
            return read_topic(consumer, topic, dict.fromkeys(partitions[topic].partitions, OFFSET_BEGINNING), None)
    finally:
        consumer.close()
