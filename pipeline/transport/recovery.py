"""What Faust's recovery of `app.Table` needs beside the consumer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any, cast

from confluent_kafka import Consumer as RdConsumer
from confluent_kafka import KafkaError, KafkaException, TopicPartition
from faust.transport.consumer import Consumer as FaustConsumer
from faust.types import TP

from pipeline.transport.backlog import Backlog

SEEK_DEADLINE = 2.0


def seek(tp: TP, offset: int, done: Callable[[], object]) -> Callable[[RdConsumer], None]:
    """Return a command for the reader's thread; a partition assigned a moment ago cannot be sought at once."""

    def run(consumer: RdConsumer) -> None:
        deadline = time.monotonic() + SEEK_DEADLINE
        while True:
            try:
                consumer.seek(TopicPartition(tp.topic, tp.partition, offset))
            except KafkaException as error:
                if error.args[0].code() != KafkaError._STATE or time.monotonic() > deadline:  # noqa: SLF001
                    raise
                time.sleep(0.02)
            else:
                done()
                return

    return run


async def end_recovery_at(
    consumer: FaustConsumer, backlog: Backlog, tp: TP, offset: int, holds: Callable[[], bool]
) -> None:
    """Tell Faust that a changelog has been read to its end, as long as that holds: it does not when it is read again.

    A transactional changelog ends in a commit marker, so no record ever has the offset that Faust waits for.
    """
    app = consumer.app
    recovery = cast("Any", app.tables).recovery
    while not app.should_stop and tp in consumer.assignment() and holds():
        read = not backlog.queues.get(tp) and cast("Any", app.tables).changelog_queue.empty()
        if recovery.in_recovery and tp in recovery.active_tps and read:
            await asyncio.sleep(0.01)
            at = recovery.active_offsets[tp]
            if at is not None and at < offset - 1:
                recovery.active_offsets[tp] = offset - 1
            if recovery.active_highwaters and not recovery.need_recovery():
                recovery.flush_buffers()
                recovery._set_recovery_ended()  # noqa: SLF001
                recovery.signal_recovery_end.set()
            return
        await asyncio.sleep(0.02)
