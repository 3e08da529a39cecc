"""uvicorn with the mesh's TLS: mTLS STRICT and PERMISSIVE on one port, by `uvicorn --http proxyless.uvicorn:MeshProtocol`.

The outer protocol looks at the first bytes of a connection, chooses the filter chain of the mesh's configuration of that moment,
upgrades to TLS with our certificate of that moment, and only then puts uvicorn's own protocol in its place. uvicorn itself is
not patched. The peer is verified inside the handshake (`identity.tls`), so no HTTP byte of a refused peer is ever parsed.
"""

from __future__ import annotations

import asyncio
import copy
import logging
import time
from typing import TYPE_CHECKING, Any, ClassVar, cast

from uvicorn.protocols.http.auto import AutoHTTPProtocol
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from proxyless.asgi import ODD_TARGET, STATE, ASGIApp, Receive, Scope, Send, serve
from proxyless.core.inbound import ConnectionInfo
from proxyless.core.request import Address, Peer
from proxyless.errors import ConfigError, PeerVerificationError
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
from proxyless.runtime.bounded import BoundedHead
from proxyless.runtime.corked import CorkedTransport
from proxyless.runtime.hello import HANDSHAKE_RECORD
from proxyless.runtime.inbound import FOREVER, Connection, InboundGate, MeshLike, gate_of, serving_mesh

if TYPE_CHECKING:
    import ssl

    from uvicorn import Config
    from uvicorn.server import ServerState

__all__ = ["MeshH11Protocol", "MeshHttpToolsProtocol", "MeshProtocol"]

log = logging.getLogger("proxyless.uvicorn")

SHUTDOWN_TIMEOUT = 1.0  # seconds; an idle keep-alive client must not hold back a shutdown for asyncio's 30 s


class _Judged:
    """The application of one connection: every scope is judged before it."""

    __slots__ = ("app", "connection", "gate", "root_path")

    def __init__(self, app: ASGIApp, gate: InboundGate, connection: Connection, root_path: str) -> None:
        self.app, self.gate, self.connection, self.root_path = app, gate, connection, root_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await serve(self.gate, self.connection, self.app, scope, receive, send, root_path=self.root_path)


class _Timed:
    """Mixed into uvicorn's protocols: forget the timer of the certificate's end when the connection ends before."""

    expiry: asyncio.TimerHandle | None = None

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget_expiry()
        super().connection_lost(exc)  # type: ignore[misc]  # the other base class has it, as the next

    def handle_websocket_upgrade(self, *event: Any) -> None:
        """Another protocol takes our place: it hears of the connection's end."""
        super().handle_websocket_upgrade(*event)  # type: ignore[misc]
        successor = self.transport.get_protocol()  # type: ignore[attr-defined]
        if successor is None or successor is self:
            return
        lost = successor.connection_lost

        def connection_lost(exc: Exception | None) -> None:
            self._forget_expiry()
            lost(exc)

        successor.connection_lost = connection_lost

    def _forget_expiry(self) -> None:
        if self.expiry is not None:
            self.expiry.cancel()
            self.expiry = None


class _HttpTools(_Timed, BoundedHead, HttpToolsProtocol):
    """httptools drops scheme and host of an absolute target and a fragment; policy must see that they were there."""

    def on_headers_complete(self) -> None:
        if self.url[:1] != b"/" or b"#" in self.url:
            self.scope[ODD_TARGET] = self.url  # type: ignore[literal-required]  # a key of ours, read by `asgi.serve`
        super().on_headers_complete()


class _H11(_Timed, H11Protocol):
    pass


class MeshHttpToolsProtocol(asyncio.Protocol):
    """One connection from accept to the first request; parser httptools.

    The mesh is `mesh` of a class made by `for_mesh`, else that of the application's MeshMiddleware (found in the lifespan
    state), else the one of this process.
    """

    inner_class: ClassVar[type[_HttpTools] | type[_H11]] = _HttpTools
    mesh: ClassVar[MeshLike | None] = None

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        if not config.loaded:
            config.load()
        self._config, self._server_state, self._app_state = config, server_state, app_state
        self._loop = _loop or asyncio.get_running_loop()
        self._transport: asyncio.Transport
        self._local = self._remote = Address("", 0)
        self._hello: bytearray | None = bytearray()  # None once the decision is made
        self._early: list[bytes] = []  # decrypted in the same tick as the end of the handshake
        self._eof = False
        self._lost: tuple[Exception | None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._upgrade: asyncio.Task[None] | None = None

    @classmethod
    def for_mesh(cls, mesh: MeshLike) -> type[MeshHttpToolsProtocol]:
        """The same protocol bound to one mesh: `uvicorn.Config(app, http=MeshProtocol.for_mesh(mesh))`."""
        return type(cls.__name__, (cls,), {"mesh": mesh})

    # ------------------------------------------------------------------------------------------- asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._server_state.connections.add(cast("Any", self))
        self._timer = self._loop.call_later(HANDSHAKE_TIMEOUT, self._too_slow)
        self._local = address_of(transport.get_extra_info("sockname"))
        self._remote = address_of(transport.get_extra_info("peername"))
        try:
            self._gate = self._find_gate()
        except ConfigError as error:  # without a lifespan nobody has asked before
            log.error("connections are refused: %s", error)
            self._forget()
            self._transport.abort()
            return
        if transport.get_extra_info("sslcontext") is not None:
            log.error("uvicorn was given a certificate of its own (--ssl-*): the mesh cannot verify peers behind it")
            info = ConnectionInfo(
                destination=self._local, transport="tls", alpn=(), server_name="", source=self._remote
            )
            self._begin(Connection(info, Peer(tls=True, address=self._remote, local=self._local)))

    def data_received(self, data: bytes) -> None:
        if self._hello is None:
            self._early.append(data)
            return
        self._hello += data
        try:
            self._sniff(self._hello)
        except RefusedConnection as refused:
            self._refuse(refused)

    def eof_received(self) -> None:
        self._eof = True

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost = (exc,)
        self._forget()
        if self._upgrade is not None:
            self._upgrade.cancel()

    def pause_writing(self) -> None:
        """Nothing is written here."""

    def resume_writing(self) -> None:
        """Nothing is written here."""

    def shutdown(self) -> None:
        """uvicorn calls this on every connection when it stops."""
        self._transport.close()

    # ------------------------------------------------------------------------------------------------- decisions

    def _find_gate(self) -> InboundGate:
        mesh: MeshLike | None = self.mesh or self._app_state.get(STATE)
        if mesh is None:
            mesh = serving_mesh()
            mesh.start()
        mesh.listening_on(self._local.port)
        return gate_of(mesh)

    def _sniff(self, data: bytearray) -> None:
        """Plain text or TLS? Decides as soon as the bytes say so.

        Raises:
            RefusedConnection: no filter chain takes the connection, or there is no certificate to serve it with.
        """
        if data[0] != HANDSHAKE_RECORD:
            connection = plaintext(self._gate, self._local, self._remote)
            self._early.append(bytes(data))
            self._begin(connection)
            return
        hello = client_hello(data)
        if hello is not None:
            info, context = tls_context(self._gate, hello, self._local, self._remote)
            self._start_tls(info, context, bytes(data))

    # ------------------------------------------------------------------------------------------------- TLS

    def _start_tls(self, info: ConnectionInfo, context: ssl.SSLContext, seen: bytes) -> None:
        """Upgrade, and hand the bytes already read to the TLS layer.

        The loop runs callbacks in order: the task's first step schedules the TLS protocol's connection_made and
        resume_reading, and the two hops put `_feed` right behind them, before the next read.
        """
        self._hello = None
        self._transport.pause_reading()
        self._upgrade = self._loop.create_task(self._handshake(info, context))
        self._loop.call_soon(self._loop.call_soon, self._feed, seen)

    def _feed(self, data: bytes) -> None:
        protocol = self._transport.get_protocol()
        if not isinstance(protocol, asyncio.BufferedProtocol) and not hasattr(protocol, "get_buffer"):
            return  # the upgrade failed before it began
        buffered = cast("asyncio.BufferedProtocol", protocol)
        while data:
            buffer = memoryview(buffered.get_buffer(len(data)))
            count = min(len(buffer), len(data))
            buffer[:count] = data[:count]
            buffered.buffer_updated(count)
            data = data[count:]

    async def _handshake(self, info: ConnectionInfo, context: ssl.SSLContext) -> None:
        try:
            upgraded = await self._loop.start_tls(
                self._transport,
                self,
                context,
                server_side=True,
                ssl_handshake_timeout=HANDSHAKE_TIMEOUT,
                ssl_shutdown_timeout=SHUTDOWN_TIMEOUT,
            )
        except PeerVerificationError as error:
            self._refuse(RefusedConnection("peer", str(error)))
            return
        except (OSError, RuntimeError) as error:  # ssl.SSLError, a peer that left, a loop that is closing
            self._refuse(RefusedConnection("handshake", str(error) or type(error).__name__))
            return
        if upgraded is None or self._lost is not None:
            return
        self._transport = upgraded
        self._begin(verified(info, upgraded.get_extra_info("ssl_object")))

    # ------------------------------------------------------------------------------------------------- hand over

    def _begin(self, connection: Connection) -> None:
        """Put uvicorn's protocol in our place and give it what arrived meanwhile."""
        self._hello = None
        self._forget()
        connection.gate = self._gate
        config = copy.copy(self._config)
        config.loaded_app = cast(
            "Any", _Judged(cast("Any", config.loaded_app), self._gate, connection, config.root_path)
        )
        inner = self.inner_class(config, self._server_state, self._app_state, self._loop)
        transport = self._transport
        transport.set_protocol(inner)
        inner.connection_made(cast("asyncio.Transport", CorkedTransport(transport, self._loop)))
        if connection.expires_at != FOREVER:
            left = max(0.0, connection.expires_at - time.time())
            inner.expiry = self._loop.call_later(left, _expire, transport)
        for data in self._early:
            # Not `inner`: an upgrade to a websocket in an earlier piece has replaced it.
            cast("asyncio.Protocol", transport.get_protocol()).data_received(data)
        self._early.clear()
        if self._lost is not None:
            inner.connection_lost(self._lost[0])
        elif self._eof:
            inner.eof_received()

    def _refuse(self, refused: RefusedConnection) -> None:
        report(self._gate, self._remote, refused)
        self._forget()
        self._transport.abort()

    def _too_slow(self) -> None:
        self._refuse(RefusedConnection("timeout", f"no TLS handshake or request within {HANDSHAKE_TIMEOUT:.0f} s"))

    def _forget(self) -> None:
        self._server_state.connections.discard(cast("Any", self))
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class MeshH11Protocol(MeshHttpToolsProtocol):
    """The same with h11 as the parser."""

    inner_class = _H11


class MeshProtocol(MeshHttpToolsProtocol):
    """The same with the parser that uvicorn would choose."""

    inner_class = _HttpTools if issubclass(AutoHTTPProtocol, HttpToolsProtocol) else _H11


def _expire(transport: asyncio.Transport) -> None:
    """A certificate of this connection has ended: idle connections close, busy ones after their response (rule M-32)."""
    protocol = transport.get_protocol()
    if protocol is not None and not transport.is_closing():
        cast("Any", protocol).shutdown()
