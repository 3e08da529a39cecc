"""The client of one request at the edge: its body, its presence, and the way back to it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from email.utils import formatdate
from typing import Any

from proxyless.core.replies import BODILESS
from proxyless.core.request import Address
from proxyless.gateway.headers import Headers
from proxyless.gateway.protocol import CUT

__all__ = ["Client", "ClientGoneError", "Receive", "Scope", "Send"]

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

REPLAYABLE = 64 * 1024  # a body up to this size is held, so that it can be sent again


class ClientGoneError(Exception):
    """The client left before its answer was complete."""


class Client:
    """Belongs to the task that serves the request.

    Attributes:
        address: of the other end of the connection.
        leaving: every answer says that the connection ends; set while the gateway drains.
    """

    def __init__(self, scope: Scope, receive: Receive, send: Send, *, leaving: bool) -> None:
        self.address = Address(*(scope.get("client") or ("", 0)))
        self.leaving = leaving
        self._headers: Headers = scope["headers"]
        self._cut: Callable[[], None] = scope[CUT]
        self._receive, self._send = receive, send
        self._read = asyncio.Event()

    # ------------------------------------------------------------------------------------------------------- the request

    @property
    def unknown_coding(self) -> bool:
        """The body is coded for this hop in a way that cannot be undone here (RFC 9112 section 6.1)."""
        return any(name == b"transfer-encoding" and value.lower() != b"chunked" for name, value in self._headers)

    async def body(self) -> bytes | AsyncIterator[bytes]:
        """A short body whole, a longer one or one of unknown length as it comes."""
        length = next((value for name, value in self._headers if name == b"content-length"), None)
        if length is None and not any(name == b"transfer-encoding" for name, _ in self._headers):
            self._read.set()
            return b""
        if length is not None and length.isdigit() and int(length) <= REPLAYABLE:
            return b"".join([chunk async for chunk in self._chunks()])
        return self._chunks()

    @contextlib.asynccontextmanager
    async def present(self) -> AsyncIterator[None]:
        """A block that is left with `ClientGoneError` as soon as the client has gone."""
        try:
            async with asyncio.timeout(None) as presence:
                watching = asyncio.create_task(self._watch(presence))
                try:
                    yield
                finally:
                    watching.cancel()
        except TimeoutError:
            if presence.expired():
                raise ClientGoneError from None
            raise

    async def _watch(self, presence: asyncio.Timeout) -> None:
        await self._read.wait()  # until then whoever reads the body finds out
        while (await self._receive())["type"] != "http.disconnect":
            continue
        presence.reschedule(asyncio.get_running_loop().time())

    async def _chunks(self) -> AsyncIterator[bytes]:
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise ClientGoneError
            if message.get("body"):
                yield message["body"]
            if not message.get("more_body"):
                self._read.set()
                return

    # -------------------------------------------------------------------------------------------------------- the answer

    async def answer(self, status: int, headers: Headers, body: bytes = b"") -> None:
        """A whole answer of ours."""
        names = {name.lower() for name, _ in headers}
        if b"date" not in names:
            headers = [*headers, (b"date", formatdate(usegmt=True).encode())]
        if status in BODILESS:
            body = b""
        elif b"content-length" not in names:
            headers = [*headers, (b"content-length", b"%d" % len(body))]
        await self.start(status, headers)
        await self.end(body)

    async def start(self, status: int, headers: Headers) -> None:
        if self.leaving:
            headers = [*headers, (b"connection", b"close")]
        await self._send({"type": "http.response.start", "status": status, "headers": headers})

    async def write(self, data: bytes) -> None:
        await self._send({"type": "http.response.body", "body": data, "more_body": True})

    async def end(self, data: bytes = b"") -> None:
        await self._send({"type": "http.response.body", "body": data})

    async def cut(self) -> None:
        """Break the answer off. Returns when the server knows it."""
        self._cut()
        while (await self._receive())["type"] != "http.disconnect":
            continue
