"""Two connections joined byte for byte, with back-pressure both ways. Neither side is parsed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import cast

__all__ = ["End", "join"]


class End(asyncio.Protocol):
    """One of the two connections. What arrives before `join` is kept, and reading stands still until then.

    The end of input on one side ends both: HTTP/2 has no use for half-closed connections.

    Attributes:
        made, lost: the connection exists; is over.
    """

    def __init__(self, on_lost: Callable[[], None] | None = None) -> None:
        """`on_lost`: called once, before the other side learns of it."""
        self._on_lost = on_lost
        self._other: End | None = None
        self._early: list[bytes] = []
        self.made = self.lost = False
        self.transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.made = True
        if self._other is None:
            self.transport.pause_reading()

    def data_received(self, data: bytes) -> None:
        if self._other is None:
            self._early.append(data)
        else:
            self._other.transport.write(data)

    def eof_received(self) -> None:
        """Returning None closes the transport."""

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = True
        if self._on_lost is not None:
            self._on_lost()
        other, self._other = self._other, None
        if other is not None:
            other.close()

    def when_lost(self, callback: Callable[[], None]) -> None:
        """In place of `on_lost`; at once when it is lost already."""
        self._on_lost = callback
        if self.lost:
            callback()

    def pause_writing(self) -> None:
        if self._other is not None and not self._other.transport.is_closing():
            self._other.transport.pause_reading()

    def resume_writing(self) -> None:
        if self._other is not None and not self._other.transport.is_closing():
            self._other.transport.resume_reading()

    def close(self) -> None:
        """After what is still to be written."""
        self.transport.close()

    def abort(self) -> None:
        self.transport.abort()

    def _begin(self, other: End) -> None:
        self._other = other
        for data in self._early:
            other.transport.write(data)
        self._early.clear()
        if not self.transport.is_closing():
            self.transport.resume_reading()


def join(one: End, other: End) -> None:
    """From now on what one receives the other sends. When either is lost the other closes."""
    if one.lost or other.lost:
        one.close()
        other.close()
        return
    one._begin(other)
    other._begin(one)
