"""Google Pub/Sub over its own protocol, as far as it is published to: a server in this process."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent import futures
from contextlib import contextmanager
from typing import Any

import grpc  # type: ignore[import-untyped]
from google.cloud.pubsub_v1.types import GetTopicRequest, PublishRequest, PublishResponse, Topic

TOPIC = "projects/p/topics/p.sink.s"


class Server:
    """Publisher.Publish and GetTopic, as Pub/Sub answers; `trouble` may refuse a request."""

    def __init__(self) -> None:
        self.published: list[Any] = []
        self.topics = {TOPIC}
        self.refuse: list[Any] = []
        """Codes with which the next requests are refused."""

    def publish(self, request: Any, context: Any) -> Any:
        if self.refuse:
            context.abort(self.refuse.pop(0), "refused")
        if any(b"bad" in message.data for message in request.messages):
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "a message is at fault")
        self.published += request.messages
        return PublishResponse(message_ids=[str(len(self.published) + n) for n in range(len(request.messages))])

    def get_topic(self, request: Any, context: Any) -> Any:
        if request.topic not in self.topics:
            context.abort(grpc.StatusCode.NOT_FOUND, "no such topic")
        return Topic(name=request.topic)


@contextmanager
def serve() -> Iterator[tuple[Server, str]]:
    """Serve; give the server and its host and port."""
    served, found = grpc.server(futures.ThreadPoolExecutor(4)), Server()

    def unary(function: Any, request: Any, response: Any) -> Any:
        return grpc.unary_unary_rpc_method_handler(
            function, request_deserializer=request.deserialize, response_serializer=response.serialize
        )

    handlers = {
        "Publish": unary(found.publish, PublishRequest, PublishResponse),
        "GetTopic": unary(found.get_topic, GetTopicRequest, Topic),
    }
    served.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("google.pubsub.v1.Publisher", handlers),))
    port = served.add_insecure_port("127.0.0.1:0")
    served.start()
    try:
        yield found, f"127.0.0.1:{port}"
    finally:
        served.stop(None).wait()
