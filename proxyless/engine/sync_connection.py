"""One blocking connection: a socket and the parser of the other engine.

A deadline holds for a whole attempt although a socket timeout holds for one call: before each call the time that is left is
set. A name that must be resolved is the exception (the resolver of the C library takes no timeout); mesh endpoints are
addresses.
"""

from __future__ import annotations

import select
import socket
import ssl
from collections.abc import Callable, Iterable
from math import inf
from typing import Any, cast

from proxyless.engine.h1 import FramingError, RequestHead, ResponseReader
from proxyless.engine.registry import EndpointPool, check_protocol
from proxyless.engine.timeouts import UNLIMITED, Timeouts
from proxyless.errors import EngineError

__all__ = ["LateError", "SyncBody", "SyncConnection", "open_socket"]

#: Up to this size a body travels in the same write as its head.
INLINE_BODY = 64 * 1024
#: Seconds to wait for "100 Continue" before the body is sent anyway (RFC 9110 section 10.1.1).
CONTINUE_WAIT = 1.0
READ_SIZE = 64 * 1024
_UNSET = -1.0

SyncBody = bytes | Iterable[bytes]


class SyncConnection:
    """One connection, used by one thread at a time."""

    __slots__ = (
        "_body_pending",
        "_clock",
        "_deadline",
        "_failed",
        "_poll",
        "_set_timeout",
        "_socket",
        "_timeouts",
        "_tls",
        "active",
        "closed",
        "expires_at",
        "number",
        "opened_at",
        "peer",
        "pool",
        "response",
        "uses",
        "valid_until",
    )

    def __init__(self, sock: socket.socket, pool: EndpointPool[SyncConnection], clock: Callable[[], float]) -> None:
        self._socket, self.pool, self._clock = sock, pool, clock
        self._tls = isinstance(sock, ssl.SSLSocket)
        self.valid_until: float | None = getattr(sock, "valid_until", None)
        self.peer = str(getattr(sock, "peer_identity", None) or "")
        self._poll = select.poll()
        self._poll.register(sock.fileno(), select.POLLIN)
        self.response = ResponseReader()
        self.closed = self.active = self._body_pending = False
        self.uses = self.number = 0
        self.opened_at, self.expires_at = clock(), inf
        self._timeouts = UNLIMITED
        self._deadline: float | None = None
        self._failed: EngineError | None = None
        self._set_timeout: float | None = _UNSET

    def quiet(self) -> bool:
        """Nothing has come while the connection was free: neither its end nor bytes that nobody asked for."""
        if not self._poll.poll(0):
            return True
        if not self._tls:
            return False
        try:  # below TLS it may be a session ticket, which is no data
            self._socket.settimeout(0.0)
            self._set_timeout = 0.0
            self._socket.recv(1)
        except ssl.SSLWantReadError:
            return True
        except OSError:
            return False
        return False

    def exchange(self, head: RequestHead, body: SyncBody, timeouts: Timeouts, deadline: float | None) -> None:
        """Send a request and read the head of its answer. Raises EngineError, or what the body's iterator raises."""
        response = self.response
        response.begin(head.method, close=head.close)
        self.active = True
        self.uses += 1
        self._timeouts, self._deadline, self._failed = timeouts, deadline, None
        try:
            if isinstance(body, bytes) and not head.expect:
                self._send_at_once(head.data, body)
            else:
                self._body_pending = True
                self._write(head.data)
                if not head.expect or self._invited():
                    self._send_body(head, body)
        except _WriteFailedError:
            self._body_pending = True  # the server reads no more: an early answer, or else reading tells why
        while not response.head_done:
            self._read()
        if not response.complete:
            self._read_waiting()

    def limit(self, number: int, deadline: float | None) -> None:
        """The answer has begun: from now on this is its deadline."""
        if number == self.number:
            self._deadline = deadline

    def read(self) -> bytes:
        """The next piece of the body; empty at its end."""
        response = self.response
        while True:
            data = response.take()
            if data or response.complete:
                return data
            if self._failed is not None:
                raise self._failed
            self._read()

    def _read_waiting(self) -> None:
        """Take what has arrived together with the head. The answer has begun: a failure is for who reads the body."""
        if (self._tls and cast(ssl.SSLSocket, self._socket).pending()) or self._poll.poll(0):
            try:
                self._read_now()
            except EngineError as error:
                self._failed = error

    def done(self) -> bool:
        """The exchange is over. -> the connection may serve another one."""
        self.active = False
        self.number += 1
        reusable = self.response.complete and self.response.keep_alive and not self._body_pending and not self.closed
        self._body_pending = False
        return reusable

    def shut(self) -> None:
        """Close at once; from any thread."""
        if not self.closed:
            self.closed = True
            self.response.close()
            self._socket.close()

    # ------------------------------------------------------------------------------------------------------- private

    def _limit_call(self, limit: float | None) -> None:
        """Set the timeout of the next socket call: not beyond `limit`. A somewhat shorter one may stay, which saves a system
        call for each of ours; whoever calls looks at the clock when it expires."""
        now = self._set_timeout
        if now is None or limit is None:
            if now is limit:
                return
        elif limit / 2 < now <= limit:
            return
        self._socket.settimeout(limit)
        self._set_timeout = limit

    def _within(self, call: Callable[[Any], Any], argument: Any, timeout: float | None, kind: str) -> Any:
        """Call a method of the socket until it succeeds or the time is over: `timeout`, or the deadline."""
        until = inf if timeout is None else self._clock() + timeout
        if self._deadline is not None and self._deadline < until:
            until, kind = self._deadline, "deadline"
        while True:
            if until == inf:
                self._limit_call(None)
            else:
                left = until - self._clock()
                if left <= 0:
                    raise self._evidence(kind, "the time is over and the server did nothing")
                self._limit_call(left)
            try:
                return call(argument)
            except TimeoutError:
                continue

    def _read(self) -> None:
        """Wait for bytes, or the end."""
        self._receive(lambda: self._within(self._socket.recv, READ_SIZE, self._timeouts.read, "read_timeout"))

    def _read_now(self) -> bool:
        """Take what has arrived. False: nothing; below TLS there may be bytes that are no data."""
        try:
            self._socket.settimeout(0.0)
            self._set_timeout = 0.0
            self._receive(lambda: self._socket.recv(READ_SIZE))
        except (ssl.SSLWantReadError, BlockingIOError):
            return False
        return True

    def _receive(self, receive: Callable[[], bytes]) -> None:
        try:
            data = receive()
        except (ssl.SSLWantReadError, BlockingIOError):
            raise
        except ssl.SSLEOFError:
            self._ended(orderly=False)
            return
        except OSError as error:
            raise self._evidence("read", f"connection lost: {error}") from error
        if not data:
            self._ended(orderly=True)
            return
        try:
            self.response.feed(data)
        except FramingError as error:
            raise self._evidence("protocol", str(error)) from None

    def _ended(self, *, orderly: bool) -> None:
        try:
            self.response.end(orderly)
        except FramingError as error:
            raise self._evidence("closed", str(error)) from None

    def _write(self, data: bytes) -> None:
        rest: bytes | memoryview = data
        try:
            while rest:
                sent = self._within(self._socket.send, rest, self._timeouts.write, "write_timeout")
                if sent == len(rest):
                    return
                rest = memoryview(rest)[sent:]
        except OSError as error:
            raise _WriteFailedError from error

    def _send_at_once(self, head: bytes, body: bytes) -> None:
        if len(body) <= INLINE_BODY:
            self._write(head + body)
        else:
            self._body_pending = True
            self._write(head)
            self._write(body)
            self._body_pending = False

    def _invited(self) -> bool:
        """False when the final answer came instead of "100 Continue"."""
        response = self.response
        until = self._clock() + CONTINUE_WAIT
        while not response.continued and not response.head_done:
            left = until - self._clock()
            if self._deadline is not None:
                left = min(left, self._deadline - self._clock())
            if left <= 0 or not self._poll.poll(left * 1000):
                return True
            self._read()
        return not response.head_done

    def _send_body(self, head: RequestHead, body: SyncBody) -> None:
        if isinstance(body, bytes):
            self._write(body)
            self._body_pending = False
            return
        sent = 0
        for chunk in body:
            if not chunk:
                continue
            sent += len(chunk)
            if head.chunked:
                self._write(b"%x\r\n%b\r\n" % (len(chunk), chunk))
            elif head.length is not None and sent > head.length:
                raise EngineError("request", f"the body is longer than its Content-Length, {head.length}")
            else:
                self._write(chunk)
            if sent != head.length and self._poll.poll(0) and self._read_now() and self.response.head_done:
                return  # an early answer: the rest is not wanted
        if head.chunked:
            self._write(b"0\r\n\r\n")
        elif sent != head.length:
            raise EngineError("request", f"the body has {sent} bytes, its Content-Length is {head.length}")
        self._body_pending = False

    def _evidence(self, kind: str, message: str) -> EngineError:
        return EngineError(kind, message, reused=self.uses > 1, bytes_seen=self.response.seen, request_sent=True)


class _WriteFailedError(Exception):
    """The socket takes no more."""


class LateError(Exception):
    """Not connected in time."""


def open_socket(pool: EndpointPool[SyncConnection], limit: float, clock: Callable[[], float]) -> socket.socket:
    """Connect and do the TLS handshake within `limit` seconds. Raises LateError, OSError, IdentityError."""
    until = clock() + limit
    address, context = pool.address, pool.context
    try:
        if limit <= 0:
            raise LateError
        if address.host.startswith("/"):
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            sock.settimeout(limit)
            sock.connect(address.host)
        else:
            sock = socket.create_connection(address, limit)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    except TimeoutError:
        raise LateError from None
    if context is None:
        return sock
    try:
        sock.settimeout(max(until - clock(), 0.001))
        tls = context.wrap_socket(sock, server_hostname=pool.server_name, suppress_ragged_eofs=False)
    except BaseException as error:
        sock.close()
        if isinstance(error, TimeoutError):
            raise LateError from None
        raise
    try:
        check_protocol(tls, address)
    except EngineError:
        tls.close()
        raise
    return tls
