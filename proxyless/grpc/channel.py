"""A channel for generated stubs whose calls the mesh routes one by one: `core.call` decides, grpcio speaks HTTP/2."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

import grpc
import grpc.aio

from proxyless.core.actions import Attempt, Deliver, Fail, Passthrough, Reply
from proxyless.core.request import Address, Request
from proxyless.errors import LocalReplyError, NotReadyError, RequestError, UnsupportedError
from proxyless.grpc.call import Result, UnaryCall
from proxyless.grpc.callables import Invocation, Streaming, UnaryUnary
from proxyless.grpc.connection import Answer, Options
from proxyless.grpc.engine import Engine
from proxyless.grpc.failure import error_of_fail, error_of_reply, rpc_error
from proxyless.grpc.wire import GRPC_REQUEST, metadata_of, parse_target, to_wire
from proxyless.runtime.mesh import Mesh
from proxyless.runtime.outbound import OutboundExchange

if TYPE_CHECKING:
    from proxyless.core.snapshot import Snapshot
    from proxyless.engine.timeouts import Timeouts

__all__ = ["MeshChannel", "mesh_channel"]

log = logging.getLogger("proxyless.grpc")

_IGNORED_OPTIONS = frozenset({"grpc.service_config", "grpc.lb_policy_name"})


def mesh_channel(
    target: str,
    mesh: Mesh | None = None,
    *,
    options: Options | None = None,
    compression: grpc.Compression | None = None,
) -> MeshChannel:
    """A channel to a service of the mesh, like `grpc.aio.insecure_channel`; the mesh brings its mutual TLS.

    Args:
        target: ``payments:50051``, as in Istio's configuration.
        mesh: None: the one of this process, made and started by the first call.
        options, compression: as in grpcio. `grpc.default_authority` replaces `target` as the authority.

    Raises:
        ConfigError: `target` is no service and port.
    """
    return MeshChannel(target, mesh, options=options, compression=compression)


class MeshChannel(grpc.aio.Channel):  # type: ignore[misc]  # grpcio ships no types
    """See `mesh_channel`. May be made anywhere; connections belong to the event loop of the calls, and to this process."""

    def __init__(
        self,
        target: str,
        mesh: Mesh | None = None,
        *,
        options: Options | None = None,
        compression: grpc.Compression | None = None,
    ) -> None:
        host, port = parse_target(target)
        self._destination = Address(host, port)
        self._target = target
        self._given, self._compression = mesh, compression
        self._options: Options = tuple(options or ())
        self.authority = str(dict(self._options).get("grpc.default_authority", target))
        for name, _ in self._options:
            if name in _IGNORED_OPTIONS:
                log.warning("channel option %s has no effect on %s: the mesh routes its calls", name, target)
        self._engines: dict[asyncio.AbstractEventLoop, Engine] = {}
        self._plain: Any = None
        self._calls: set[UnaryCall] = set()
        self._pid = os.getpid()
        self._closed = False

    # ------------------------------------------------------------------------------------------------- grpc.aio.Channel

    def unary_unary(
        self,
        method: str,
        request_serializer: Callable[[Any], bytes] | None = None,
        response_deserializer: Callable[[bytes], Any] | None = None,
        _registered_method: bool | None = False,
    ) -> UnaryUnary:
        return UnaryUnary(self._begin, method, request_serializer, response_deserializer)

    def unary_stream(self, method: str, *_: Any, **__: Any) -> Streaming:
        return Streaming(method, "server streaming")

    def stream_unary(self, method: str, *_: Any, **__: Any) -> Streaming:
        return Streaming(method, "client streaming")

    def stream_stream(self, method: str, *_: Any, **__: Any) -> Streaming:
        return Streaming(method, "bidirectional streaming")

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        """READY once the mesh is configured: there is no one connection whose state this could be."""
        if self._closed:
            return grpc.ChannelConnectivity.SHUTDOWN
        mesh = self._given if self._given is not None else Mesh.default()
        if try_to_connect:
            mesh.ensure()
        return grpc.ChannelConnectivity.READY if mesh.configured else grpc.ChannelConnectivity.IDLE

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        raise UnsupportedError("wait_for_state_change of a mesh channel does not exist: await channel_ready() instead")

    async def channel_ready(self) -> None:
        """Wait until the mesh is configured."""
        mesh = self.mesh()
        while not await mesh.await_configured(mesh.settings.start_timeout):
            log.warning("%s: still waiting: %s", self._target, "; ".join(mesh.not_ready_reasons()))

    async def close(self, grace: float | None = None) -> None:
        """Begin no more calls; those under way are cancelled after `grace` seconds."""
        self._closed = True
        calls = {call.task for call in self._calls if not call.done()}
        if calls and grace:
            await asyncio.wait(calls, timeout=grace)
        for task in calls:
            task.cancel()
        if calls:
            await asyncio.wait(calls)
        engine = self._engines.pop(asyncio.get_running_loop(), None)
        if engine is not None:
            await engine.aclose()
        if self._plain is not None:
            await self._plain.close()

    async def __aenter__(self) -> MeshChannel:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    # -------------------------------------------------------------------------------------------------------- calls

    def mesh(self) -> Mesh:
        """The mesh, started."""
        mesh = self._given if self._given is not None else Mesh.default()
        mesh.ensure()
        return mesh

    def _begin(self, invocation: Invocation) -> UnaryCall:
        if self._closed:
            raise grpc.aio.UsageError("Channel is closed.")
        made = UnaryCall(self._run(invocation), invocation.timeout)
        self._calls.add(made)
        made.add_done_callback(self._calls.discard)
        return made

    async def _run(self, call: Invocation) -> Result:
        mesh = self.mesh()
        message = call.serialized()
        if mesh.settings.disabled_outbound:
            return await self._pass(call, message)
        snapshot = mesh.snapshot
        if snapshot is None or not mesh.configured:
            snapshot = await self._configuration(mesh, call.timeout)
        path, _, query = call.method.partition("?")
        request = Request(
            "POST",
            path,
            [*GRPC_REQUEST, *to_wire(call.metadata)],
            authority=self.authority,
            query=query,
            destination=self._destination,
        )
        exchange = OutboundExchange(
            mesh.telemetry, snapshot, request, mesh.learned, mesh.rng, timeout=call.timeout, began=call.began
        )
        compression = call.compression if call.compression is not None else self._compression
        action = await exchange.run_async(_Attempts(self._engine(mesh), compression), message)
        if type(action) is Deliver:
            return _delivered(action, exchange.response, call)
        if type(action) is Reply:
            raise error_of_reply(action, exchange.call.record)
        if type(action) is Fail:
            raise error_of_fail(action, exchange.call.record, call.late()) from exchange.error
        if type(action) is Passthrough:
            raise self._unknown(exchange, action, mesh)
        raise TypeError(f"not the end of a call: {action!r}")

    def _engine(self, mesh: Mesh) -> Engine:
        loop = asyncio.get_running_loop()
        if self._pid != os.getpid():  # sockets of the parent: left alone, not closed
            self._engines, self._pid = {}, os.getpid()
        engine = self._engines.get(loop)
        if engine is None or engine.closed:
            for known in [known for known in self._engines if known.is_closed()]:
                del self._engines[known]
            engine = self._engines[loop] = Engine(mesh, self._options)
        return engine

    async def _configuration(self, mesh: Mesh, timeout: float | None) -> Snapshot:
        limit = mesh.settings.start_timeout
        if not await mesh.await_configured(limit if timeout is None else min(limit, timeout)) or mesh.snapshot is None:
            reasons = "; ".join(mesh.not_ready_reasons()) or "no configuration yet"
            error = NotReadyError(f"the mesh is not ready: {reasons}")
            raise rpc_error(grpc.StatusCode.UNAVAILABLE, error)
        return mesh.snapshot

    def _unknown(self, exchange: OutboundExchange, action: Passthrough, mesh: Mesh) -> RequestError:
        from proxyless.xds.client import node_message

        node = node_message(mesh.settings).id
        text = f"{self._target} is no service of the mesh ({action.reason}; node {node})"
        error = LocalReplyError(text, flag="NR", details="no_service")
        exchange.call.record.add_flag("NR")
        exchange.passed(0, error)
        return cast("RequestError", rpc_error(grpc.StatusCode.UNAVAILABLE, error))

    async def _pass(self, call: Invocation, message: bytes) -> Result:
        """PROXYLESS_DISABLED: what a channel without a mesh would do."""
        if self._plain is None:
            self._plain = grpc.aio.insecure_channel(self._target, options=self._options, compression=self._compression)
        plain = self._plain.unary_unary(call.method)(
            message, timeout=call.timeout, metadata=call.metadata, compression=call.compression
        )
        body = await plain
        initial, trailing = await plain.initial_metadata(), await plain.trailing_metadata()
        return Result(await plain.code(), await plain.details(), initial, trailing, call.deserialized(body))


class _Attempts:
    """The engine as one call uses it."""

    __slots__ = ("_compression", "_engine")

    def __init__(self, engine: Engine, compression: grpc.Compression | None) -> None:
        self._engine, self._compression = engine, compression

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        return self._engine.loop

    async def exchange(self, attempt: Attempt, message: bytes, timeouts: Timeouts) -> Answer:
        return await self._engine.exchange(attempt, message, timeouts, self._compression)


def _delivered(action: Deliver, answer: Answer, call: Invocation) -> Result:
    initial = answer.initial
    if action.mutations:
        initial = grpc.aio.Metadata(*metadata_of(action.headers(to_wire(initial))))
    if answer.code is not grpc.StatusCode.OK:
        raise grpc.aio.AioRpcError(answer.code, initial, answer.trailing, answer.details, answer.details)
    return Result(answer.code, answer.details, initial, answer.trailing, call.deserialized(answer.body))
