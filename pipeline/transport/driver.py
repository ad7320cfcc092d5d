"""The Faust transport `headwater://host:port`: its parts put together."""

from __future__ import annotations

from pipeline.transport.base import BaseTransport
from pipeline.transport.consumer import Consumer
from pipeline.transport.producer import Producer


class Transport(BaseTransport):
    """Registered in the entry-point group `faust.transports`. What is set before the worker starts: see `BaseTransport`."""

    Consumer = Consumer
    Producer = Producer
