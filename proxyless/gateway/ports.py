"""The ports of a gateway follow its configuration: opened when a listener wants them, closed when none does any more.

The way out: `/ready` says so and answers end their connections; a moment later, when whoever stands before the gateway has
noticed, the ports close and requests in progress end.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import uvicorn

from proxyless.core.request import Address
from proxyless.engine import AsyncEngine
from proxyless.gateway.app import GatewayApp, http_listeners, plain_chain
from proxyless.gateway.protocol import EdgeProtocol
from proxyless.runtime.drain import DRAIN_SECONDS
from proxyless.telemetry import families

if TYPE_CHECKING:
    from proxyless.core.snapshot import Snapshot
    from proxyless.runtime.mesh import Mesh

__all__ = ["Gateway"]

log = logging.getLogger("proxyless.gateway")

START_WAIT = 2.0  # seconds for the first configuration, before it is said that there is none
LOOK_EVERY = 0.1  # seconds between looks at which ports the configuration wants
TRY_AGAIN = 1.0  # seconds between attempts to bind a port that is taken
GRACE = 20  # seconds that requests in progress have at the end; below the 30 s that Kubernetes gives
KEEP_ALIVE = 75  # seconds that a connection without a request is kept
BACKLOG = 2048
_ANY = frozenset(("0.0.0.0", "::"))  # noqa: S104 - compared, never bound


class _Server(uvicorn.Server):
    """Leaves signals to the gateway, which ends all of its servers."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class _Open(NamedTuple):
    server: _Server
    task: asyncio.Task[None]


class Gateway:
    """Serves every port that the configuration names, from `run` to its end.

    Args:
        mesh: of kind ``router``.
        host: address to bind where a listener takes any.
        drain: seconds between the end of readiness and the end of the ports.
    """

    def __init__(self, mesh: Mesh, host: str, *, drain: float = DRAIN_SECONDS) -> None:
        self._mesh, self._host, self._drain_seconds = mesh, host, drain
        self._engine: AsyncEngine | None = None
        self._leaving = False
        self._hurried = asyncio.Event()
        self._open: dict[Address, _Open] = {}  # by the address of the listener
        self._ending: dict[asyncio.Task[None], _Server] = {}
        self._taken: dict[Address, str] = {}  # what could not be bound, and why
        self._unserved: dict[str, str] = {}

    async def run(self, stop: asyncio.Event) -> None:
        """Follow the configuration until `stop` is set; then let requests in progress end.

        Raises:
            SettingsError: a setting cannot be used.
        """
        mesh = self._mesh
        self._warn_about_settings()
        mesh.hold("gateway", "no port is open yet")
        mesh.start()
        contexts = None if mesh.identity_source is None else mesh.contexts
        self._engine = AsyncEngine(contexts, snapshot=lambda: mesh.snapshot)
        if not await mesh.await_configured(START_WAIT):
            log.warning("no configuration yet: %s", "; ".join(mesh.not_ready_reasons()))
        try:
            await self._follow_until(stop)
            await self._drain()
        finally:
            await self._close()

    def hurry(self) -> None:
        """Asked a second time: end now, and cut what is in progress."""
        self._hurried.set()
        for server in (*(opened.server for opened in self._open.values()), *self._ending.values()):
            server.should_exit = server.force_exit = True

    # ------------------------------------------------------------------------------------------------------------ life

    async def _follow_until(self, stop: asyncio.Event) -> None:
        now = asyncio.get_running_loop().time
        seen: Snapshot | None = None
        again = 0.0
        while not stop.is_set():
            snapshot = self._mesh.snapshot
            self._look_for_crashes()
            if snapshot is not None and (snapshot is not seen or (self._taken and now() >= again)):
                seen, again = snapshot, now() + TRY_AGAIN
                self._follow(snapshot)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), LOOK_EVERY)

    async def _drain(self) -> None:
        self._leaving = True
        await asyncio.to_thread(self._mesh.drain)
        log.info("draining: ports close in %g s", self._drain_seconds)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._hurried.wait(), self._drain_seconds)

    async def _close(self) -> None:
        for where in list(self._open):
            self._end(where)
        if self._ending:
            await asyncio.wait(self._ending)
        if self._engine is not None:
            await self._engine.aclose()
        await asyncio.to_thread(self._mesh.close)

    # ----------------------------------------------------------------------------------------------------------- ports

    def _follow(self, snapshot: Snapshot) -> None:
        self._name_unserved(snapshot)
        wanted = {listener.address for listener in http_listeners(snapshot) if listener.address is not None}
        for where in self._open.keys() - wanted:
            self._end(where)
        for where in self._taken.keys() - wanted:
            del self._taken[where]
        for where in sorted(wanted - self._open.keys()):
            self._begin(where)
        self._mesh.hold("gateway", "; ".join(f"port {at.port}: {why}" for at, why in sorted(self._taken.items())))

    def _begin(self, where: Address) -> None:
        host = self._host if where.host in _ANY else where.host
        try:
            bound = _bind(host, where.port)
        except OSError as error:
            hint = "; map it in mesh.yaml: proxyless.gatewayPorts" if isinstance(error, PermissionError) else ""
            why = f"{error.strerror or error}{hint}"
            if self._taken.get(where) != why:
                log.error("port %d cannot be bound: %s; it is tried again every %g s", where.port, why, TRY_AGAIN)
            self._taken[where] = why
            return
        self._taken.pop(where, None)
        assert self._engine is not None  # noqa: S101 - made by `run`
        app = GatewayApp(self._mesh, self._engine, where, lambda: self._leaving)
        config = uvicorn.Config(
            app, http=EdgeProtocol, ws="none", lifespan="off", log_config=None, access_log=False, proxy_headers=False,
            server_header=False, date_header=False, timeout_keep_alive=KEEP_ALIVE, backlog=BACKLOG,
            timeout_graceful_shutdown=GRACE,
        )  # fmt: skip
        server = _Server(config)
        task = asyncio.create_task(_serve(server, bound), name=f"gateway port {where.port}")
        self._open[where] = _Open(server, task)
        log.info("serving gateway port %d on %s", where.port, host)

    def _end(self, where: Address) -> None:
        ending = self._open.pop(where)
        ending.server.should_exit = True
        ending.server.force_exit = self._hurried.is_set()
        for listener in getattr(ending.server, "servers", ()):
            listener.close()  # at once: the next configuration may want the port again
        if not ending.task.done():
            self._ending[ending.task] = ending.server
            ending.task.add_done_callback(self._ending.pop)
        log.info("gateway port %d closes", where.port)

    def _look_for_crashes(self) -> None:
        """A server that ended by itself is begun again, as a port that is taken would be."""
        for where, opened in list(self._open.items()):
            if opened.task.done():
                error = None if opened.task.cancelled() else opened.task.exception()
                log.error("the server of gateway port %d ended: %s", where.port, error or "without a word")
                self._end(where)
                self._taken[where] = f"its server ended: {error}"

    def _name_unserved(self, snapshot: Snapshot) -> None:
        unserved = {
            listener.name: "TLS and TCP at the gateway are not supported"
            for listener in snapshot.listeners.values()
            if not listener.use_original_dst
            and listener.direction != "INBOUND"
            and listener.filter_chains
            and plain_chain(listener) is None
        }
        for name in sorted(unserved.keys() - self._unserved.keys()):
            log.warning("listener %s is not served: %s", name, unserved[name])
        self._unserved = unserved

    def _warn_about_settings(self) -> None:
        settings, metrics = self._mesh.settings, self._mesh.telemetry.metrics
        if settings.disabled_inbound:
            log.critical("PROXYLESS_DISABLED=all: requests pass the gateway without its policy")
            metrics.set(families.DISABLED, 1, "inbound")
        if settings.disabled_outbound:
            log.error(
                "PROXYLESS_DISABLED does not switch the routes of a gateway off: without the mesh it leads nowhere"
            )


async def _serve(server: _Server, bound: socket.socket) -> None:
    try:
        await server.serve(sockets=[bound])
    finally:
        bound.close()


def _bind(host: str, port: int) -> socket.socket:
    bound = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    # Inherited by what it accepts; asyncio sets it only where it opened the listener itself.
    bound.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    try:
        bound.bind((host, port))
        bound.listen(BACKLOG)  # a port that another process listens on may still be bound, and fails here
    except OSError:
        bound.close()
        raise
    return bound
