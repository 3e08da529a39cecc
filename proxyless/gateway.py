"""`proxyless gateway`: a reverse proxy at the edge of the mesh, on the same data plane as the workloads.

Which ports it opens, for which hosts and to where, is what its listeners say (Istio Gateway and VirtualService). A request
from outside is judged by the gateway's own policy, then goes out as any call of the mesh does: route, pick, retry, mutual TLS.

What outsiders may not say is taken away first: hop-by-hop headers, `x-envoy-*` instructions, certificates of clients in
headers. Added are `x-forwarded-for`, `x-forwarded-proto` and `x-request-id`.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from typing import TYPE_CHECKING, Any

from proxyless.core.call import Deliver, Fail, Passthrough, Reply
from proxyless.core.inbound import ConnectionInfo, admit, select_chain
from proxyless.core.request import Address, Peer, Request
from proxyless.core.resources import HttpConnectionManager, Listener
from proxyless.engine import AsyncEngine
from proxyless.errors import EngineError, ProxylessError
from proxyless.runtime.outbound import OutboundExchange

if TYPE_CHECKING:
    import uvicorn

    from proxyless.core.snapshot import Snapshot
    from proxyless.runtime.mesh import Mesh

__all__ = ["Gateway", "GatewayApp"]

log = logging.getLogger("proxyless.gateway")

Headers = list[tuple[bytes, bytes]]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

REPLAYABLE = 64 * 1024  # a body up to this size is held, so that it can be sent again
LOOK_EVERY = 0.1  # seconds between looks at which ports the configuration wants

_HOP_BY_HOP = frozenset(
    b"connection keep-alive proxy-authenticate proxy-authorization proxy-connection te trailer transfer-encoding upgrade".split()
)
_NOT_FROM_OUTSIDE = frozenset((b"x-forwarded-client-cert", b"x-forwarded-proto", b"x-forwarded-for"))


class GatewayApp:
    """The ASGI application behind one port of the gateway.

    Args:
        mesh: a mesh of kind ``router``.
        port: of the listener, as the configuration has it.
    """

    def __init__(self, mesh: Mesh, port: int) -> None:
        self._mesh, self._port = mesh, port
        self._engine: AsyncEngine | None = None

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            raise ProxylessError(f"the gateway serves no {scope['type']} connections")
        snapshot = self._mesh.snapshot
        if snapshot is None:
            await _answer(send, 503, [], b"the gateway has no configuration yet")
            return
        request, headers = _request(scope, self._port)
        refusal = _judge(snapshot, request, scope, self._port)
        if refusal is not None:
            await _answer(send, *refusal)
        elif any(name == b"upgrade" for name, _ in scope["headers"]):
            await _answer(send, 501, [], b"upgrades are not supported")
        else:
            await self._forward(snapshot, request, headers, scope, receive, send)

    async def aclose(self) -> None:
        if self._engine is not None:
            await self._engine.aclose()

    async def _forward(
        self,
        snapshot: Snapshot,
        request: Request,
        headers: Headers,
        scope: MutableMapping[str, Any],
        receive: Receive,
        send: Send,
    ) -> None:
        body = await _read_body(scope, receive)
        request.body_replayable = isinstance(body, bytes)
        exchange = OutboundExchange(self._mesh.telemetry, snapshot, request, self._mesh.learned, self._mesh.rng)
        try:
            action = await exchange.run_async(self._engine_here(), body)
        except EngineError as error:
            await _answer(send, 400, [], str(error).encode())
            return
        match action:
            case Deliver():
                await self._deliver(action, exchange, send)
            case Reply():
                await _answer(send, action.status, action.headers, action.body)
            case Fail():
                reply = action.reply()
                await _answer(send, reply.status, reply.headers, reply.body)
            case Passthrough():
                exchange.passed(404)
                await _answer(send, 404, [], b"")

    async def _deliver(self, action: Deliver, exchange: OutboundExchange, send: Send) -> None:
        headers = [pair for pair in action.headers(exchange.response.headers) if pair[0].lower() not in _HOP_BY_HOP]
        await send({"type": "http.response.start", "status": exchange.response.status, "headers": headers})
        whole = exchange.body
        if whole is not None:
            await send({"type": "http.response.body", "body": whole})
            return
        try:
            async for chunk in exchange.chunks_async():
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
        finally:
            exchange.close()
        await send({"type": "http.response.body", "body": b""})

    def _engine_here(self) -> AsyncEngine:
        engine = self._engine
        if engine is None:
            mesh = self._mesh
            engine = self._engine = AsyncEngine(mesh.contexts, snapshot=lambda: mesh.snapshot)
        return engine


class Gateway:
    """Serves every port that the configuration names, from `run` to a signal.

    Args:
        host: address to bind.
    """

    def __init__(self, mesh: Mesh, host: str) -> None:
        self._mesh, self._host = mesh, host
        self._servers: dict[int, tuple[uvicorn.Server, asyncio.Task[None], GatewayApp]] = {}
        self._complained: set[int] = set()

    async def run(self, stop: asyncio.Event) -> None:
        """Follow the configuration until `stop` is set; then let requests in progress end."""
        self._mesh.start()
        if not await self._mesh.await_configured(2.0):
            log.warning("no configuration yet: %s", "; ".join(self._mesh.not_ready_reasons()))
        generation = -1
        while not stop.is_set():
            snapshot = self._mesh.snapshot
            if snapshot is not None and snapshot.generation != generation:
                generation = snapshot.generation
                self._follow(snapshot)
            try:
                await asyncio.wait_for(stop.wait(), LOOK_EVERY)
            except TimeoutError:
                continue
        for port in list(self._servers):
            self._end(port)
        await asyncio.gather(*(task for _, task, _ in self._servers.values()), return_exceptions=True)
        for _, _, app in self._servers.values():
            await app.aclose()
        await asyncio.to_thread(self._mesh.close)

    def _follow(self, snapshot: Snapshot) -> None:
        wanted = {listener.address.port for listener in http_listeners(snapshot) if listener.address is not None}
        for port in self._servers.keys() - wanted:
            self._end(port)
        for port in sorted(wanted - self._servers.keys()):
            self._begin(port)

    def _begin(self, port: int) -> None:
        import uvicorn

        try:
            bound = _bind(self._host, port)
        except OSError as error:
            if port not in self._complained:
                self._complained.add(port)
                hint = "; map it in mesh.yaml: proxyless.gatewayPorts" if isinstance(error, PermissionError) else ""
                log.error("port %d cannot be bound: %s%s", port, error, hint)
            return
        app = GatewayApp(self._mesh, port)
        config = uvicorn.Config(
            app, http="auto", ws="none", lifespan="off", log_config=None, access_log=False, proxy_headers=False,
            server_header=False, date_header=False,
        )  # fmt: skip
        server = _server(config)
        self._servers[port] = (server, asyncio.create_task(server.serve(sockets=[bound])), app)
        log.info("serving gateway port %d on %s", port, self._host)

    def _end(self, port: int) -> None:
        server, _, _ = self._servers[port]
        server.should_exit = True


def _bind(host: str, port: int) -> socket.socket:
    bound = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
    except OSError:
        bound.close()
        raise
    return bound


def http_listeners(snapshot: Snapshot) -> list[Listener]:
    """Listeners of a gateway that take plain HTTP."""
    return [
        listener
        for listener in snapshot.listeners.values()
        if listener.direction != "INBOUND"
        and not listener.use_original_dst
        and any(
            isinstance(chain.filter, HttpConnectionManager) and chain.tls is None for chain in listener.filter_chains
        )
    ]


def _judge(
    snapshot: Snapshot, request: Request, scope: MutableMapping[str, Any], port: int
) -> tuple[int, Headers, bytes] | None:
    """The gateway's own policy: an answer, or None when the request may go on."""
    listener = next((each for each in http_listeners(snapshot) if each.address and each.address.port == port), None)
    if listener is None:
        return 404, [], b""
    client = scope.get("client") or ("", 0)
    source, local = Address(client[0], client[1]), Address("0.0.0.0", port)  # noqa: S104 - compared, never bound
    info = ConnectionInfo(destination=local, transport="raw_buffer", alpn=("http/1.1",), source=source)
    chain = select_chain(listener, info)
    if chain is None or not isinstance(chain.filter, HttpConnectionManager):
        return 404, [], b""
    table = snapshot.tables.get(chain.filter.rds)
    verdict = admit(chain, request, Peer(address=source, local=local), table=table)
    # A missing route is the outbound side's answer too; it also counts and logs it.
    if verdict.allowed or verdict.flag == "NR":
        return None
    return verdict.status, list(verdict.headers), verdict.body


def _request(scope: MutableMapping[str, Any], port: int) -> tuple[Request, Headers]:
    authority, headers = "", []
    forwarded: list[bytes] = []
    has_id = False
    for name, value in scope["headers"]:
        if name == b"host":
            authority = value.decode("latin-1")
        elif name == b"x-forwarded-for":
            forwarded.append(value)
        elif name in _HOP_BY_HOP or name in _NOT_FROM_OUTSIDE or name.startswith(b"x-envoy-"):
            continue
        else:
            has_id = has_id or name == b"x-request-id"
            headers.append((name, value))
    client = (scope.get("client") or ("", 0))[0].encode()
    headers.append((b"x-forwarded-for", b",".join([*forwarded, client]) if client else b",".join(forwarded)))
    headers.append((b"x-forwarded-proto", b"http"))
    if not has_id:
        headers.append((b"x-request-id", str(uuid.uuid4()).encode()))
    raw = scope.get("raw_path") or scope["path"].encode("latin-1", "replace")
    request = Request(
        scope["method"],
        raw.decode("latin-1"),
        headers,
        authority=authority,
        query=scope.get("query_string", b"").decode("latin-1"),
        destination=Address("0.0.0.0", port),  # noqa: S104 - names the listener, never bound
    )
    return request, headers


async def _read_body(scope: MutableMapping[str, Any], receive: Receive) -> bytes | AsyncIterator[bytes]:
    """A short body whole, a longer one or one of unknown length as it comes."""
    length = next((value for name, value in scope["headers"] if name == b"content-length"), None)
    chunked = any(name == b"transfer-encoding" for name, _ in scope["headers"])
    if length is None and not chunked:
        return b""
    if length is not None and length.isdigit() and int(length) <= REPLAYABLE:
        return b"".join([chunk async for chunk in _chunks(receive)])
    return _chunks(receive)


async def _chunks(receive: Receive) -> AsyncIterator[bytes]:
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ConnectionResetError("the client went away")
        if message.get("body"):
            yield message["body"]
        if not message.get("more_body"):
            return


async def _answer(send: Send, status: int, headers: Headers, body: bytes) -> None:
    names = {name.lower() for name, _ in headers}
    if b"content-length" not in names:
        headers = [*headers, (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _server(config: uvicorn.Config) -> uvicorn.Server:
    """A server that leaves signals to the gateway, which ends all of its servers."""
    import contextlib

    import uvicorn

    server = uvicorn.Server(config)
    server.capture_signals = contextlib.nullcontext  # type: ignore[method-assign, assignment]  # the documented way is a subclass
    return server
