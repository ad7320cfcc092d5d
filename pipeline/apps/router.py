"""Which worker has a key of a table: the workers ask each other, for only they know where a key was written.

A key is in the partition of the event that has written it. That is the partition of the key itself only where topic and table
write keys in the same form, so it is not known from the key.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any, cast
from urllib.parse import SplitResult, urlsplit

from confluent_kafka import KafkaException
from faust.app.router import Router as FaustRouter
from faust.exceptions import ImproperlyConfigured, SameNode

from pipeline.transport import clients
from pipeline.transport.base import BaseTransport

log = logging.getLogger(__name__)

ROUTED = "Headwater-Routed"
"""The header of a request that another worker hands on: it is not handed on again."""
MISDIRECTED = 421
ASKED_S = 5.0
"""Seconds that the broker has to say who they are."""
MEMBERS_S = 2.0
"""Seconds for which the members of the group are known."""


class Router(FaustRouter):
    """Routes requests for a key of a table: `@app.table_route`, and Faust's page `/table/NAME/KEY/`.

    A worker that has the key serves it. Else it hands the request on to the other workers of the group, by turns, until one
    has it; where none has, it serves it itself, as a key that is not there. Each worker needs a `canonical_url`
    that the others reach.
    """

    def __init__(self, app: Any) -> None:
        super().__init__(app)
        self._urls: list[SplitResult] = []
        self._known_until = 0.0

    async def route_req(self, table_name: str, key: Any, web: Any, request: Any) -> Any:
        """Return another worker's response; raise SameNode where this one is to serve the request."""
        if self._has(cast("Any", self.app.tables[table_name]), key):
            raise SameNode
        if ROUTED in request.headers:
            return web.text("", status=MISDIRECTED)
        for url in await self._others():
            response = await self._ask(url, web, request)
            if response is not None and response.status != MISDIRECTED:
                return response
        raise SameNode

    async def route_topic_req(self, topic: Any, key: Any, web: Any, request: Any) -> Any:
        """Refuse: who reads a partition is not known by its key here."""
        raise ImproperlyConfigured("topic_route: headwater:// routes by tables alone; use app.table_route")

    def _has(self, table: Any, key: Any) -> bool:
        if table.window is None:
            return key in table
        return any((key, window) in table for window in table._window_ranges(time.time()))  # noqa: SLF001

    async def _ask(self, url: SplitResult, web: Any, request: Any) -> Any:
        there = request.url.with_scheme(url.scheme).with_host(cast("str", url.hostname)).with_port(url.port)
        headers = {**request.headers, ROUTED: "1"}
        try:
            async with self.app.http_client.request(method=request.method, headers=headers, url=there) as response:
                text, kind = await response.text(), response.content_type
                return web.text(text, content_type=kind, status=response.status)
        except Exception as error:  # noqa: BLE001 - it has just gone, in one of many ways
            log.info("%s does not answer: %r", there, error)
            return None

    async def _others(self) -> list[SplitResult]:
        if time.monotonic() > self._known_until:
            self._urls = await asyncio.to_thread(self._asked)
            self._known_until = time.monotonic() + MEMBERS_S
        return self._urls

    def _asked(self) -> list[SplitResult]:
        """Return where the other members of the group serve pages: they say it in their client IDs."""
        transport = cast("BaseTransport", self.app.transport)
        group, client = self.app.conf.id, clients.admin(transport.client_conf())
        try:
            found = client.describe_consumer_groups([group])[group].result(ASKED_S)
        except (KafkaException, TimeoutError):
            return []
        said = [member.client_id.rpartition(" ")[2] for member in found.members]
        return [urlsplit(url) for url in said if "://" in url and url != str(self.app.conf.canonical_url)]
