"""A gRPC server whose port is the mesh's: mutual TLS STRICT or PERMISSIVE, policy before every method, metrics after it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from concurrent.futures import Executor
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio

from proxyless.errors import ConfigError, ProxylessError
from proxyless.grpc.connection import Options
from proxyless.grpc.front import Front, accepted
from proxyless.grpc.guard import Guard
from proxyless.runtime.inbound import MeshLike, gate_of, serving_mesh

if TYPE_CHECKING:
    from proxyless.core.request import Peer

__all__ = ["MeshServer", "mesh_peer", "mesh_server"]

log = logging.getLogger("proxyless.grpc")


def mesh_peer(context: Any) -> Peer:
    """The verified peer of a call: `mesh_peer(context).identity` is its SPIFFE ID, None for an anonymous one.

    Raises:
        ProxylessError: the call did not come through a mesh server, or its connection ended before.
    """
    found = accepted(context.peer())
    if found is None:
        raise ProxylessError("this call did not come through mesh_server")
    return found.connection.peer


def mesh_server(
    mesh: MeshLike | None = None,
    *,
    migration_thread_pool: Executor | None = None,
    handlers: Sequence[grpc.GenericRpcHandler] | None = None,
    interceptors: Sequence[Any] | None = None,
    options: Options | None = None,
    maximum_concurrent_rpcs: int | None = None,
    compression: grpc.Compression | None = None,
) -> MeshServer:
    """A server of the mesh, like `grpc.aio.server`, which explains the other arguments.

    Args:
        mesh: None: the one of this process. It is started with the server.
    """
    return MeshServer(
        mesh,
        migration_thread_pool=migration_thread_pool,
        handlers=handlers,
        interceptors=interceptors,
        options=options,
        maximum_concurrent_rpcs=maximum_concurrent_rpcs,
        compression=compression,
    )


class MeshServer(grpc.aio.Server):  # type: ignore[misc]  # grpcio ships no types
    """See `mesh_server`. One event loop, one process: make it after a fork."""

    def __init__(
        self,
        mesh: MeshLike | None = None,
        *,
        interceptors: Sequence[Any] | None = None,
        **of_grpcio: Any,
    ) -> None:
        self._mesh = mesh if mesh is not None else serving_mesh()
        gate = gate_of(self._mesh)
        self._server = grpc.aio.server(interceptors=[Guard(gate), *(interceptors or ())], **of_grpcio)
        self._front = Front(gate)
        self._state = "new"

    def add_generic_rpc_handlers(self, generic_rpc_handlers: Sequence[grpc.GenericRpcHandler]) -> None:
        self._server.add_generic_rpc_handlers(generic_rpc_handlers)

    def add_registered_method_handlers(self, service_name: str, method_handlers: dict[str, Any]) -> None:
        self._server.add_registered_method_handlers(service_name, method_handlers)

    def add_insecure_port(self, address: str) -> int:
        """Open a port; -> its number. Named as in grpcio so that code stays as it is: whether TLS is asked for is the mesh's
        decision, STRICT, PERMISSIVE or DISABLE.

        Args:
            address: ``0.0.0.0:50051``, ``[::]:50051``, or a port 0 to be given one.

        Raises:
            ConfigError: another kind of address. OSError: the port cannot be opened.
        """
        host, separator, port = address.rpartition(":")
        if not separator or "/" in address or not port.isascii() or not port.isdigit():
            raise ConfigError(f"{address!r} is no address of a mesh server: write 0.0.0.0:50051")
        return self._front.bind(host.strip("[]"), int(port))

    def add_secure_port(self, address: str, server_credentials: Any) -> int:
        raise ConfigError(f"{address}: the mesh brings its own certificates: use add_insecure_port")

    async def start(self) -> None:
        """Serve, and start the mesh. Before the first configuration calls are refused with UNAVAILABLE."""
        self._mesh.start()
        self._server.add_insecure_port(self._front.backend)
        await self._server.start()
        self._front.start()
        self._state = "serving"
        for port in self._front.ports:
            self._mesh.listening_on(port)

    async def stop(self, grace: float | None) -> None:
        """As in grpcio. Tells the mesh first that this workload goes; the mesh itself is left running."""
        if self._state == "serving":
            self._state = "stopping"
            await asyncio.to_thread(self._mesh.drain)
        await self._front.stop_accepting()
        await self._server.stop(grace)
        await self._front.close()

    async def wait_for_termination(self, timeout: float | None = None) -> bool:
        terminated: bool = await self._server.wait_for_termination(timeout)
        return terminated
