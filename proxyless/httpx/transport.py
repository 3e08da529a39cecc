"""The two transports. They only move values: `core.call` decides, `runtime.outbound` loops, the engines connect."""

from __future__ import annotations

import asyncio
import os
import threading
import weakref
from types import TracebackType
from typing import Any

import httpx

from proxyless.core.actions import Passthrough
from proxyless.core.snapshot import Snapshot
from proxyless.engine import AsyncEngine, SyncEngine, Timeouts
from proxyless.errors import ConfigError, EngineError
from proxyless.httpx.adapter import (
    Failures,
    LazyContexts,
    MeshLike,
    core_request,
    not_ready,
    response_of,
    start_limit,
    timeouts_of,
)
from proxyless.httpx.library import Library, library_of
from proxyless.httpx.passthrough import Ordinary, OrdinaryTransports
from proxyless.runtime.mesh import Mesh
from proxyless.runtime.outbound import OutboundExchange

__all__ = ["AsyncMeshTransport", "MeshTransport"]


class _Base:
    """What both transports share."""

    def __init__(
        self,
        mesh: MeshLike | None = None,
        *,
        verify: Any = True,
        cert: Any = None,
        proxy: Any = None,
        trust_env: bool = True,
        http2: bool = False,
        failures: Failures = "raise",
        fallback: Any = None,
    ) -> None:
        """
        Args:
            mesh: None: the one of this process, made and started by the first request.
            verify, cert, proxy, trust_env, http2: for what is not the mesh's, as in `httpx.HTTPTransport`. Without
                `proxy` those of the environment are used when `trust_env`. For services of the mesh the mesh decides.
            failures: ``raise``: what broke on the wire is an exception, ours and httpx's; ``respond``: Envoy's 503 or 504.
            fallback: a transport to use instead of an ordinary one for what is not the mesh's.
        """
        if failures not in ("raise", "respond"):
            raise ConfigError(f"failures={failures!r}: write 'raise' or 'respond'")
        self._given = mesh
        self._ordinary = Ordinary(verify, cert, proxy, trust_env, http2)
        self._failures: Failures = failures
        self._fallback = fallback
        self._configured = False

    def _mesh(self) -> MeshLike:
        mesh = self._given if self._given is not None else Mesh.default()
        mesh.ensure()
        return mesh

    def _exchange(
        self, mesh: MeshLike, snapshot: Snapshot, request: Any, library: Library
    ) -> tuple[OutboundExchange, Any]:
        """-> the call, and the body to send."""
        replayable = isinstance(request.stream, library.ByteStream)
        ours = core_request(request, replayable=replayable)
        exchange = OutboundExchange(mesh.telemetry, snapshot, ours, mesh.learned, mesh.rng)
        # Not `request.content`: a redirected request has a ByteStream and was never read.
        return exchange, b"".join(request.stream) if replayable else request.stream


class _OfLoop:
    """What belongs to one event loop."""

    __slots__ = ("engine", "loop", "ordinary", "pid")

    def __init__(self, engine: AsyncEngine, ordinary: OrdinaryTransports) -> None:
        self.engine, self.ordinary = engine, ordinary
        self.loop, self.pid = engine.loop, os.getpid()
        engine.at_close(self._close_ordinary)

    async def _close_ordinary(self) -> None:
        for transport in self.ordinary.take():
            await transport.aclose()


class AsyncMeshTransport(_Base, httpx.AsyncBaseTransport):
    """For `httpx.AsyncClient` and `httpx2.AsyncClient`, on asyncio and uvloop.

    May be used on several event loops, one after the other or at the same time: each has its own connections, which are
    closed when the loop ends.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._loops: dict[asyncio.AbstractEventLoop, _OfLoop] = {}
        self._lock = threading.Lock()
        # A transport that is dropped without `aclose` does not leave its connections to loops that go on.
        weakref.finalize(self, _close_all, self._loops).atexit = False

    async def handle_async_request(self, request: Any) -> Any:
        library = library_of(request)
        mesh = self._mesh()
        of_loop = self._of_loop(mesh)
        if mesh.settings.disabled_outbound:
            return await self._pass(of_loop, library, request)
        timeouts = timeouts_of(request)
        snapshot = mesh.snapshot
        if snapshot is None or not self._configured:
            snapshot = await self._configuration(mesh, library, timeouts)
        exchange, body = self._exchange(mesh, snapshot, request, library)
        try:
            action = await exchange.run_async(of_loop.engine, body, timeouts)
        except EngineError as error:
            raise library.of_engine(error, exchange) from error
        if type(action) is Passthrough:
            return await self._passed(exchange, of_loop, library, request)
        return response_of(action, exchange, library, self._failures, library.AsyncStream)

    async def aclose(self) -> None:
        """Close the connections of this loop, and those of loops that are over. Other loops close their own."""
        loop = asyncio.get_running_loop()
        with self._lock:
            mine = self._loops.pop(loop, None)
            over = [self._loops.pop(each) for each in list(self._loops) if each.is_closed()]
        for other in over:
            _close_elsewhere(other)
        if mine is not None:
            await mine.engine.aclose()

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None = None,
        exc_value: BaseException | None = None,
        traceback: TracebackType | None = None,
    ) -> None:
        await self.aclose()

    def _of_loop(self, mesh: MeshLike) -> _OfLoop:
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            raise ConfigError(
                "AsyncMeshTransport runs on asyncio or uvloop only: under trio use httpx.Client(transport=MeshTransport()) "
                "in a worker thread"
            ) from None
        of_loop = self._loops.get(loop)
        if of_loop is None or of_loop.engine.closed:
            of_loop = self._add_loop(loop, mesh)
        return of_loop

    def _add_loop(self, loop: asyncio.AbstractEventLoop, mesh: MeshLike) -> _OfLoop:
        engine = AsyncEngine(LazyContexts(mesh), app_context=self._ordinary.tls, snapshot=lambda: mesh.snapshot)
        with self._lock:
            for known, of_loop in list(self._loops.items()):
                if known.is_closed():
                    del self._loops[known]
                    of_loop.engine.abandon()
            of_loop = self._loops[loop] = _OfLoop(engine, OrdinaryTransports(self._ordinary, "AsyncHTTPTransport"))
        return of_loop

    async def _configuration(self, mesh: MeshLike, library: Library, timeouts: Timeouts) -> Snapshot:
        if not mesh.configured:
            await mesh.await_configured(start_limit(timeouts, mesh))
        snapshot = mesh.snapshot
        if snapshot is None or not mesh.configured:
            raise not_ready(mesh, library)
        self._configured = True
        return snapshot

    async def _pass(self, of_loop: _OfLoop, library: Library, request: Any) -> Any:
        transport = self._fallback
        if transport is None:
            transport = of_loop.ordinary.find(library, request.url)
            await of_loop.engine.watch_loop()
        return await transport.handle_async_request(request)

    async def _passed(self, exchange: OutboundExchange, of_loop: _OfLoop, library: Library, request: Any) -> Any:
        try:
            response = await self._pass(of_loop, library, request)
        except BaseException as error:
            exchange.passed(0, error)
            raise
        exchange.passed(response.status_code)
        return response


def _close_elsewhere(of_loop: _OfLoop) -> None:
    """From another loop than its own, or from none."""
    if of_loop.pid != os.getpid():
        return  # the parent's: its loop must not even be woken from here
    if of_loop.loop.is_closed():
        of_loop.engine.abandon()
    else:
        of_loop.loop.call_soon_threadsafe(lambda: of_loop.loop.create_task(of_loop.engine.aclose()))


def _close_all(loops: dict[asyncio.AbstractEventLoop, _OfLoop]) -> None:
    for of_loop in list(loops.values()):
        _close_elsewhere(of_loop)


class MeshTransport(_Base, httpx.BaseTransport):
    """For `httpx.Client` and `httpx2.Client`, from any thread. After a fork the child has its own connections."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._engine: SyncEngine | None = None
        self._transports = OrdinaryTransports(self._ordinary, "HTTPTransport")
        self._pid = os.getpid()
        self._lock = threading.Lock()

    def handle_request(self, request: Any) -> Any:
        library = library_of(request)
        mesh = self._mesh()
        if mesh.settings.disabled_outbound:
            return self._pass(library, request)
        timeouts = timeouts_of(request)
        snapshot = mesh.snapshot
        if snapshot is None or not self._configured:
            snapshot = self._configuration(mesh, library, timeouts)
        engine = self._engine
        if engine is None:
            engine = self._make_engine(mesh)
        exchange, body = self._exchange(mesh, snapshot, request, library)
        try:
            action = exchange.run(engine, body, timeouts)
        except EngineError as error:
            raise library.of_engine(error, exchange) from error
        if type(action) is Passthrough:
            return self._passed(exchange, library, request)
        return response_of(action, exchange, library, self._failures, library.Stream)

    def close(self) -> None:
        """Close the free connections; busy ones end with their response."""
        if self._engine is not None:
            self._engine.close()
        for transport in self._transports.take():
            transport.close()

    def __exit__(
        self,
        exc_type: type[BaseException] | None = None,
        exc_value: BaseException | None = None,
        traceback: TracebackType | None = None,
    ) -> None:
        self.close()

    def _make_engine(self, mesh: MeshLike) -> SyncEngine:
        with self._lock:
            if self._engine is None:
                self._engine = SyncEngine(
                    LazyContexts(mesh), app_context=self._ordinary.tls, snapshot=lambda: mesh.snapshot
                )
            return self._engine

    def _configuration(self, mesh: MeshLike, library: Library, timeouts: Timeouts) -> Snapshot:
        if not mesh.configured:
            mesh.wait_configured(start_limit(timeouts, mesh))
        snapshot = mesh.snapshot
        if snapshot is None or not mesh.configured:
            raise not_ready(mesh, library)
        self._configured = True
        return snapshot

    def _pass(self, library: Library, request: Any) -> Any:
        transport = self._fallback
        if transport is None:
            if self._pid != os.getpid():  # sockets of the parent: left alone, not closed
                self._transports, self._pid = OrdinaryTransports(self._ordinary, "HTTPTransport"), os.getpid()
            transport = self._transports.find(library, request.url)
        return transport.handle_request(request)

    def _passed(self, exchange: OutboundExchange, library: Library, request: Any) -> Any:
        try:
            response = self._pass(library, request)
        except BaseException as error:
            exchange.passed(0, error)
            raise
        exchange.passed(response.status_code)
        return response
