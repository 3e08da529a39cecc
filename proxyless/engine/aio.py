"""Attempts on one event loop: find a connection, or make one, or wait for one; then one exchange on it."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import TYPE_CHECKING

from proxyless.engine.aio_connection import AsyncBody, AsyncConnection, AsyncExchange
from proxyless.engine.h1 import in_chunks, request_head
from proxyless.engine.pool import Grant
from proxyless.engine.registry import ClientContexts, EndpointPool, Registry, check_protocol, connect_error
from proxyless.engine.timeouts import UNLIMITED, Timeouts, connect_limit, wait_limit
from proxyless.errors import EngineError

if TYPE_CHECKING:
    from proxyless.core.call import Attempt
    from proxyless.core.snapshot import Snapshot

__all__ = ["AsyncEngine", "AsyncExchange"]


class _Waiter:
    __slots__ = ("future",)

    def __init__(self, future: asyncio.Future[AsyncConnection | Grant]) -> None:
        self.future = future

    def grant(self, what: AsyncConnection | Grant) -> bool:
        if self.future.done():
            return False
        self.future.set_result(what)
        return True


class AsyncEngine:
    """Attempts on one event loop. Make it on that loop; it closes its connections when the loop shuts down."""

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
        """
        Args:
            contexts: TLS contexts of the mesh; None when no endpoint speaks mutual TLS.
            app_context: makes the context for https:// of the application itself; called once per server name.
            snapshot: the configuration in use; pools of endpoints that are not in it any more are retired.
            sweep_interval: seconds between looks for connections that are too old.
        """
        self.loop = asyncio.get_running_loop()
        self._registry: Registry[AsyncConnection] = Registry(contexts, app_context)
        self._snapshot = snapshot
        self._seen_snapshot: Snapshot | None = None
        self._clock, self._wall, self._sweep_interval = clock, wall, sweep_interval
        self._connections: set[AsyncConnection] = set()
        self._sweeper: asyncio.TimerHandle | None = None
        self._guard: AsyncGenerator[None, None] | None = None
        self._closers: list[Callable[[], Awaitable[None]]] = []
        self.closed = False

    async def exchange(self, attempt: Attempt, body: AsyncBody = b"", timeouts: Timeouts = UNLIMITED) -> AsyncExchange:
        """Do one attempt: -> as soon as the head of the answer is there. Never repeats anything.

        Args:
            body: bytes, or a stream that is sent in chunks unless the headers declare a length.

        Raises:
            EngineError: with the evidence for the retry loop. Kind ``request``: nothing was sent, the caller is wrong.
            Exception: whatever the body's iterator raised.
        """
        if self.closed:
            raise EngineError("connect", "the engine is closed")
        length = len(body) if isinstance(body, bytes) else None
        head = request_head(attempt.method, attempt.target, attempt.authority, attempt.headers, length)
        if head.chunked and isinstance(body, bytes):
            body = in_chunks(body)
        registry = self._registry
        while True:
            pool = registry.find(attempt)
            if attempt.fresh:
                pool.drain()
            connection = pool.checkout(self._clock(), self._wall())
            if registry.doomed:
                self._close_doomed()
            if connection is None:
                connection = await self._acquire(attempt, pool, timeouts)
            if connection is not None:
                break
        await connection.exchange(head, body, timeouts, attempt.begin(self._clock()))
        return AsyncExchange(connection)

    async def aclose(self) -> None:
        """Close every connection. Exchanges in progress fail."""
        self.closed = True
        self._registry.clear()
        self._close_doomed()
        if self._sweeper is not None:
            self._sweeper.cancel()
        for connection in list(self._connections):
            connection.shut(abort=True)
        for _ in range(3):  # connection_lost is called, and the socket closed, one or two turns of the loop later
            if self._connections:
                await asyncio.sleep(0)
        for closer in self._closers:
            await closer()
        if self._guard is not None:
            guard, self._guard = self._guard, None
            await guard.aclose()

    def at_close(self, closer: Callable[[], Awaitable[None]]) -> None:
        """Await this too when the engine closes."""
        self._closers.append(closer)

    async def watch_loop(self) -> None:
        """Close the engine when its loop shuts down. Done before the first connection."""
        if self._guard is None and not self.closed:
            self._guard = self._close_with_loop()
            await anext(self._guard)

    def abandon(self) -> None:
        """The loop is closed already, without having shut down its generators: end the connections behind its back."""
        self.closed = True
        self._registry.clear()
        self._registry.doomed.clear()
        for connection in self._connections:
            connection.abandon()
            if connection.active:
                connection.pool.forget()
        self._connections.clear()

    # ---------------------------------------------------------------------------------------------- from connections

    def opened(self, connection: AsyncConnection) -> None:
        self._connections.add(connection)

    def released(self, connection: AsyncConnection, reusable: bool) -> None:
        connection.pool.release(connection, reusable, self._clock())
        if self._registry.doomed:
            self._close_doomed()

    def lost(self, connection: AsyncConnection) -> None:
        if not connection.active:
            connection.pool.lost(connection)
        if connection.gone:
            self._connections.discard(connection)

    # ------------------------------------------------------------------------------------------------------- private

    async def _acquire(
        self, attempt: Attempt, pool: EndpointPool[AsyncConnection], timeouts: Timeouts
    ) -> AsyncConnection | None:
        """Connect, or wait for a connection; None: look for a pool again."""
        if not pool.pend():
            raise EngineError("pool_overflow", "too many requests wait for a connection")
        try:
            if not pool.reserve():
                granted = await self._queue(attempt, pool, timeouts)
                if granted is Grant.LOOK_AGAIN:
                    return None
                if isinstance(granted, AsyncConnection):
                    if not granted.closed:
                        return granted
                    pool.forget()
                    return None
            return await self._connect(attempt, pool, timeouts)
        finally:
            pool.unpend()

    async def _queue(
        self, attempt: Attempt, pool: EndpointPool[AsyncConnection], timeouts: Timeouts
    ) -> AsyncConnection | Grant:
        limit, kind = wait_limit(attempt, timeouts, self._clock())
        future: asyncio.Future[AsyncConnection | Grant] = self.loop.create_future()
        pool.wait(_Waiter(future))
        try:
            async with asyncio.timeout(limit):
                return await future
        except BaseException as error:
            if future.done() and not future.cancelled():
                self._give_back(pool, future.result())
            if isinstance(error, TimeoutError):
                raise EngineError(kind, "no connection came free in time") from None
            raise

    def _give_back(self, pool: EndpointPool[AsyncConnection], granted: AsyncConnection | Grant) -> None:
        """Granted to a request that went away at the same moment."""
        if granted is Grant.CONNECT:
            pool.forget()
        elif isinstance(granted, AsyncConnection):
            self.released(granted, True)

    async def _connect(
        self, attempt: Attempt, pool: EndpointPool[AsyncConnection], timeouts: Timeouts
    ) -> AsyncConnection:
        await self.watch_loop()
        limit, kind = connect_limit(attempt, timeouts, self._clock())
        timer = asyncio.timeout(limit)
        try:
            async with timer:
                connection = await self._open(pool)
        except BaseException as error:
            pool.forget()
            if timer.expired():
                raise EngineError(kind, f"{pool.address}: not connected within {limit:.3g} s") from None
            if isinstance(error, Exception) and not isinstance(error, EngineError):
                raise connect_error(error, pool.address) from error
            raise
        if self._sweeper is None:
            self._sweeper = self.loop.call_later(self._sweep_interval, self._sweep)
        return connection

    async def _open(self, pool: EndpointPool[AsyncConnection]) -> AsyncConnection:
        loop, address, context = self.loop, pool.address, pool.context
        name = pool.server_name if context is not None else None

        def factory() -> AsyncConnection:
            return AsyncConnection(pool, self, loop, self._clock)

        if address.host.startswith("/"):
            transport, connection = await loop.create_unix_connection(
                factory, address.host, ssl=context, server_hostname=name
            )
        else:
            transport, connection = await loop.create_connection(
                factory, address.host, address.port, ssl=context, server_hostname=name
            )
        if context is not None:
            try:
                check_protocol(transport.get_extra_info("ssl_object"), address)
            except EngineError:
                connection.shut()
                raise
        return connection

    def _close_doomed(self) -> None:
        doomed = self._registry.doomed
        for connection in doomed:
            connection.shut()
        doomed.clear()

    def _sweep(self) -> None:
        registry = self._registry
        snapshot = self._snapshot()
        if snapshot is not None and snapshot is not self._seen_snapshot:
            self._seen_snapshot = snapshot
            registry.prune(snapshot)
        try:
            registry.sweep(self._clock(), self._wall())
            self._close_doomed()
        finally:  # whatever one sweep meets, there is a next one
            busy = any(pool.connections for pool in registry)
            self._sweeper = self.loop.call_later(self._sweep_interval, self._sweep) if busy else None

    async def _close_with_loop(self) -> AsyncGenerator[None, None]:
        """A generator that is suspended when the loop shuts down is closed by it while the loop still runs
        (`loop.shutdown_asyncgens`, part of `asyncio.run`): the one public hook on the end of a loop."""
        try:
            yield
        finally:
            self._guard = None
            if not self.closed:
                await self.aclose()
