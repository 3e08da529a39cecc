"""One connection of an event loop, and the answer that is being read from it.

A request costs one write, one future and no task. The timer belongs to the connection and moves along lazily: it looks at
the deadline, the read and the write timeout together, so a busy connection arms one every few seconds, not one per request.

Each exchange on a connection has a number. A handle carries it, and is ignored once the connection has gone on to another
exchange: a late close cannot hit the next user.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterable, Callable
from math import inf
from typing import Any, Protocol, cast

from proxyless.engine.h1 import FramingError, RequestHead, ResponseReader
from proxyless.engine.registry import EndpointPool
from proxyless.engine.timeouts import UNLIMITED, Timeouts
from proxyless.errors import EngineError

__all__ = ["AsyncBody", "AsyncConnection", "AsyncExchange", "ConnectionOwner"]

#: Bytes of unread body at which the connection stops reading.
HIGH_WATER = 256 * 1024
#: Up to this size a body travels in the same write as its head.
INLINE_BODY = 64 * 1024
#: Seconds to wait for "100 Continue" before the body is sent anyway (RFC 9110 section 10.1.1).
CONTINUE_WAIT = 1.0

AsyncBody = bytes | AsyncIterable[bytes]


class ConnectionOwner(Protocol):
    """Who is told what becomes of a connection: its engine."""

    def opened(self, connection: AsyncConnection) -> None: ...

    def released(self, connection: AsyncConnection, reusable: bool) -> None: ...

    def lost(self, connection: AsyncConnection) -> None: ...


class AsyncConnection(asyncio.Protocol):
    """One connection, one exchange at a time.

    Attributes:
        number: of the exchange in progress, or of the next one.
        active: an exchange is in progress.
        closed: it serves nobody any more. gone: its socket is closed too.
        error: why the exchange failed.
    """

    __slots__ = (
        "_body_pending",
        "_clock",
        "_deadline",
        "_loop",
        "_lost",
        "_orderly",
        "_owner",
        "_read_paused",
        "_since",
        "_timeouts",
        "_timer",
        "_timer_at",
        "_transport",
        "_upload",
        "_waiter",
        "_writable",
        "_write_paused_at",
        "active",
        "closed",
        "error",
        "expires_at",
        "gone",
        "number",
        "opened_at",
        "peer",
        "pool",
        "response",
        "uses",
        "valid_until",
    )

    def __init__(
        self,
        pool: EndpointPool[AsyncConnection],
        owner: ConnectionOwner,
        loop: asyncio.AbstractEventLoop,
        clock: Callable[[], float],
    ) -> None:
        self.pool, self._owner, self._loop, self._clock = pool, owner, loop, clock
        self._transport: asyncio.Transport = cast(asyncio.Transport, None)
        self.response = ResponseReader()
        self.closed = self.gone = self.active = False
        self._read_paused = self._orderly = self._body_pending = False
        self.uses = self.number = 0
        self.opened_at, self.expires_at = clock(), inf
        self.valid_until: float | None = None
        self.peer = ""
        self.error: BaseException | None = None
        self._lost: Exception | None = None
        self._timeouts = UNLIMITED
        self._deadline: float | None = None
        self._since = 0.0  # start of the current silence
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self._waiter: asyncio.Future[None] | None = None
        self._writable: asyncio.Future[None] | None = None
        self._write_paused_at: float | None = None
        self._upload: asyncio.Task[None] | None = None

    # ------------------------------------------------------------------------------------------------- from the loop

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        ssl_object = transport.get_extra_info("ssl_object")
        if ssl_object is not None:
            self.valid_until = getattr(ssl_object, "valid_until", None)
            self.peer = str(getattr(ssl_object, "peer_identity", None) or "")
        self._owner.opened(self)

    def data_received(self, data: bytes) -> None:
        if not self.active:
            self.shut()  # bytes that nobody asked for
            self._owner.lost(self)
            return
        response = self.response
        self._since = self._clock()
        try:
            response.feed(data)
        except FramingError as error:
            self._fail("protocol", str(error))
            return
        if response.size > HIGH_WATER and not response.complete and not self._read_paused:
            self._read_paused = True
            self._transport.pause_reading()
        waiter = self._waiter
        if waiter is not None:
            self._waiter = None
            if not waiter.done():
                waiter.set_result(None)

    def eof_received(self) -> bool:
        """asyncio reports the end of the TCP stream below TLS here too; only a close_notify makes it orderly."""
        ssl_object = self._transport.get_extra_info("ssl_object")
        self._orderly = ssl_object is None or _was_notified(ssl_object)
        if not self.active:
            self.closed = True
            self._owner.lost(self)
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed, self.gone, self._lost = True, True, exc
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self.active and not self.response.complete and self.error is None:
            self._ended()
        self.response.close()
        self._owner.lost(self)
        self._wake()

    def _ended(self) -> None:
        """The connection is gone before the answer is complete: by that, or never."""
        if self._lost is not None:
            self.error = self._evidence("read", f"connection lost: {self._lost or type(self._lost).__name__}")
            return
        try:
            self.response.end(self._orderly)
        except FramingError as error:
            self.error = self._evidence("closed", str(error))

    def pause_writing(self) -> None:
        self._write_paused_at = self._clock()
        self._arm()

    def resume_writing(self) -> None:
        self._write_paused_at = None
        self._since = self._clock()
        self._arm()
        self._wake_writer()

    # -------------------------------------------------------------------------------------------------- one exchange

    async def exchange(self, head: RequestHead, body: AsyncBody, timeouts: Timeouts, deadline: float | None) -> None:
        """Send a request and wait for the head of its answer.

        Raises:
            EngineError: what happened on the wire; anything else comes from the body's iterator.
        """
        response = self.response
        response.begin(head.method, close=head.close)
        self.active, self.error, self._read_paused = True, None, False
        self.uses += 1
        self._timeouts, self._deadline = timeouts, deadline
        self._since = self._clock()
        if deadline is not None or timeouts.read is not None:
            self._arm()
        try:
            if self.closed:  # between the end of its handshake and now, for example because our certificate was refused
                self._ended()
                if isinstance(self.error, EngineError):
                    self.error.request_sent = False
            elif type(body) is bytes and not head.expect:
                self._write(head.data, body)
            else:
                await self._send(head, body)
            while not response.head_done:
                if self.error is not None:
                    raise self.error
                await self._wait()
        except BaseException:
            self.end(self.number)
            raise

    def limit(self, number: int, deadline: float | None) -> None:
        """The answer has begun: from now on this is its deadline."""
        if number == self.number and self.active:
            self._deadline = deadline
            self._arm()

    async def read(self, number: int) -> bytes:
        """The next piece of the body; empty at its end, which also gives the connection back."""
        response = self.response
        while number == self.number and self.active:
            data = response.take()
            if data:
                if self._read_paused and not response.complete and not self.closed:
                    self._read_paused = False
                    self._since = self._clock()
                    self._transport.resume_reading()
                    self._arm()
                return data
            if response.complete:
                self.end(number)
                return b""
            if self.error is not None:
                error = self.error
                self.end(number)
                raise error
            try:
                await self._wait()
            except BaseException:
                self.end(number)
                raise
        raise EngineError("closed", "the response was closed before its end")

    def end(self, number: int) -> None:
        """Exchange `number` is over; ignored when the connection has gone on. What is not wholly received and sent ends the
        connection, else it goes back."""
        if number != self.number or not self.active:
            return
        response = self.response
        self.active = False
        self.number += 1
        upload, self._upload = self._upload, None
        if upload is not None and not upload.done():
            upload.cancel()
        reusable = (
            response.complete
            and response.keep_alive
            and not self._body_pending
            and self._write_paused_at is None
            and not self.closed
            and self.error is None
        )
        self._body_pending = False
        if not reusable:
            self.shut(abort=not response.complete)
        elif self._read_paused:
            self._transport.resume_reading()
        self._owner.released(self, reusable)

    def shut(self, *, abort: bool = False) -> None:
        """Close the connection now. Orderly: over TLS a close_notify goes out first."""
        if not self.closed:
            self.closed = True
            if not abort:
                self._transport.close()  # sends close_notify at once, then would wait for the peer's
            self._transport.abort()

    def abandon(self) -> None:
        """The loop is gone: end the connection without it. What remains is freed by the garbage collector."""
        if not self.closed:
            self.closed = True
            with contextlib.suppress(OSError, TypeError):  # uvloop has closed it already
                self._transport.get_extra_info("socket").shutdown(socket.SHUT_RDWR)
        self.response.close()

    # ------------------------------------------------------------------------------------------------------- sending

    def _write(self, head: bytes, body: bytes) -> None:
        if not body:
            self._transport.write(head)
        elif len(body) <= INLINE_BODY:
            self._transport.write(head + body)
        else:
            self._transport.write(head)
            self._transport.write(body)

    async def _send(self, head: RequestHead, body: AsyncBody) -> None:
        """A body that waits for an invitation, or a stream."""
        self._transport.write(head.data)
        self._body_pending = True
        if head.expect and not await self._invited():
            return
        if isinstance(body, bytes):
            self._transport.write(body)
            self._body_pending = False
        else:
            self._upload = self._loop.create_task(self._send_stream(head, body, self.number))

    async def _invited(self) -> bool:
        """False when the final answer came instead of "100 Continue"."""
        response = self.response
        until = self._clock() + CONTINUE_WAIT
        alarm = self._loop.call_later(CONTINUE_WAIT, self._wake)
        try:
            while not response.continued and not response.head_done and self.error is None and self._clock() < until:
                await self._wait()
        finally:
            alarm.cancel()
        return not response.head_done and self.error is None

    async def _send_stream(self, head: RequestHead, body: AsyncIterable[bytes], number: int) -> None:
        """Runs beside the answer: a server may answer before the request ends, and may wait for our answer to that."""
        iterator = aiter(body)
        try:
            try:
                await self._send_chunks(head, iterator)
            finally:
                close = getattr(iterator, "aclose", None)
                if close is not None:
                    await close()
        except BaseException as error:  # anything the user's iterator raises belongs to the user's call
            if number == self.number and self.active and self.error is None:
                self.error = error
                self.shut(abort=True)
                self._wake()
            if not isinstance(error, Exception):
                raise

    async def _send_chunks(self, head: RequestHead, iterator: Any) -> None:
        response, transport = self.response, self._transport
        sent = 0
        async for chunk in iterator:
            if self.closed or response.complete:
                return  # an early answer: the rest is not wanted
            if not chunk:
                continue
            sent += len(chunk)
            if head.chunked:
                transport.writelines((b"%x\r\n" % len(chunk), chunk, b"\r\n"))
            elif head.length is not None and sent > head.length:
                raise EngineError("request", f"the body is longer than its Content-Length, {head.length}")
            else:
                transport.write(chunk)
                if sent == head.length:  # the answer may come before the iterator finds its end
                    self._body_pending = False
            self._since = self._clock()
            while self._write_paused_at is not None and not self.closed:
                self._writable = self._loop.create_future()
                await self._writable
        if head.chunked:
            transport.write(b"0\r\n\r\n")
        elif sent != head.length:
            raise EngineError("request", f"the body has {sent} bytes, its Content-Length is {head.length}")
        self._body_pending = False

    # ------------------------------------------------------------------------------------------------ waiting, timing

    def _wait(self) -> asyncio.Future[None]:
        self._waiter = waiter = self._loop.create_future()
        return waiter

    def _wake(self) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)
        self._wake_writer()

    def _wake_writer(self) -> None:
        writable, self._writable = self._writable, None
        if writable is not None and not writable.done():
            writable.set_result(None)

    def _due(self) -> tuple[float, str]:
        """The next instant at which this exchange has taken too long, and why."""
        due, kind = (inf, "") if self._deadline is None else (self._deadline, "deadline")
        timeouts = self._timeouts
        if self._write_paused_at is not None:
            if timeouts.write is not None and self._write_paused_at + timeouts.write < due:
                return self._write_paused_at + timeouts.write, "write_timeout"
        elif timeouts.read is not None and not self._read_paused and self._since + timeouts.read < due:
            return self._since + timeouts.read, "read_timeout"
        return due, kind

    def _arm(self) -> None:
        """Make sure that the timer fires no later than the next due instant. Earlier is fine: it looks and goes on."""
        due, _ = self._due()
        if due == inf or (self._timer is not None and self._timer_at <= due):
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = due
        self._timer = self._loop.call_later(max(0.0, due - self._clock()), self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        if not self.active or self.response.complete or self.closed:
            return
        due, kind = self._due()
        if self._clock() < due:
            self._arm()
        elif kind == "deadline":
            self._fail(kind, "the time for this attempt is over")
        else:
            self._fail(
                kind, f"no progress within {self._timeouts.read if kind == 'read_timeout' else self._timeouts.write} s"
            )

    def _evidence(self, kind: str, message: str) -> EngineError:
        return EngineError(kind, message, reused=self.uses > 1, bytes_seen=self.response.seen, request_sent=True)

    def _fail(self, kind: str, message: str) -> None:
        if self.error is None:
            self.error = self._evidence(kind, message)
        self.shut(abort=True)
        self._wake()


def _was_notified(ssl_object: ssl.SSLObject) -> bool:
    """Reading past the end gives b"" after a close_notify, and an error after a cut."""
    try:
        return ssl_object.read(1) == b""
    except OSError:
        return False


class AsyncExchange:
    """An answer whose head has arrived.

    Attributes:
        body: all of it, when it had arrived with the head; else None: iterate, and call `close` in the end.
        reused: the connection had served a request before.
        peer: verified SPIFFE ID of the endpoint; empty without mutual TLS.
    """

    __slots__ = (
        "_connection",
        "_ended",
        "_number",
        "body",
        "headers",
        "peer",
        "reason",
        "reused",
        "status",
        "trailers",
    )

    def __init__(self, connection: AsyncConnection) -> None:
        response = connection.response
        self.status, self.reason, self.headers = response.status, response.reason, response.headers
        self.trailers = response.trailers
        self.reused, self.peer = connection.uses > 1, connection.peer
        self._connection, self._number, self._ended = connection, connection.number, False
        self.body: bytes | None = None
        if response.complete:
            self.body = response.take()
            connection.end(connection.number)

    def limit(self, deadline: float | None) -> None:
        """Give the rest of the answer another deadline (monotonic instant)."""
        self._connection.limit(self._number, deadline)

    def __aiter__(self) -> AsyncExchange:
        return self

    async def __anext__(self) -> bytes:
        data = b"" if self._ended else await self._connection.read(self._number)
        if not data:
            self._ended = True
            raise StopAsyncIteration
        return data

    def close(self) -> None:
        """Not interested in the rest. Idempotent; ends the connection if the body has not been read to its end."""
        self._connection.end(self._number)
