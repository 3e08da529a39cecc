"""ASGI: the mesh around an application.

    app.add_middleware(MeshMiddleware)

Policy is enforced for http and websocket scopes before the application sees them. The peer's identity comes from the
connection, so it needs a server that terminates the mesh's TLS: `proxyless run module:app`, or
`uvicorn --http proxyless.uvicorn:MeshProtocol`. On any other server every peer is an anonymous one on a plain text
connection: STRICT refuses it, PERMISSIVE judges it as such.

The path that policy sees is the normalised one, and so is the path that the application gets, as behind Envoy. A path that a
framework may read in another way (escaped slashes, a root path) must be admitted in each reading. Paths with control
characters are 400, because routers disagree about them.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any
from urllib.parse import quote, unquote

from proxyless.core.request import Address, Peer, Request
from proxyless.errors import ConfigError, ProxylessError
from proxyless.runtime.exchange import InboundExchange
from proxyless.runtime.inbound import Connection, InboundGate, MeshLike, default_mesh, gate_of, reading, serve_with

__all__ = ["Lifespan", "MeshMiddleware", "mesh_peer", "serve"]

log = logging.getLogger("proxyless.asgi")
_server_log = logging.getLogger("uvicorn.error")

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]

EXTENSION = "proxyless"  # scope["extensions"]; holds a Connection object that no header can make
ODD_TARGET = "proxyless.target"  # scope; the request target as sent when it has more than a path and a query
EXCHANGE = "proxyless.exchange"  # scope; the record of the request that was judged, for a middleware further in
PART = "application"  # of the process, that holds its readiness while it starts
STATE = "proxyless.mesh"  # lifespan state, where a server's protocol finds the mesh of its application

_SAFE = "/:@!$&'()*+,;=-._~"  # of a path: what stands for itself (RFC 3986 3.3)
_SEPARATORS = (b"-", b"_")
# A name that only a gateway may set, in every spelling that a framework might fold into it, and Istio's metadata exchange.
_STRIPPED = frozenset(
    {
        b"x" + a + b"forwarded" + b + b"client" + c + b"cert"
        for a in _SEPARATORS
        for b in _SEPARATORS
        for c in _SEPARATORS
    }
    | {b"x-envoy-peer-metadata", b"x-envoy-peer-metadata-id"}
)


def mesh_peer(request: Any) -> Peer:
    """The verified peer of a request: `mesh_peer(request).identity` is its SPIFFE ID, None for an anonymous one.

    Args:
        request: an ASGI scope, or anything with a `scope` (Starlette and FastAPI requests and websockets, Django's ASGI
            request).

    Raises:
        ProxylessError: the request did not come through the mesh.
    """
    scope = request if isinstance(request, Mapping) else request.scope
    connection = (scope.get("extensions") or {}).get(EXTENSION)
    if not isinstance(connection, Connection):
        raise ProxylessError("this request did not come through MeshMiddleware")
    return connection.peer


class MeshMiddleware:
    """Enforces the mesh around an ASGI application; starts the mesh with the lifespan, else with the first request.

    A mesh that has no configuration or identity yet answers 503 until it has; a wrong setting ends the start-up with
    `lifespan.startup.failed`.

    Args:
        app: the application.
        mesh: None: the one of this process, made from the environment.
        start_wait: seconds that start-up waits at most for the first configuration, so that a new worker does not take
            requests it would have to refuse.
    """

    def __init__(self, app: ASGIApp, *, mesh: MeshLike | None = None, start_wait: float = 2.0) -> None:
        if start_wait < 0:
            raise ValueError("start_wait is a number of seconds, 0 or more")
        self.app = app
        self._mesh = mesh
        if mesh is not None:
            serve_with(mesh)
        self._start_wait = start_wait
        self._gate: InboundGate | None = None
        self._anonymous: dict[tuple[object, object], Connection] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        kind = scope["type"]
        if kind == "lifespan":
            await self._lifespan(scope, receive, send)
            return
        if kind not in ("http", "websocket"):
            raise ProxylessError(f"scope type {kind!r} is unknown to the mesh and is refused")
        gate = self._gate
        if gate is None or gate.stale:
            gate = self._start()
        extensions = scope.get("extensions")
        connection = extensions.get(EXTENSION) if extensions else None
        if not isinstance(connection, Connection):
            connection = self._plaintext(scope, gate)
        elif connection.gate is gate:  # enforced further out, by the server's protocol or an outer middleware
            if not scope.get("root_path") or await _admitted_below_root(gate, connection, scope, receive, send):
                await self.app(scope, receive, send)
            return
        await serve(gate, connection, self.app, scope, receive, send)

    def _start(self) -> InboundGate:
        mesh = default_mesh() if self._mesh is None else self._mesh
        mesh.start()
        self._gate = gate = gate_of(mesh)
        return gate

    def _plaintext(self, scope: Scope, gate: InboundGate) -> Connection:
        """The peer of a server that knows nothing of us: anonymous, judged as plain text whatever `scheme` claims.

        A client with port 0 was written by a middleware that believed X-Forwarded-For; the socket's address is lost then, so
        it counts as unknown.
        """
        client, server = scope.get("client"), scope.get("server")
        key = (tuple(client) if client else None, tuple(server) if server else None)
        connection = self._anonymous.get(key)
        if connection is None or connection.gate is not gate:
            remote = Address(client[0], client[1] or 0) if client and client[1] else Address("", 0)
            local = Address(server[0], server[1] or 0) if server else Address("", 0)
            if len(self._anonymous) >= 1024:
                self._anonymous.clear()
            connection = self._anonymous[key] = Connection.plaintext(local, remote)
            connection.gate = gate
        return connection

    # ------------------------------------------------------------------------------------------------------- lifespan

    async def _lifespan(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            mesh = default_mesh() if self._mesh is None else self._mesh
            mesh.hold(PART, "its start-up is not complete")
            gate = self._start()
        except ConfigError as error:
            await receive()
            await send({"type": "lifespan.startup.failed", "message": f"proxyless: {error}"})
            return
        state = scope.get("state")
        if state is not None:
            state[STATE] = mesh
        wait = self._start_wait if mesh.settings.xds else 0.0
        if not await mesh.await_configured(wait):
            log.warning("not ready after %.1f s, serving 503 until then: %s", wait, gate.reasons())

        async def tell(message: Message) -> None:
            await send(message)
            if message["type"] == "lifespan.startup.complete":
                mesh.hold(PART, "")

        try:
            await Lifespan(receive, tell).run(self.app, scope)
        finally:
            await asyncio.to_thread(mesh.close)


class Lifespan:
    """The application's lifespan inside ours: it may not know the protocol, and its own errors stay its own (FC-58)."""

    def __init__(self, receive: Receive, send: Send) -> None:
        self._receive, self._send = receive, send
        self._asked = False
        self._answered = False

    async def run(self, app: ASGIApp, scope: Scope) -> None:
        try:
            await app(scope, self.receive, self.send)
        except BaseException as error:
            if self._answered or isinstance(error, asyncio.CancelledError):
                raise
            if (
                self._asked
            ):  # it took part and failed: under lifespan=auto a bare exception would count as "unsupported"
                await self.send({"type": "lifespan.startup.failed", "message": f"{type(error).__name__}: {error}"})
                raise
            log.debug("the application does not know the lifespan protocol", exc_info=error)
        if not self._answered:
            await self._alone()

    async def receive(self) -> Message:
        self._asked = True
        return await self._receive()

    async def send(self, message: Message) -> None:
        self._answered = True
        await self._send(message)

    async def _alone(self) -> None:
        if not self._asked:
            await self._receive()
        await self._send({"type": "lifespan.startup.complete"})
        await self._receive()
        await self._send({"type": "lifespan.shutdown.complete"})


# ------------------------------------------------------------------------------------------------------------- requests


async def serve(
    gate: InboundGate,
    connection: Connection,
    app: ASGIApp,
    scope: Scope,
    receive: Receive,
    send: Send,
    *,
    root_path: str | None = None,
) -> None:
    """Judge one http or websocket scope and, when it is admitted, run the application below metrics, log and span.

    Args:
        root_path: what the server itself put before the path, when it is the server that asks; None: unknown, so each reading
            must be admitted.
    """
    headers, authority, problem = _headers(scope)
    raw, views = _views(scope, root_path)
    odd: bytes | None = scope.get(ODD_TARGET)
    if odd is not None and odd != b"*":
        raw = odd.decode("latin-1")  # judged as sent, which is 400
    request = Request(
        scope.get("method", "GET"),
        raw,
        headers,
        authority=authority,
        scheme="https" if connection.peer.tls else "http",
        query=scope.get("query_string", b"").decode("latin-1"),
        destination=connection.info.destination,
        sni=connection.info.server_name,
    )
    others = [reading(request, view) for view in views] if views else ()
    exchange = gate.begin(connection, request, scope.get("http_version", "1.1"), problem, others)
    admission = exchange.admission
    if not admission.allowed:
        await _refuse(exchange, scope, receive, send)
        exchange.end()
        return
    extensions = {**(scope.get("extensions") or {}), EXTENSION: connection}
    scope = {**scope, "headers": headers, "extensions": extensions, EXCHANGE: exchange}
    path = admission.request.path
    if path != raw:
        _rewrite(scope, path, raw)
    wrapped = _Http(exchange, receive, send) if scope["type"] == "http" else _WebSocket(exchange, receive, send)
    try:
        await app(scope, wrapped.receive, wrapped.send)
    except BaseException as error:
        exchange.failed(error)
        if root_path is None or not exchange.complete or not isinstance(error, Exception):
            raise
        # Starlette raises after its 500 was sent. Nothing told the caller that his connection ends, and a server that sees the
        # error closes it under his next request; so it ends here, in the server's own words.
        _server_log.exception("Exception in ASGI application")
    finally:
        exchange.end()


def _headers(scope: Scope) -> tuple[list[tuple[bytes, bytes]], str, str]:
    """Headers without those that only the mesh may set, Host, and what is malformed about them (empty: nothing)."""
    headers = scope["headers"]
    authority: bytes | None = None
    strip, problem = False, ""
    for name, value in headers:
        if name == b"host":
            if authority is not None:
                problem = "duplicate_host"
            authority = value
        elif name in _STRIPPED:
            strip = True
    if authority is None and scope.get("http_version", "1.1") == "1.1":
        problem = "missing_host"
    if strip:
        headers = [pair for pair in headers if pair[0] not in _STRIPPED]
    return headers, (authority or b"").decode("latin-1"), problem


def _views(scope: Scope, root_path: str | None) -> tuple[str, tuple[str, ...]]:
    """The path as it was on the wire, escaped, and the other readings that must be admitted too."""
    decoded: str = scope["path"]
    raw_path = scope.get("raw_path")
    raw = raw_path.decode("latin-1") if raw_path else quote(decoded, safe=_SAFE)
    prefix = _root_path(scope) if root_path is None else root_path
    views: tuple[str, ...] = ()
    plain = raw == decoded and "%" not in raw  # most are, and unescape to themselves
    if raw_path and not plain and unquote(raw) != decoded:  # something between the server and us has changed `path`
        views = (quote(decoded, safe=_SAFE),)
    if prefix and raw.startswith(prefix) and (root_path is not None or raw[len(prefix) :][:1] in ("", "/")):
        views = (*views, raw)
        raw = raw[len(prefix) :] or "/"
    elif prefix and (below := _below(prefix, decoded)) is not None:  # the prefix itself has escapes on the wire
        views = (*views, below)
    return raw, views


def _root_path(scope: Scope) -> str:
    """What the outermost application puts before its routes; a mount further in changes `root_path` only."""
    prefix: str = scope.get("app_root_path", scope.get("root_path", ""))
    return prefix


def _below(prefix: str, decoded: str) -> str | None:
    """The path below `prefix`, escaped, as a framework routes by it; None when it is not below."""
    rest = decoded.removeprefix(prefix)
    if not decoded.startswith(prefix) or rest[:1] not in ("", "/"):
        return None
    return quote(rest or "/", safe=_SAFE)


async def _admitted_below_root(
    gate: InboundGate, connection: Connection, scope: Scope, receive: Receive, send: Send
) -> bool:
    """An application may have given itself a root path (`FastAPI(root_path=...)`) after the server's protocol judged the
    whole path: what it routes by must be admitted too. False: the refusal has been sent."""
    exchange, below = scope.get(EXCHANGE), _below(_root_path(scope), scope["path"])
    if below is None or not isinstance(exchange, InboundExchange) or exchange.request.path == below:
        return True
    admission = gate.admit(connection, reading(exchange.request, below))
    if admission.allowed:
        return True
    exchange.refuse(admission)
    exchange.sent = 0  # counted as it is sent
    await _refuse(exchange, scope, receive, send)
    return False


def _rewrite(scope: Scope, path: str, raw: str) -> None:
    """Give the application the path that policy saw."""
    prefix = ""
    before = scope.get("raw_path")
    if before and before.decode("latin-1").endswith(raw):
        prefix = before.decode("latin-1")[: -len(raw)]
    scope["raw_path"] = (prefix + path).encode("latin-1")
    scope["path"] = unquote(prefix + path)


async def _refuse(exchange: InboundExchange, scope: Scope, receive: Receive, send: Send) -> None:
    admission = exchange.admission
    headers = exchange.refusal_headers()
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": admission.status, "headers": headers})
        await send({"type": "http.response.body", "body": admission.body})
        return
    await receive()  # websocket.connect
    if "websocket.http.response" in (scope.get("extensions") or {}):
        await send({"type": "websocket.http.response.start", "status": admission.status, "headers": headers})
        await send({"type": "websocket.http.response.body", "body": admission.body})
    else:
        await send({"type": "websocket.close", "code": 1008, "reason": ""})  # before accept: the server answers 403


class _Http:
    """Counts what passes between server and application; bodies are never held."""

    __slots__ = ("_exchange", "_receive", "_send")

    def __init__(self, exchange: InboundExchange, receive: Receive, send: Send) -> None:
        self._exchange, self._receive, self._send = exchange, receive, send

    async def receive(self) -> Message:
        message = await self._receive()
        kind = message["type"]
        if kind == "http.request":
            self._exchange.received += len(message.get("body", b""))
        elif kind == "http.disconnect":
            self._exchange.disconnected()
        return message

    async def send(self, message: Message) -> None:
        exchange = self._exchange
        kind = message["type"]
        if kind == "http.response.start":
            exchange.awaits_trailers = bool(message.get("trailers", False))
            headers = exchange.started(message["status"], message.get("headers", ()))
            if headers is not None:
                message = {**message, "headers": headers}
        elif kind == "http.response.body":
            exchange.sent += len(message.get("body", b""))
            if not message.get("more_body", False) and not exchange.awaits_trailers:
                exchange.finish_soon()
        elif kind == "http.response.trailers":
            exchange.trailers(message.get("headers", ()))
            if not message.get("more_trailers", False):
                exchange.finish_soon()
        await self._send(message)


class _WebSocket:
    """The same for a websocket: 101 when it is accepted, bytes of messages both ways."""

    __slots__ = ("_exchange", "_receive", "_send")

    def __init__(self, exchange: InboundExchange, receive: Receive, send: Send) -> None:
        self._exchange, self._receive, self._send = exchange, receive, send

    async def receive(self) -> Message:
        message = await self._receive()
        kind = message["type"]
        if kind == "websocket.receive":
            self._exchange.received += _size(message)
        elif kind == "websocket.disconnect":
            self._exchange.complete = self._exchange.status == 101
            self._exchange.disconnected()
        return message

    async def send(self, message: Message) -> None:
        exchange = self._exchange
        match message["type"]:
            case "websocket.accept":
                exchange.started(101, ())
            case "websocket.send":
                exchange.sent += _size(message)
            case "websocket.close":
                if not exchange.status:
                    exchange.started(403, ())
                exchange.complete = True
            case "websocket.http.response.start":
                exchange.started(message["status"], ())
                exchange.complete = True
        await self._send(message)


def _size(message: Message) -> int:
    data = message.get("bytes")
    return len(data) if data is not None else len(message.get("text") or "")
