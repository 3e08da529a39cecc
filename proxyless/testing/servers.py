"""Servers in threads, for tests: uvicorn with the mesh's protocol, and the gateway."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NamedTuple

import uvicorn

from proxyless.asgi import ASGIApp, Lifespan, Receive, Scope, Send
from proxyless.errors import NotReadyError
from proxyless.uvicorn import MeshProtocol

if TYPE_CHECKING:
    from proxyless.runtime.mesh import Mesh

__all__ = ["Served", "gateway_running", "serving"]

LOOK_EVERY = 0.01
STOP_TIMEOUT = 10.0


class Served(NamedTuple):
    """`port` of 127.0.0.1 where `mesh`'s workload is served."""

    port: int
    mesh: Mesh


@contextlib.contextmanager
def serving(app: ASGIApp, mesh: Mesh, timeout: float) -> Iterator[Served]:
    """Raises NotReadyError when it is not registered and served in time."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        mesh.listening_on(port)
        protocol = MeshProtocol.for_mesh(mesh)
        server = uvicorn.Server(
            uvicorn.Config(_Application(app), http=protocol, log_config=None, access_log=False, proxy_headers=False)
        )
        thread = threading.Thread(target=_run, args=(server, listener), name="proxyless-test-server", daemon=True)
        mesh.start()
        thread.start()
        try:
            _wait(lambda: server.started and mesh.announced, thread, mesh, timeout)
            yield Served(port, mesh)
        finally:
            server.should_exit = True
            thread.join(STOP_TIMEOUT)
            mesh.close()


class _Application:
    """An application whose lifespan fails has not started, also where uvicorn would take it for one without a lifespan."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await Lifespan(receive, send).run(self._app, scope)
        else:
            await self._app(scope, receive, send)


def _run(server: uvicorn.Server, listener: socket.socket) -> None:
    with contextlib.suppress(SystemExit):  # uvicorn's way to say that the application did not start
        server.run(sockets=[listener])


@contextlib.contextmanager
def gateway_running(mesh: Mesh, timeout: float) -> Iterator[None]:
    """Raises NotReadyError when its ports are not open in time."""
    from proxyless.gateway import Gateway

    loop = asyncio.new_event_loop()
    stop = asyncio.Event()
    gateway = Gateway(mesh, "127.0.0.1", drain=0.0)
    thread = threading.Thread(
        target=lambda: loop.run_until_complete(gateway.run(stop)), name="proxyless-test-gateway", daemon=True
    )
    thread.start()
    try:
        _wait(lambda: mesh.ready, thread, mesh, timeout)
        yield
    finally:
        with contextlib.suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(stop.set)
        thread.join(STOP_TIMEOUT)
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()


def _wait(ready: Callable[[], bool], thread: threading.Thread, mesh: Mesh, timeout: float) -> None:
    end = time.monotonic() + timeout
    while not ready():
        if not thread.is_alive():
            raise NotReadyError("the server has ended; its log says why")
        if time.monotonic() > end:
            raise NotReadyError("; ".join(mesh.not_ready_reasons()) or "not registered in time")
        time.sleep(LOOK_EVERY)
