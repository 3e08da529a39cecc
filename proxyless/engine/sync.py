"""Attempts from any thread, blocking: the pools of the other engine under one lock."""

from __future__ import annotations

import os
import ssl
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from proxyless.engine.h1 import in_chunks, request_head
from proxyless.engine.pool import Grant
from proxyless.engine.registry import ClientContexts, EndpointPool, Registry, connect_error
from proxyless.engine.sync_connection import LateError, SyncBody, SyncConnection, open_socket
from proxyless.engine.timeouts import UNLIMITED, Timeouts, connect_limit, wait_limit
from proxyless.errors import EngineError

if TYPE_CHECKING:
    from proxyless.core.call import Attempt
    from proxyless.core.snapshot import Snapshot

__all__ = ["SyncEngine", "SyncExchange"]


class SyncExchange:
    """An answer whose head has arrived. Used by one thread at a time.

    Attributes:
        body: all of it, when it had arrived with the head; else None: iterate, and call `close` in the end.
        reused: the connection had served a request before.
        peer: verified SPIFFE ID of the endpoint; empty without mutual TLS.
    """

    __slots__ = (
        "_connection",
        "_engine",
        "_number",
        "body",
        "headers",
        "peer",
        "reason",
        "reused",
        "status",
        "trailers",
    )

    def __init__(self, connection: SyncConnection, engine: SyncEngine) -> None:
        response = connection.response
        self.status, self.reason, self.headers = response.status, response.reason, response.headers
        self.trailers = response.trailers
        self.reused, self.peer = connection.uses > 1, connection.peer
        self._connection, self._engine, self._number = connection, engine, connection.number
        self.body: bytes | None = None
        if response.complete:
            self.body = response.take()
            engine.release(connection)

    def limit(self, deadline: float | None) -> None:
        """Give the rest of the answer another deadline (monotonic instant)."""
        self._connection.limit(self._number, deadline)

    def __iter__(self) -> Iterator[bytes]:
        connection = self._connection
        if self._number != connection.number:
            raise EngineError("closed", "the response was closed before its end")
        try:
            while data := connection.read():
                yield data
                if self._number != connection.number:
                    raise EngineError("closed", "the response was closed before its end")
        except EngineError:  # who stops iterating may go on later
            self.close()
            raise
        self._engine.release(connection)

    def close(self) -> None:
        """Not interested in the rest. Idempotent; ends the connection if the body has not been read to its end."""
        if self._number == self._connection.number:
            self._connection.shut()
            self._engine.release(self._connection)


class _Waiter:
    """Granted under the engine's lock; waited for outside of it."""

    __slots__ = ("event", "gone", "granted")

    def __init__(self) -> None:
        self.event = threading.Event()
        self.granted: SyncConnection | Grant = Grant.LOOK_AGAIN
        self.gone = False

    def grant(self, what: SyncConnection | Grant) -> bool:
        if self.gone:
            return False
        self.granted = what
        self.event.set()
        return True


class SyncEngine:
    """Attempts from any thread. After a fork the child starts with no connection of its parent."""

    def __init__(
        self,
        contexts: ClientContexts | None,
        *,
        app_context: Callable[[], ssl.SSLContext] | None = None,
        snapshot: Callable[[], Snapshot | None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
        sweep_interval: float = 2.0,
    ) -> None:
        """Arguments as for `AsyncEngine`. There is no thread of its own: requests sweep, at most every `sweep_interval`."""
        self._contexts, self._app_context, self._snapshot = contexts, app_context, snapshot
        self._clock, self._wall, self._sweep_interval = clock, wall, sweep_interval
        self._seen_snapshot: Snapshot | None = None
        self._reset()
        _engines.add(self)

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._registry: Registry[SyncConnection] = Registry(self._contexts, self._app_context)
        self._next_sweep = 0.0

    def exchange(self, attempt: Attempt, body: SyncBody = b"", timeouts: Timeouts = UNLIMITED) -> SyncExchange:
        """Do one attempt: -> as soon as the head of the answer is there. Never repeats anything.

        Raises:
            EngineError: with the evidence for the retry loop. Kind ``request``: nothing was sent, the caller is wrong.
            Exception: whatever the body's iterator raised.
        """
        length = len(body) if isinstance(body, bytes) else None
        head = request_head(attempt.method, attempt.target, attempt.authority, attempt.headers, length)
        if head.chunked and isinstance(body, bytes):
            body = in_chunks(body)
        connection = self._acquire(attempt, timeouts)
        try:
            connection.exchange(head, body, timeouts, attempt.begin(self._clock()))
            return SyncExchange(connection, self)
        except BaseException:
            connection.shut()
            self.release(connection)
            raise

    def close(self) -> None:
        """Close every free connection; busy ones end with their response."""
        with self._lock:
            self._registry.clear()
            doomed = self._take_doomed()
        _shut(doomed)

    def forked(self) -> None:
        """In a child process: begin anew."""
        registry = self._registry
        self._reset()
        registry.clear()
        _shut(registry.doomed)

    def release(self, connection: SyncConnection) -> None:
        """Take a connection back after an exchange; once for each exchange."""
        if not connection.active:
            return
        reusable = connection.done()
        with self._lock:
            connection.pool.release(connection, reusable, self._clock())
            doomed = self._take_doomed()
        if doomed:
            _shut(doomed)

    # ------------------------------------------------------------------------------------------------------- private

    def _take_doomed(self) -> list[SyncConnection]:
        doomed = self._registry.doomed
        if not doomed:
            return doomed
        taken = doomed.copy()
        doomed.clear()
        return taken

    def _acquire(self, attempt: Attempt, timeouts: Timeouts) -> SyncConnection:
        while True:
            now = self._clock()
            with self._lock:
                if now >= self._next_sweep:
                    self._sweep(now)
                pool = self._registry.find(attempt)
                if attempt.fresh:
                    pool.drain()
                connection = pool.checkout(now, self._wall())
                doomed = self._take_doomed()
                waiter = self._enter(pool) if connection is None else None
            if doomed:
                _shut(doomed)
            if connection is None:
                connection = self._obtain(attempt, pool, timeouts, waiter)
                if connection is None:
                    continue
                if not connection.uses:
                    return connection
            if connection.quiet():
                return connection
            connection.shut()
            with self._lock:
                pool.forget()

    def _enter(self, pool: EndpointPool[SyncConnection]) -> _Waiter | None:
        """Count a request without a connection. -> None: it may make one."""
        if not pool.pend():
            raise EngineError("pool_overflow", "too many requests wait for a connection")
        if pool.reserve():
            return None
        waiter = _Waiter()
        pool.wait(waiter)
        return waiter

    def _obtain(
        self, attempt: Attempt, pool: EndpointPool[SyncConnection], timeouts: Timeouts, waiter: _Waiter | None
    ) -> SyncConnection | None:
        """Connect, or wait for a connection; None: look for a pool again."""
        try:
            granted = Grant.CONNECT if waiter is None else self._queue(attempt, pool, timeouts, waiter)
            if granted is Grant.LOOK_AGAIN:
                return None
            return granted if isinstance(granted, SyncConnection) else self._connect(attempt, pool, timeouts)
        finally:
            with self._lock:
                pool.unpend()

    def _queue(
        self, attempt: Attempt, pool: EndpointPool[SyncConnection], timeouts: Timeouts, waiter: _Waiter
    ) -> SyncConnection | Grant:
        limit, kind = wait_limit(attempt, timeouts, self._clock())
        try:
            if not waiter.event.wait(limit):
                raise EngineError(kind, "no connection came free in time")
        except BaseException:
            with self._lock:
                waiter.gone = True
                granted = waiter.granted
                if granted is Grant.CONNECT:
                    pool.forget()
                elif isinstance(granted, SyncConnection):
                    pool.release(granted, True, self._clock())
            raise
        return waiter.granted

    def _connect(self, attempt: Attempt, pool: EndpointPool[SyncConnection], timeouts: Timeouts) -> SyncConnection:
        limit, kind = connect_limit(attempt, timeouts, self._clock())
        try:
            return SyncConnection(open_socket(pool, limit, self._clock), pool, self._clock)
        except BaseException as error:
            with self._lock:
                pool.forget()
            if isinstance(error, LateError):
                raise EngineError(kind, f"{pool.address}: not connected within {limit:.3g} s") from None
            if isinstance(error, Exception) and not isinstance(error, EngineError):
                raise connect_error(error, pool.address) from error
            raise

    def _sweep(self, now: float) -> None:
        self._next_sweep = now + self._sweep_interval
        snapshot = self._snapshot()
        if snapshot is not None and snapshot is not self._seen_snapshot:
            self._seen_snapshot = snapshot
            self._registry.prune(snapshot)
        self._registry.sweep(now, self._wall())


def _shut(connections: list[SyncConnection]) -> None:
    for connection in connections:
        connection.shut()


# ------------------------------------------------------------------------------------------------------------------- fork

_engines: weakref.WeakSet[SyncEngine] = weakref.WeakSet()


def _after_fork() -> None:
    """In the child: a socket of the parent must not be used, and its TLS state even less. Closing it here only drops the
    child's descriptor; the parent's connection goes on."""
    for engine in _engines:
        engine.forked()


os.register_at_fork(after_in_child=_after_fork)
