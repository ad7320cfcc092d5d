"""What a thread hears, handed over to a reader on the event loop, one thing at a time."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Generator
from contextlib import closing, suppress
from typing import Generic, TypeVar

T = TypeVar("T")


class Subscription(Generic[T]):
    """Follows an iterator that blocks, in a thread of its own, and holds one element until it is taken.

    The thread begins when somebody takes or waits for the first time: what nobody reads costs nothing.
    While one is held, the thread waits and reads nothing: that is the back-pressure. An exception that the iterator
    yields is raised at its turn and the next element follows; one that it raises is raised, and is the last.
    """

    ended = False
    """Nothing more will come; what is held can still be taken."""

    def __init__(self, follow: Callable[[threading.Event], Generator[T | Exception, None, None]], name: str) -> None:
        """`follow` makes the iterator; the event that it gets is set when nobody listens any more."""
        self._room = threading.Condition()
        self._held: T | Exception | None = None
        self._closed = threading.Event()
        self._listener: tuple[asyncio.AbstractEventLoop, asyncio.Event] | None = None
        self._thread: threading.Thread | None = threading.Thread(
            target=self._run, args=(follow,), name=name, daemon=True
        )
        """Until it is started."""

    def take(self) -> T | None:
        """Return what has come, None when nothing has; raise what the iterator yielded or raised as an exception."""
        with self._room:
            self._start()
            found, self._held = self._held, None
            self._room.notify()
        if isinstance(found, Exception):
            raise found
        return found

    async def wait(self) -> None:
        """Wait until something has come, or nothing more can."""
        news = asyncio.Event()
        with self._room:
            self._start()
            if self._held is not None or self.ended:
                return
            self._listener = asyncio.get_running_loop(), news
        await news.wait()

    def close(self) -> None:
        """Stop to listen, as soon as the thread hears the next thing. Does not block."""
        self._closed.set()
        with self._room:
            self._room.notify()

    def _start(self) -> None:
        thread, self._thread = self._thread, None
        if thread is not None:
            thread.start()

    def _run(self, follow: Callable[[threading.Event], Generator[T | Exception, None, None]]) -> None:
        try:
            with closing(follow(self._closed)) as elements:
                for element in elements:
                    if not self._hand_over(element):
                        return
        except Exception as error:  # noqa: BLE001 - it is raised where it is taken
            self._hand_over(error)
        finally:
            with self._room:
                self.ended = True
                self._wake()

    def _hand_over(self, one: T | Exception) -> bool:
        with self._room:
            self._room.wait_for(lambda: self._held is None or self._closed.is_set())
            if self._closed.is_set():
                return False
            self._held = one
            self._wake()
        return True

    def _wake(self) -> None:
        listener, self._listener = self._listener, None
        if listener is not None:
            loop, news = listener
            with suppress(RuntimeError):  # the loop is closed: the worker ends
                loop.call_soon_threadsafe(news.set)
