"""A topic of one partition that a sink follows: read to its end once, then kept up with."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

from confluent_kafka import KafkaException, Message, TopicPartition

from pipeline.errors import TransientError
from pipeline.transport import Follower, Transport, clients

FOLLOW_TIMEOUT_S = 10.0
FOLLOW_PAUSE_S = 0.02


class Followed:
    """Follows a topic; `apply` gets its records, in a thread of its own. The others may be called from any thread."""

    def __init__(self, transport: Transport, topic: str, apply: Callable[[Sequence[Message]], None]) -> None:
        self._transport, self._topic, self._apply = transport, topic, apply
        self._lock = threading.Lock()
        self._follower: Follower | None = None
        self._was_read = False

    def read(self) -> None:
        """Return when the topic was read to its end once; blocks. Raises TransientError when the broker does not answer."""
        if not self._was_read:
            self.catch_up()

    def catch_up(self) -> None:
        """Return when all is read that is committed by now; the same errors."""
        with self._lock:
            if self._follower is None:
                self._follower = Follower(self._transport.client_conf(), self._topic, self._apply)
                self._follower.start()
        end, deadline = self._end(), time.monotonic() + FOLLOW_TIMEOUT_S
        while self._follower.reached.get(0, 0) < end:
            if time.monotonic() > deadline:
                raise TransientError(f"the topic {self._topic} could not be read to its end", hint="headwater check")
            time.sleep(FOLLOW_PAUSE_S)
        self._was_read = True

    def _end(self) -> int:
        consumer = clients.consumer(self._transport.client_conf(), self._topic)
        try:
            return int(consumer.get_watermark_offsets(TopicPartition(self._topic, 0), FOLLOW_TIMEOUT_S)[1])
        except KafkaException as error:
            raise TransientError(f"the topic {self._topic}: {error.args[0].str()}", hint="headwater check") from error
        finally:
            consumer.close()
