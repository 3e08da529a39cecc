"""The port of a gRPC server: mutual TLS and plain text on it, told apart by the first byte, then bytes for grpcio.

grpcio cannot do both on one port, nor judge a SPIFFE ID, so connections end here. The hop to grpcio is a Unix socket in a directory
that only our user may enter. Each accepted connection binds its end of the hop to a name of its own, which grpcio shows to handlers as
`context.peer()`: by that name, and nothing that a caller sends, the interceptor finds the verified peer.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import itertools
import logging
import os
import shutil
import socket
import tempfile
import threading
import time
import weakref
from pathlib import Path
from urllib.parse import unquote

from proxyless.core.request import Address
from proxyless.errors import ConfigError, PeerVerificationError
from proxyless.grpc.splice import End, join
from proxyless.runtime.accept import (
    HANDSHAKE_TIMEOUT,
    RefusedConnection,
    address_of,
    client_hello,
    plaintext,
    report,
    tls_context,
    verified,
)
from proxyless.runtime.hello import HANDSHAKE_RECORD, MAX_HELLO, ClientHello
from proxyless.runtime.inbound import FOREVER, Connection, InboundGate

__all__ = ["Front", "accepted"]

log = logging.getLogger("proxyless.grpc")

ALPN = ("h2",)
SHUTDOWN_TIMEOUT = 1.0  # seconds for TLS' goodbye
LOOK_AGAIN = 0.005  # seconds until the rest of a ClientHello is looked for: a peeked socket stays readable
GONE = frozenset({errno.ECONNABORTED, errno.EPROTO})  # a caller that left before it was accepted
ACCEPT_WAIT = 0.1  # seconds to wait when accepting fails, as when no file descriptor is left
LONGEST_PATH = 100  # sun_path has 108 bytes

# By what `context.peer()` says. The paths hold a directory that is ours alone, so they are unique in a process.
_ACCEPTED: dict[str, Accepted] = {}


def accepted(peer: str) -> Accepted | None:
    """The connection behind `context.peer()`; None: it did not come through a port of ours."""
    return _ACCEPTED.get(unquote(peer))


class Accepted:
    """One accepted connection. `calls` under way on it; it is known until the last has ended."""

    def __init__(self, connection: Connection, outer: End, inner: End, name: str) -> None:
        self.connection, self.outer, self.inner = connection, outer, inner
        self._name = f"unix:{name}"
        self.calls = 0
        self._lock = threading.Lock()
        self.ended = False
        self._timer: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()
        _ACCEPTED[self._name] = self
        if connection.expires_at != FOREVER:
            left = max(0.0, connection.expires_at - time.time())
            self._timer = self._loop.call_later(left, self._expire)

    def enter(self) -> None:
        """A call begins. Any thread."""
        with self._lock:
            self.calls += 1

    def leave(self) -> None:
        """A call ended. Any thread."""
        with self._lock:
            self.calls -= 1
            last = not self.calls
        if last and (self.ended or self.expired):
            with contextlib.suppress(RuntimeError):  # the loop is closed: nothing is left to be done
                self._loop.call_soon_threadsafe(self._idle)

    @property
    def expired(self) -> bool:
        """A certificate of this connection has ended: no new calls."""
        return self.connection.expires_at != FOREVER and time.time() >= self.connection.expires_at

    def lost(self) -> None:
        self.ended = True
        if self._timer is not None:
            self._timer.cancel()
        self._forget()

    def close(self) -> None:
        self.inner.close()
        self.outer.close()

    def _idle(self) -> None:
        self._forget()
        if self.expired:
            self._expire()

    def _expire(self) -> None:
        if not self.calls:
            self.close()

    def _forget(self) -> None:
        if self.ended and not self.calls:
            _ACCEPTED.pop(self._name, None)


class Front:
    """Listening sockets and the way from them to grpcio. Belongs to one event loop once `start` was called."""

    def __init__(self, gate: InboundGate) -> None:
        self._gate = gate
        self._directory = Path(tempfile.mkdtemp(prefix="proxyless-grpc-"))  # 0700
        if len(str(self._directory)) > LONGEST_PATH - 20:
            self._directory.rmdir()
            raise ConfigError(
                f"the path of {self._directory} is too long for a Unix socket: set TMPDIR to a shorter one"
            )
        self._remove = weakref.finalize(self, _remove, self._directory, os.getpid())
        self._backend = str(self._directory / "grpc.sock")
        self._names = itertools.count(1)
        self._listeners: list[socket.socket] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._accepting: list[asyncio.Task[None]] = []
        self._accepted: set[Accepted] = set()

    @property
    def backend(self) -> str:
        """Where grpcio has to listen."""
        return f"unix:{self._backend}"

    def bind(self, host: str, port: int) -> int:
        """Open a port; -> its number."""
        dual = host in ("", "::") and socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if dual or ":" in host else socket.AF_INET
        listener = socket.create_server((host, port), family=family, backlog=1024, dualstack_ipv6=dual)
        listener.setblocking(False)
        # Inherited by what it accepts; asyncio sets it only where it opened the listener itself.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._listeners.append(listener)
        return int(listener.getsockname()[1])

    @property
    def ports(self) -> list[int]:
        return [int(listener.getsockname()[1]) for listener in self._listeners]

    def start(self) -> None:
        loop = asyncio.get_running_loop()
        self._accepting = [loop.create_task(self._accept(listener)) for listener in self._listeners]

    async def stop_accepting(self) -> None:
        """The ports are closed; connections go on."""
        tasks, self._accepting = self._accepting, []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for listener in self._listeners:
            listener.close()
        self._listeners.clear()

    async def close(self) -> None:
        """End every connection and leave nothing behind."""
        await self.stop_accepting()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for each in list(self._accepted):
            each.inner.abort()
            each.outer.abort()
        for _ in range(3):  # connection_lost is called, and the socket closed, one or two turns of the loop later
            await asyncio.sleep(0)
        self._remove()

    # ------------------------------------------------------------------------------------------------------- private

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                sock, _ = await loop.sock_accept(listener)
            except OSError as error:
                if error.errno not in GONE:
                    log.error("cannot accept: %s", error)
                    await asyncio.sleep(ACCEPT_WAIT)
                continue
            task = loop.create_task(self._serve(sock))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _serve(self, sock: socket.socket) -> None:
        """From accept to the first byte for grpcio."""
        outer = End()
        remote = Address("", 0)
        served = False
        try:
            local, remote = address_of(sock.getsockname()), address_of(sock.getpeername())
            async with asyncio.timeout(HANDSHAKE_TIMEOUT):
                connection = await self._secure(sock, outer, local, remote)
                await self._hop(outer, connection)
            served = True
        except RefusedConnection as refused:
            report(self._gate, remote, refused)
        except TimeoutError:
            text = f"no TLS handshake or request within {HANDSHAKE_TIMEOUT:.0f} s"
            report(self._gate, remote, RefusedConnection("timeout", text))
        except OSError as error:
            log.info("connection from %s ended before it began: %s", remote, error)
        except Exception:  # whatever it was: this connection ends, the port stays
            log.exception("connection from %s could not be served", remote)
        finally:
            if not served:
                if outer.made:
                    outer.abort()
                else:
                    sock.close()

    async def _secure(self, sock: socket.socket, outer: End, local: Address, remote: Address) -> Connection:
        loop = asyncio.get_running_loop()
        hello = await _peek(loop, sock)
        if hello is None:
            connection = plaintext(self._gate, local, remote)
            await loop.connect_accepted_socket(lambda: outer, sock)
            return connection
        info, context = tls_context(self._gate, hello, local, remote, ALPN)
        try:
            await loop.connect_accepted_socket(
                lambda: outer,
                sock,
                ssl=context,
                ssl_handshake_timeout=HANDSHAKE_TIMEOUT,
                ssl_shutdown_timeout=SHUTDOWN_TIMEOUT,
            )
        except PeerVerificationError as error:
            raise RefusedConnection("peer", str(error)) from error
        except OSError as error:  # ssl.SSLError is one
            raise RefusedConnection("handshake", str(error) or type(error).__name__) from error
        return verified(info, outer.transport.get_extra_info("ssl_object"))

    async def _hop(self, outer: End, connection: Connection) -> None:
        """Connect to grpcio under a name of its own, which `context.peer()` will be."""
        loop = asyncio.get_running_loop()
        connection.gate = self._gate
        name = self._directory / str(next(self._names))
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.setblocking(False)
            sock.bind(str(name))
            await loop.sock_connect(sock, self._backend)
            inner = End()
            await loop.create_unix_connection(lambda: inner, sock=sock)
        except BaseException:
            sock.close()
            raise
        finally:
            name.unlink(missing_ok=True)  # the connection keeps its name
        taken = Accepted(connection, outer, inner, str(name))
        self._accepted.add(taken)
        outer.when_lost(lambda: self._lost(taken))
        join(outer, inner)

    def _lost(self, taken: Accepted) -> None:
        self._accepted.discard(taken)
        taken.lost()


def _remove(directory: Path, pid: int) -> None:
    """Also for a server that is never stopped; not by a child that was forked."""
    if os.getpid() == pid:
        shutil.rmtree(directory, ignore_errors=True)


async def _peek(loop: asyncio.AbstractEventLoop, sock: socket.socket) -> ClientHello | None:
    """The ClientHello, or None for plain text; nothing is taken from the socket.

    Raises:
        RefusedConnection: neither.
    """
    seen = 0
    while True:
        await _readable(loop, sock)
        data = sock.recv(2 * MAX_HELLO, socket.MSG_PEEK)
        if not data:
            raise RefusedConnection("handshake", "the caller left")
        if data[0] != HANDSHAKE_RECORD:
            return None
        hello = client_hello(data)
        if hello is not None:
            return hello
        if len(data) == seen:
            await asyncio.sleep(LOOK_AGAIN)
        seen = len(data)


async def _readable(loop: asyncio.AbstractEventLoop, sock: socket.socket) -> None:
    ready: asyncio.Future[None] = loop.create_future()

    def arrived() -> None:
        if not ready.done():
            ready.set_result(None)

    loop.add_reader(sock.fileno(), arrived)
    try:
        await ready
    finally:
        loop.remove_reader(sock.fileno())
