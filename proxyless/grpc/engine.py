"""Attempts of one channel on one event loop: find a connection, make one, or wait for one that is being made.

HTTP/2 carries many calls on a connection, so there is one for each endpoint, TLS rule and authority. It is left to its calls and
replaced when our certificate or the trust bundles change, its endpoint goes, a certificate ends, or it has served its time.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from functools import lru_cache
from typing import TYPE_CHECKING

import grpc

from proxyless.core.actions import Attempt
from proxyless.core.breakers import may_wait
from proxyless.core.request import Address
from proxyless.core.resources import UpstreamTls
from proxyless.engine.registry import connect_error
from proxyless.engine.timeouts import Timeouts, connect_limit
from proxyless.errors import EngineError, IdentityError, NoIdentityError
from proxyless.grpc.connection import Answer, Connection, Options, connect
from proxyless.values import replace

if TYPE_CHECKING:
    from proxyless.core.learned import ClusterState
    from proxyless.core.snapshot import Endpoint, Snapshot
    from proxyless.runtime.mesh import Mesh

__all__ = ["Engine"]

MAX_RECENT = 1024
SWEEP_INTERVAL = 2.0  # seconds between looks for connections that are too old

_Key = tuple[str, Address, UpstreamTls | None, str]


class Engine:
    """Make it on its event loop; it closes its connections when the loop shuts down."""

    def __init__(self, mesh: Mesh, options: Options) -> None:
        self.loop = asyncio.get_running_loop()
        self._mesh, self._options = mesh, options
        self._connections: dict[_Key, Connection] = {}
        self._connecting: dict[_Key, asyncio.Task[Connection]] = {}
        self._all: set[Connection] = set()
        # An endpoint keeps its identity from snapshot to snapshot while it does not change: no TLS rule is hashed.
        self._recent: dict[tuple[int, str], tuple[Endpoint, Connection]] = {}
        self._seen: Snapshot | None = None
        self._sweeper: asyncio.TimerHandle | None = None
        self._guard: AsyncGenerator[None, None] | None = None
        self.closed = False

    async def exchange(
        self, attempt: Attempt, message: bytes, timeouts: Timeouts, compression: grpc.Compression | None = None
    ) -> Answer:
        """Do one attempt. Never repeats anything.

        Raises:
            EngineError: with the evidence for the retry loop.
        """
        connection = self._find(attempt)
        if connection is None:
            connection = await self._acquire(attempt, timeouts)
            if connection.retired or connection.dead:  # in the moment between its coming and our turn
                raise EngineError("connect", f"{attempt.endpoint.address}: the connection ended before the call began")
        return await connection.unary(attempt, message, compression)

    async def aclose(self) -> None:
        """Close every connection. Calls under way are cancelled."""
        self.closed = True
        if self._sweeper is not None:
            self._sweeper.cancel()
        for task in list(self._connecting.values()):
            task.cancel()
        await asyncio.gather(*self._connecting.values(), return_exceptions=True)
        connections = list(self._all)
        await asyncio.gather(*(connection.closed() for connection in connections), return_exceptions=True)
        for _ in range(3):  # connection_lost is called, and the socket closed, one or two turns of the loop later
            await asyncio.sleep(0)
        if self._guard is not None:
            guard, self._guard = self._guard, None
            await guard.aclose()

    # ------------------------------------------------------------------------------------------------------ connections

    def _find(self, attempt: Attempt) -> Connection | None:
        endpoint = attempt.endpoint
        recent = self._recent.get((id(endpoint), attempt.authority))
        if recent is not None and recent[0] is endpoint:
            connection: Connection | None = recent[1]
        else:
            connection = self._connections.get(_key(attempt))
            if connection is not None:
                if len(self._recent) >= MAX_RECENT:
                    self._recent.clear()
                self._recent[id(endpoint), attempt.authority] = (endpoint, connection)
        if connection is None or self._usable(connection):
            return connection
        self._retire(connection)
        return None

    def _usable(self, connection: Connection) -> bool:
        cluster = connection.upstream.cluster
        return (
            not connection.retired
            and connection.ready()
            and not 0 < cluster.max_requests_per_connection <= connection.uses
            and not self._outdated(connection)
        )

    def _outdated(self, connection: Connection) -> bool:
        if connection.tls is not None and connection.generation != self._generation():
            return True
        limit = connection.upstream.cluster.max_connection_duration
        if limit is not None and time.monotonic() >= connection.opened_at + limit:
            return True
        return time.time() >= connection.valid_until

    def _generation(self) -> int:
        try:
            return self._mesh.contexts.generation
        except NoIdentityError:
            return -1

    async def _acquire(self, attempt: Attempt, timeouts: Timeouts) -> Connection:
        """Connect, or join those who wait for the same connection. Who gives up does not take it from the others."""
        if self.closed:
            raise EngineError("connect", "the channel is closed")
        state = attempt.state
        if not may_wait(state, attempt.upstream.cluster.breakers):
            raise EngineError("pool_overflow", "too many requests wait for a connection")
        limit, kind = connect_limit(attempt, timeouts, time.monotonic())
        await self._watch_loop()
        key = _key(attempt)
        task = self._connecting.get(key)
        if task is None:
            task = self._connecting[key] = self.loop.create_task(self._connect(attempt, key))
            task.add_done_callback(_retrieve)
        state.pending += 1
        timer = asyncio.timeout(limit)
        try:
            async with timer:
                return await asyncio.shield(task)
        except TimeoutError:
            raise EngineError(kind, f"{attempt.endpoint.address}: not connected within {limit:.3g} s") from None
        finally:
            state.pending -= 1

    async def _connect(self, attempt: Attempt, key: _Key) -> Connection:
        state, address, tls = attempt.state, attempt.endpoint.address, _http2(attempt.endpoint.tls)
        generation = self._generation()
        state.connections += 1
        try:
            context = self._mesh.contexts.client(tls) if tls is not None else None
            async with asyncio.timeout(attempt.upstream.cluster.connect_timeout):
                connection = await connect(
                    attempt, tls, context, generation, self._options, lambda gone: self._lost(key, gone, state)
                )
        except BaseException as error:
            state.connections -= 1
            if isinstance(error, TimeoutError):
                raise EngineError("connect_timeout", f"{address}: not connected in time") from None
            if isinstance(error, (OSError, IdentityError)):
                raise connect_error(error, address) from error
            raise
        finally:
            del self._connecting[key]
        self._all.add(connection)
        self._connections[key] = connection
        if self._sweeper is None:
            self._sweeper = self.loop.call_later(SWEEP_INTERVAL, self._sweep)
        return connection

    def _lost(self, key: _Key, connection: Connection, state: ClusterState) -> None:
        state.connections -= 1
        self._all.discard(connection)
        if self._connections.get(key) is connection:
            del self._connections[key]
            self._recent.clear()

    def _retire(self, connection: Connection) -> None:
        for key, known in list(self._connections.items()):
            if known is connection:
                del self._connections[key]
        self._recent.clear()
        connection.retire()

    # ------------------------------------------------------------------------------------------------------------- time

    def _sweep(self) -> None:
        snapshot = self._mesh.snapshot
        changed = snapshot is not self._seen
        self._seen = snapshot
        if changed:
            self._recent.clear()
        now = time.monotonic()
        for connection in list(self._connections.values()):
            idle = connection.upstream.cluster.idle_timeout
            if (
                (changed and snapshot is not None and not _serves(snapshot, connection))
                or not self._usable(connection)
                or (idle and not connection.active and now >= connection.idle_since + idle)
            ):
                self._retire(connection)
        self._sweeper = self.loop.call_later(SWEEP_INTERVAL, self._sweep) if self._all else None

    async def _watch_loop(self) -> None:
        """A generator that is suspended when the loop shuts down is closed by it while the loop still runs."""
        if self._guard is None:
            self._guard = self._close_with_loop()
            await anext(self._guard)

    async def _close_with_loop(self) -> AsyncGenerator[None, None]:
        try:
            yield
        finally:
            self._guard = None
            if not self.closed:
                await self.aclose()


def _key(attempt: Attempt) -> _Key:
    endpoint = attempt.endpoint
    return attempt.upstream.cluster.name, endpoint.address, endpoint.tls, attempt.authority


@lru_cache(256)
def _http2(tls: UpstreamTls | None) -> UpstreamTls | None:
    """gRPC is HTTP/2 whatever protocol the service's port declares, so no other is offered."""
    if tls is None or "h2" in tls.alpn:
        return tls
    return replace(tls, alpn=("istio-h2", "istio", "h2") if any("istio" in name for name in tls.alpn) else ("h2",))


def _serves(snapshot: Snapshot, connection: Connection) -> bool:
    """The endpoint is still there, with the same TLS rule. Also makes the connection follow its cluster's settings."""
    upstream = snapshot.upstreams.get(connection.upstream.cluster.name)
    if upstream is None:
        return False
    for variant in (upstream, upstream.for_tcp):
        for endpoint in variant.endpoints:
            if endpoint.address == connection.address and _http2(endpoint.tls) == connection.tls:
                connection.upstream = upstream
                return True
    return False


def _retrieve(task: asyncio.Task[Connection]) -> None:
    """Everybody who waited has gone: nobody else asks for the exception."""
    if not task.cancelled():
        task.exception()
