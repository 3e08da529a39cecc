"""The application behind a port of the gateway: judge a request from outside by the gateway's own policy, then send it out as
any call of the mesh goes: route, pick, retry, mutual TLS.

What outsiders may not say is taken away first: hop-by-hop headers (RFC 9110 section 7.6.1), `x-envoy-*` instructions,
certificates of clients in headers. Added are `x-forwarded-for`, `x-forwarded-proto` and `x-request-id`.

A client that leaves ends its request at the other end too.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, MutableMapping
from typing import TYPE_CHECKING, Any

from proxyless.core.call import Deliver, Fail, Passthrough, Reply
from proxyless.core.inbound import ConnectionInfo, admit, select_chain
from proxyless.core.request import Address, Peer, Request
from proxyless.core.resources import HttpConnectionManager, Listener
from proxyless.engine import AsyncEngine
from proxyless.errors import EngineError, ProxylessError
from proxyless.runtime.outbound import OutboundExchange

if TYPE_CHECKING:
    from proxyless.core.snapshot import Snapshot
    from proxyless.runtime.mesh import Mesh

__all__ = ["GatewayApp", "http_listeners"]

Headers = list[tuple[bytes, bytes]]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

REPLAYABLE = 64 * 1024  # a body up to this size is held, so that it can be sent again

_HOP_BY_HOP = frozenset(
    b"connection keep-alive proxy-authenticate proxy-authorization proxy-connection te trailer transfer-encoding upgrade".split()
)
_NEVER_NAMED = frozenset(
    (b"host", b"content-length", b"content-type", b"cache-control")
)  # by Connection, whoever says so
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
        request = _request(scope, self._port)
        refusal = _judge(snapshot, request, scope, self._port)
        if refusal is not None:
            await _answer(send, *refusal)
        elif any(name == b"upgrade" for name, _ in scope["headers"]):
            await _answer(send, 501, [], b"upgrades are not supported")
        else:
            client = _Client(scope["headers"], receive)
            await client.stay_with(self._forward(snapshot, request, client, send))

    async def aclose(self) -> None:
        if self._engine is not None:
            await self._engine.aclose()

    async def _forward(self, snapshot: Snapshot, request: Request, client: _Client, send: Send) -> None:
        try:
            body = await client.body()
            request.body_replayable = isinstance(body, bytes)
            exchange = OutboundExchange(self._mesh.telemetry, snapshot, request, self._mesh.learned, self._mesh.rng)
            action = await exchange.run_async(self._engine_here(), body)
        except EngineError as error:
            await _answer(send, 400, [], str(error).encode())
            return
        match action:
            case Deliver():
                await _deliver(action, exchange, send)
            case Reply():
                await _answer(send, action.status, action.headers, action.body)
            case Fail():
                reply = action.reply()
                await _answer(send, reply.status, reply.headers, reply.body)
            case Passthrough():
                exchange.passed(404)
                await _answer(send, 404, [], b"")

    def _engine_here(self) -> AsyncEngine:
        engine = self._engine
        if engine is None:
            mesh = self._mesh
            engine = self._engine = AsyncEngine(mesh.contexts, snapshot=lambda: mesh.snapshot)
        return engine


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


async def _deliver(action: Deliver, exchange: OutboundExchange, send: Send) -> None:
    try:
        received = action.headers(exchange.response.headers)
        dropped = _HOP_BY_HOP | _named_by_connection(received)
        headers = [pair for pair in received if pair[0].lower() not in dropped]
        await send({"type": "http.response.start", "status": exchange.response.status, "headers": headers})
        whole = exchange.body
        if whole is not None:
            await send({"type": "http.response.body", "body": whole})
            return
        async for chunk in exchange.chunks_async():
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
    except EngineError:
        return  # the server cuts the answer short, which is what the caller must see; the access log says why
    finally:
        exchange.close()
    await send({"type": "http.response.body", "body": b""})


class _Client:
    """Who sent the request: its body, and whether it is still there."""

    def __init__(self, headers: Headers, receive: Receive) -> None:
        self._headers, self._receive = headers, receive
        self._sent = asyncio.Event()

    async def body(self) -> bytes | AsyncIterator[bytes]:
        """A short body whole, a longer one or one of unknown length as it comes."""
        length = next((value for name, value in self._headers if name == b"content-length"), None)
        if length is None and not any(name == b"transfer-encoding" for name, _ in self._headers):
            self._sent.set()
            return b""
        if length is not None and length.isdigit() and int(length) <= REPLAYABLE:
            return b"".join([chunk async for chunk in self._chunks()])
        return self._chunks()

    async def stay_with(self, work: Coroutine[Any, Any, None]) -> None:
        """Do `work`, as long as the client is there."""
        working = asyncio.ensure_future(work)
        watching = asyncio.ensure_future(self._gone())
        try:
            await asyncio.wait((working, watching), return_when=asyncio.FIRST_COMPLETED)
            if working.done():
                working.result()
        except _ClientGoneError:
            return
        finally:
            watching.cancel()
            working.cancel()
            await asyncio.wait((working, watching))

    async def _chunks(self) -> AsyncIterator[bytes]:
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise _ClientGoneError
            if message.get("body"):
                yield message["body"]
            if not message.get("more_body"):
                self._sent.set()
                return

    async def _gone(self) -> None:
        await self._sent.wait()
        while (await self._receive())["type"] != "http.disconnect":
            pass


class _ClientGoneError(Exception):
    """The client left before its request was complete."""


def _named_by_connection(headers: Headers) -> frozenset[bytes]:
    """What a Connection header calls hop-by-hop."""
    named = [
        part.strip().lower() for name, value in headers if name.lower() == b"connection" for part in value.split(b",")
    ]
    return frozenset(named) - _NEVER_NAMED


def _request(scope: MutableMapping[str, Any], port: int) -> Request:
    authority = ""
    headers: Headers = []
    forwarded: list[bytes] = []
    has_id = False
    dropped = _HOP_BY_HOP | _NOT_FROM_OUTSIDE | _named_by_connection(scope["headers"])
    for name, value in scope["headers"]:
        if name == b"host":
            authority = value.decode("latin-1")
        elif name == b"x-forwarded-for":
            forwarded.append(value)
        elif name in dropped or name.startswith(b"x-envoy-"):
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
    return Request(
        scope["method"],
        raw.decode("latin-1"),
        headers,
        authority=authority,
        query=scope.get("query_string", b"").decode("latin-1"),
        destination=Address("0.0.0.0", port),  # noqa: S104 - names the listener, never bound
    )


async def _answer(send: Send, status: int, headers: Headers, body: bytes) -> None:
    names = {name.lower() for name, _ in headers}
    if b"content-length" not in names:
        headers = [*headers, (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
