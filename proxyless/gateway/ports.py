"""The ports of a gateway follow its configuration: opened when a listener wants them, closed when none does any more."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import uvicorn

from proxyless.gateway.app import GatewayApp, http_listeners

if TYPE_CHECKING:
    from proxyless.runtime.mesh import Mesh

__all__ = ["Gateway"]

log = logging.getLogger("proxyless.gateway")

LOOK_EVERY = 0.1  # seconds between looks at which ports the configuration wants
TRY_AGAIN = 1.0  # seconds between attempts to bind a port that is taken
GRACE = 20.0  # seconds that requests in progress have at the end; below the 30 s that Kubernetes gives


class _Server(uvicorn.Server):
    """Leaves signals to the gateway, which ends all of its servers."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class _Open(NamedTuple):
    server: _Server
    task: asyncio.Task[None]


class Gateway:
    """Serves every port that the configuration names, from `run` to a signal.

    Args:
        mesh: of kind ``router``.
        host: address to bind.
    """

    def __init__(self, mesh: Mesh, host: str) -> None:
        self._mesh, self._host = mesh, host
        self._open: dict[int, _Open] = {}
        self._ending: set[asyncio.Task[None]] = set()
        self._taken: dict[int, str] = {}  # ports that could not be bound, and why

    async def run(self, stop: asyncio.Event) -> None:
        """Follow the configuration until `stop` is set; then let requests in progress end."""
        self._mesh.start()
        if not await self._mesh.await_configured(2.0):
            log.warning("no configuration yet: %s", "; ".join(self._mesh.not_ready_reasons()))
        generation, again = -1, 0.0
        now = asyncio.get_running_loop().time
        while not stop.is_set():
            snapshot = self._mesh.snapshot
            if snapshot is not None and (snapshot.generation != generation or (self._taken and now() >= again)):
                generation, again = snapshot.generation, now() + TRY_AGAIN
                self._follow({each.address.port for each in http_listeners(snapshot) if each.address is not None})
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), LOOK_EVERY)
        self._mesh.drain()
        for port in list(self._open):
            self._end(port)
        if self._ending:
            await asyncio.wait(self._ending)
        await asyncio.to_thread(self._mesh.close)

    def _follow(self, wanted: set[int]) -> None:
        for port in self._open.keys() - wanted:
            self._end(port)
        for port in self._taken.keys() - wanted:
            del self._taken[port]
        for port in sorted(wanted - self._open.keys()):
            self._begin(port)
        self._mesh.hold("gateway", "; ".join(f"port {port}: {why}" for port, why in sorted(self._taken.items())))

    def _begin(self, port: int) -> None:
        try:
            bound = _bind(self._host, port)
        except OSError as error:
            hint = "; map it in mesh.yaml: proxyless.gatewayPorts" if isinstance(error, PermissionError) else ""
            why = f"{error.strerror or error}{hint}"
            if self._taken.get(port) != why:
                log.error("port %d cannot be bound: %s; it is tried again every %g s", port, why, TRY_AGAIN)
            self._taken[port] = why
            return
        self._taken.pop(port, None)
        app = GatewayApp(self._mesh, port)
        config = uvicorn.Config(
            app, http="auto", ws="none", lifespan="off", log_config=None, access_log=False, proxy_headers=False,
            server_header=False, date_header=False, timeout_graceful_shutdown=int(GRACE),
        )  # fmt: skip
        server = _Server(config)
        task = asyncio.create_task(_serve(server, bound, app), name=f"gateway port {port}")
        self._open[port] = _Open(server, task)
        log.info("serving gateway port %d on %s", port, self._host)

    def _end(self, port: int) -> None:
        ending = self._open.pop(port)
        ending.server.should_exit = True
        for listener in getattr(
            ending.server, "servers", ()
        ):  # at once: the next configuration may want the port again
            listener.close()
        self._ending.add(ending.task)
        ending.task.add_done_callback(self._ending.discard)
        log.info("gateway port %d closes", port)


async def _serve(server: _Server, bound: socket.socket, app: GatewayApp) -> None:
    try:
        await server.serve(sockets=[bound])
    finally:
        bound.close()
        await app.aclose()


def _bind(host: str, port: int) -> socket.socket:
    bound = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
        bound.listen(2048)  # a port that another process listens on may still be bound, and fails here
    except OSError:
        bound.close()
        raise
    return bound
