"""Waiting for the first configuration: a latch that threads and event loops can wait at."""

from __future__ import annotations

import asyncio
import contextlib
import threading

__all__ = ["Latch"]


class Latch:
    """Closed until `open`; from then on nobody waits. Any thread, any event loop."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self._lock = threading.Lock()
        self._waiters: list[tuple[asyncio.AbstractEventLoop, asyncio.Future[None]]] = []

    @property
    def is_open(self) -> bool:
        return self._event.is_set()

    def open(self) -> bool:
        """Let everybody through, now and later; whether that is new."""
        with self._lock:
            new = not self._event.is_set()
            self._event.set()
            waiters, self._waiters = self._waiters, []
        for loop, future in waiters:
            with contextlib.suppress(RuntimeError):  # a loop that was closed meanwhile waits for nothing
                loop.call_soon_threadsafe(_finish, future)
        return new

    def wait(self, timeout: float) -> bool:
        """Block at most `timeout` seconds; False when still closed."""
        return self._event.wait(timeout)

    async def wait_async(self, timeout: float) -> bool:
        """The same without blocking the loop."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()
        entry = (loop, future)
        with self._lock:
            if self._event.is_set():
                return True
            self._waiters.append(entry)
        try:
            async with asyncio.timeout(timeout):
                await future
        except TimeoutError:
            return self._event.is_set()
        finally:
            with self._lock, contextlib.suppress(ValueError):
                self._waiters.remove(entry)
        return True


def _finish(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
