"""uvicorn's HTTP protocol with what the outside needs: a bounded head in bounded time, and a way to cut an answer short."""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from proxyless.runtime.bounded import BoundedHead

__all__ = ["CUT", "EdgeProtocol"]

CUT = "proxyless.cut"  # scope: ends the connection, so that the client does not take what it has for the whole
HEAD_TIMEOUT = 30.0  # seconds from the first byte of a request, or the connection, to the end of its headers


class EdgeProtocol(BoundedHead, HttpToolsProtocol):
    """One connection from outside."""

    _head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's
        super().connection_made(transport)
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget_timer()
        super().connection_lost(exc)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope[CUT] = self.transport.abort  # type: ignore[literal-required]  # a key of ours, read by the application
        if self._head_timer is None:
            self._await_head()

    def on_headers_complete(self) -> None:
        self._forget_timer()
        super().on_headers_complete()

    def refuse_head(self) -> None:
        """As for a server, without a line in the log: strangers ask here."""
        self._forget_timer()
        self.end_with(b"431 Request Header Fields Too Large")

    def _unsupported_upgrade_warning(self) -> None:
        """The application answers, and a stranger fills no log."""

    def _await_head(self) -> None:
        self._head_timer = self.loop.call_later(HEAD_TIMEOUT, self._too_slow)

    def _forget_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _too_slow(self) -> None:
        self._head_timer = None
        self.end_with(b"408 Request Timeout")
