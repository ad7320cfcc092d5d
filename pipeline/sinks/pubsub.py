"""Google Pub/Sub: each message of a sink topic as one message there, in order of each item, at least once.

Pub/Sub has no transactions: what was published when a worker died before its offset moved is published again. Subscribers
who want each change once know it by the attribute `event_id`. Messages of an item have one ordering key: a message that
cannot be published holds those of its item back, not the others.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from confluent_kafka import Message
from faust.types import TP
from google.api_core.exceptions import (
    GoogleAPICallError,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    RetryError,
    Unauthenticated,
)
from google.auth.exceptions import GoogleAuthError
from google.cloud.pubsub_v1 import PublisherClient
from google.cloud.pubsub_v1.publisher.exceptions import MessageTooLargeError
from google.cloud.pubsub_v1.types import BatchSettings, PublisherOptions, PubsubMessage

from pipeline.errors import FatalError, RejectedError, TransientError
from pipeline.settings.sinks import PubSubSettings
from pipeline.sinks.base import NOTHING, Flushed, Rejected, Sink, Writer
from pipeline.transport.committed import Committed
from pipeline.transport.logs import UNKNOWN, Log

if TYPE_CHECKING:
    from collections.abc import Mapping

PUBSUB_TIMEOUT_S = 60.0
"""Seconds that the messages of a flush may take."""
FLUSH_MESSAGES = 2_000
"""Messages of a flush."""
KEY_BYTES = 1_024
"""Of an ordering key, at most."""
ATTRIBUTES, NAME_BYTES, ATTRIBUTE_BYTES = 100, 256, 1_024
"""Attributes of a message, and bytes of a name and a value, at most."""
MESSAGE_BYTES = 10_000_000
"""Of a request with one message, at most."""
ENVELOPE_BYTES = 1_000
"""Of a request, beside its message, at most."""
TAKEN = {"self", "topic", "data", "ordering_key", "retry", "timeout"}
"""Names that Google's client takes for its own arguments."""
TOMBSTONE = "tombstone"
"""Attribute of a message whose Kafka value is null: Pub/Sub has no null."""


class Unpublished(NamedTuple):
    """A message that is not published yet."""

    record: Message
    ordering_key: str


class PubSub(Sink):
    """Topics of a project."""

    name = "pubsub"

    def __init__(self, settings: PubSubSettings, sinks: Mapping[str, str]) -> None:
        """`sinks`: Kafka topics by sink."""
        self._settings = settings
        self._topic_of = {
            topic: f"projects/{settings.project}/topics/{settings.topic.format(topic=topic, sink=sink)}"
            for sink, topic in sinks.items()
            if not settings.sinks or sink in settings.sinks
        }
        self._client: Any = None

    @property
    def topics(self) -> list[str]:
        """The Kafka topics that are published."""
        return list(self._topic_of)

    @property
    def client(self) -> Any:
        """Google's client; raises FatalError where it has no credentials."""
        if self._client is None:
            options = {"api_endpoint": self._settings.endpoint} if self._settings.endpoint else {}
            try:
                self._client = PublisherClient(
                    publisher_options=PublisherOptions(enable_message_ordering=True),
                    batch_settings=BatchSettings(max_messages=500, max_bytes=4 << 20, max_latency=0.01),
                    client_options=options,
                )
            except GoogleAuthError as error:
                raise FatalError(
                    f"the Pub/Sub {self._settings.name}: {error}", hint="gcloud auth application-default login"
                ) from error
        return self._client

    def prepare(self) -> None:
        """Look at the topics; raise FatalError when one is not there, or may not be seen."""
        for topic in self._topic_of.values():
            try:
                self.client.get_topic(request={"topic": topic}, timeout=PUBSUB_TIMEOUT_S)
            except NotFound as error:
                short = topic.rpartition("/")[2]
                hint = f"gcloud pubsub topics create {short} --project {self._settings.project}"
                raise FatalError(f"there is no topic {topic}", hint=hint) from error
            except (GoogleAPICallError, GoogleAuthError, RetryError) as error:
                raise FatalError(f"the topic {topic}: {error}", hint="gcloud auth application-default login") from error

    def open(self, tp: TP, start: int, log: Log = UNKNOWN, committed: Committed = NOTHING) -> PubSubWriter:
        """Take a partition over: Pub/Sub does not tell what it has, so what may be there is published again."""
        return PubSubWriter(self.client, self._topic_of[tp.topic], start)

    def close(self) -> None:
        """Send nothing more."""
        if self._client is not None:
            self._client.stop()


class PubSubWriter(Writer):
    """One partition on its way to a topic."""

    def __init__(self, client: Any, topic: str, start: int) -> None:
        self.position = self._end = self._there = start
        self._client, self._topic = client, topic
        self._waiting: list[Unpublished] = []
        self._size = 0

    def add(self, records: Sequence[Message], end: int) -> Sequence[Rejected]:
        """Take records; those that Pub/Sub takes in no way are rejected."""
        rejected = []
        for record in records:
            if why := refusal(record):
                rejected.append(Rejected(record, RejectedError(f"Pub/Sub refuses it: {why}")))
            else:
                self._waiting.append(Unpublished(record, ordering_key(record.key() or b"")))
                self._size += len(record)
        self._end = end
        return rejected

    @property
    def size(self) -> int:
        """Bytes that wait."""
        return self._size

    def is_due(self, now: float) -> bool:
        """Say whether anything waits."""
        return self._end > self._there

    def flush(self) -> Flushed:
        """Publish what waits, oldest first. What is refused permanently is left out, and the others of its item continue."""
        given, rejected = self._waiting[:FLUSH_MESSAGES], list[Rejected]()
        left, suspect, error = self._publish(given)
        for key in suspect:  # one message at fault has failed all that were sent with it: they are sent one by one
            mine = [one for one in left if one.ordering_key == key]
            left = [one for one in left if one.ordering_key != key]
            for number, one in enumerate(mine):
                behind, at_fault, error = self._publish([one])
                if at_fault:
                    rejected.append(Rejected(one.record, at_fault[key]))
                elif behind:
                    left += mine[number:]
                    break
        left.sort(key=lambda one: cast("int", one.record.offset()))
        published = len(given) - len(left) - len(rejected)
        self._waiting = [*left, *self._waiting[len(given) :]]
        self._size = sum(len(one.record) for one in self._waiting)
        self._there = cast("int", self._waiting[0].record.offset()) if self._waiting else self._end
        if error is not None and not published and not rejected:
            raise TransientError(f"the topic {self._topic}: {error or type(error).__name__}", hint="headwater status")
        return Flushed(self._there, {"records": published} if published else {}, rejected)

    def _send(self, one: Unpublished) -> Future[Any]:
        """Hand a message to Google's client; what it refuses at once fails like what the service refuses."""
        try:
            sent: Future[Any] = self._client.publish(
                self._topic, data(one.record), one.ordering_key, **message_attributes(one.record)
            )
        except (MessageTooLargeError, TypeError, ValueError) as error:
            sent = Future()
            sent.set_exception(InvalidArgument(str(error)))  # type: ignore[no-untyped-call]
        return sent

    def _publish(
        self, given: Sequence[Unpublished]
    ) -> tuple[list[Unpublished], dict[str, InvalidArgument], Exception | None]:
        """Publish messages; return those that were not, the items of which one was refused, and what else went wrong."""
        under_way = [(incoming, self._send(incoming)) for incoming in given]
        left, refused, error = list[Unpublished](), dict[str, InvalidArgument](), cast("Exception | None", None)
        for one, future in under_way:
            try:
                future.result(PUBSUB_TIMEOUT_S)
            except InvalidArgument as why:
                refused.setdefault(one.ordering_key, why)
                left.append(one)
            except (NotFound, PermissionDenied, Unauthenticated) as why:
                raise FatalError(
                    f"the topic {self._topic}: {why}", hint=f"gcloud pubsub topics describe {self._topic}"
                ) from why
            except Exception as why:  # noqa: BLE001 - a time-out, one that was cancelled, an error of the way: all may pass
                error = why
                left.append(one)
        for key in {one.ordering_key for one in left}:
            self._client.resume_publish(self._topic, key)
        return left, refused, error


def refusal(record: Message) -> str:
    """Return why Pub/Sub can never take a record, or ''."""
    found = message_attributes(record)
    size = len(data(record)) + sum(len(name) + len(value) + 16 for name, value in found.items()) + KEY_BYTES
    if size + ENVELOPE_BYTES > MESSAGE_BYTES and (size := _size_of(record)) + ENVELOPE_BYTES > MESSAGE_BYTES:
        return f"{size:,} bytes, it takes {MESSAGE_BYTES - ENVELOPE_BYTES:,}"
    if not (data(record) or found):
        return "it has neither data nor attributes"
    if len(found) > ATTRIBUTES:
        return f"{len(found)} attributes, it takes {ATTRIBUTES}"
    for name in found:
        if not name or len(name.encode()) > NAME_BYTES or name.startswith("goog") or name in TAKEN:
            return f"an attribute cannot have the name {name[:NAME_BYTES]!r}"
    return ""


def _size_of(record: Message) -> int:
    key = ordering_key(record.key() or b"")
    message = PubsubMessage(data=data(record), attributes=message_attributes(record), ordering_key=key)
    return int(PubsubMessage.pb(message).ByteSize())


def data(record: Message) -> bytes:
    """Return the data of a message."""
    return record.value() or b""


def ordering_key(key: bytes) -> str:
    """Return the ordering key of an item: its item key, or a hash of it where that is too long, or no text."""
    try:
        return key.decode() if len(key) <= KEY_BYTES else hashlib.sha256(key).hexdigest()
    except UnicodeDecodeError:
        return hashlib.sha256(key).hexdigest()


def message_attributes(record: Message) -> dict[str, str]:
    """Return the attributes of a message: its headers, as text, and whether it is a tombstone."""
    found = {
        name: text
        for name, value in cast("list[tuple[str, bytes | None]]", record.headers() or [])
        if len((text := (value or b"").decode(errors="replace")).encode()) <= ATTRIBUTE_BYTES
    }
    return found | ({TOMBSTONE: "true"} if record.value() is None else {})
