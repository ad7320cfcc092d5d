"""Enhanced fan-out of Kinesis: registered consumers, and subscriptions that push a shard's records to them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from itertools import count
from typing import Any

import msgspec

from headwater.lab.simulator.dynamodb import some
from headwater.lab.simulator.event_stream import event, exception
from headwater.lab.simulator.faults import ApiError, CutOffError, ServiceFaults
from headwater.lab.simulator.history import SimulatedShard
from headwater.lab.simulator.kinesis import CREATED, PREFIX, Kinesis, Request, child, start

SUBSCRIBE = f"{PREFIX}SubscribeToShard"
CREATING_LOOKS = 2
"""How often a new consumer is seen as CREATING before it is ACTIVE."""
AGAIN = 5.0
"""Seconds in which a consumer cannot subscribe to a shard again."""
MOST_RECORDS, MOST_BYTES = 500, 1 << 20
"""In an event."""
TICK = 0.02
"""Seconds between two looks at a shard."""
BEAT = 1.0
"""Seconds after which an event comes also when there is nothing."""
encode = msgspec.json.encode


@dataclass(slots=True)
class SimulatedConsumer:
    """A registered consumer."""

    name: str
    arn: str
    stream: str
    looks: int = 0
    """How often it was looked at."""

    def described(self) -> dict[str, Any]:
        """Return it as AWS describes it."""
        status = "ACTIVE" if self.looks > CREATING_LOOKS else "CREATING"
        return {
            "ConsumerName": self.name,
            "ConsumerARN": self.arn,
            "ConsumerStatus": status,
            "ConsumerCreationTimestamp": CREATED,
        }


class FanOut:
    """Answers calls by their names, and subscriptions with messages. Errors are ApiError."""

    def __init__(self, kinesis: Kinesis, faults: ServiceFaults, *, seconds: float = 300.0) -> None:
        """`seconds`: how long a subscription lasts."""
        self._kinesis, self._faults, self._seconds = kinesis, faults, seconds
        self.consumers: dict[str, SimulatedConsumer] = {}
        """By ARN."""
        self._subscribed: dict[tuple[str, str], tuple[int, float]] = {}
        """Of a consumer and a shard: the number of the newest subscription, and since when it is."""
        self._numbers = count()
        self.calls: dict[str, Callable[[Request], bytes]] = {
            f"{PREFIX}RegisterStreamConsumer": self._register,
            f"{PREFIX}DescribeStreamConsumer": self._describe,
            f"{PREFIX}ListStreamConsumers": self._list,
        }

    # -- consumers ----------------------------------------------------------------------------------------------------

    def _register(self, request: Request) -> bytes:
        name, stream = self._kinesis.stream(request)
        consumer = SimulatedConsumer(request["ConsumerName"], "", name)
        if any((one.name, one.stream) == (consumer.name, name) for one in self.consumers.values()):
            raise ApiError("ResourceInUseException", f"Consumer {consumer.name} already exists")
        consumer.arn = f"{stream.arn}/consumer/{consumer.name}:{CREATED + next(self._numbers)}"
        self.consumers[consumer.arn] = consumer
        return encode({"Consumer": consumer.described()})

    def _describe(self, request: Request) -> bytes:
        consumer = self._find(request)
        consumer.looks += 1
        return encode({"ConsumerDescription": {**consumer.described(), "StreamARN": request.get("StreamARN", "")}})

    def _find(self, request: Request) -> SimulatedConsumer:
        if (arn := request.get("ConsumerARN")) is not None:
            found = self.consumers.get(arn)
        else:
            wanted = (request["ConsumerName"], self._kinesis.stream(request)[0])
            found = next(
                (consumer for consumer in self.consumers.values() if (consumer.name, consumer.stream) == wanted), None
            )
        if found is None:
            raise ApiError("ResourceNotFoundException", "Consumer not found")
        return found

    def _list(self, request: Request) -> bytes:
        name, _ = self._kinesis.stream(request)
        return encode(
            {"Consumers": [consumer.described() for consumer in self.consumers.values() if consumer.stream == name]}
        )

    # -- subscriptions ------------------------------------------------------------------------------------------------

    def subscribe(self, request: Request) -> AsyncIterator[bytes]:
        """Return the messages of a subscription. Raises CutOffError, with half a message in it, when it breaks off."""
        consumer = self._find(request)
        name, shard = self._kinesis.shard({"StreamName": consumer.stream}, request["ShardId"])
        place, now = (consumer.arn, shard.shard_id), time.monotonic()
        if consumer.described()["ConsumerStatus"] != "ACTIVE":
            raise ApiError("ResourceInUseException", f"Consumer {consumer.name} is not ACTIVE")
        _, since = self._subscribed.get(place, (0, -AGAIN))
        if now - since < AGAIN:
            raise ApiError("ResourceInUseException", "Another active subscription exists for this consumer and shard")
        where = request["StartingPosition"]
        at = start(shard, where["Type"], {**where, "StartingSequenceNumber": where.get("SequenceNumber")})
        number = next(self._numbers) + 1
        self._subscribed[place] = number, now
        return self._events(name, shard, at, place, number)

    async def _events(
        self, name: str, shard: SimulatedShard, at: int, place: tuple[str, str], number: int
    ) -> AsyncIterator[bytes]:
        yield event("initial-response", b"{}")
        end = time.monotonic() + self._seconds
        beat = 0.0
        while (now := time.monotonic()) < end:
            if self._subscribed[place][0] != number:
                yield exception("ResourceInUseException", b'{"message":"Another subscription took its place"}')
                return
            if place[0] not in self.consumers:
                yield exception("ResourceNotFoundException", b'{"message":"Consumer not found"}')
                return
            at = max(at, shard.gone)
            ended = not shard.is_open and at == shard.end
            records = some(shard, at, self._faults.few(min(MOST_RECORDS, shard.end - at)), MOST_BYTES)
            if records or ended or now >= beat:
                at, beat = at + len(records), now + BEAT
                self._kinesis.given += len(records)
                if self._faults.happens("broken"):
                    yield exception("InternalFailureException", b'{"message":"The request processing has failed"}')
                    return
                message = event("SubscribeToShardEvent", self._event(name, shard, at, records))
                if self._faults.happens("cut"):
                    raise CutOffError(message[: len(message) // 2])
                yield message
                if not shard.is_open and at == shard.end:
                    return
            await asyncio.sleep(TICK)

    def _event(self, name: str, shard: SimulatedShard, at: int, records: list[bytes]) -> bytes:
        behind = 0 if at == shard.end else 1_000
        if not shard.is_open and at == shard.end:
            children = [child(one) for one in self._kinesis.children(name, shard)]
            more = b'"ContinuationSequenceNumber":null,"ChildShards":%s' % encode(children)
        else:
            more = b'"ContinuationSequenceNumber":%s' % encode(str(_reached(shard, at)))
        return b'{"Records":[%s],"MillisBehindLatest":%d,%s}' % (b",".join(records), behind, more)


def _reached(shard: SimulatedShard, at: int) -> int:
    """Return a sequence number that lies behind the shard's first `at` records, and before the next."""
    if at == shard.gone:
        return shard.first if not shard.gone else shard.records[0].sequence - 1 if shard.records else shard.first
    return shard.records[at - shard.gone - 1].sequence
