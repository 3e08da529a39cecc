"""The application behind a port of the gateway: judge a request from outside by the gateway's own policy, then send it out as
any call of the mesh goes: route, pick, retry, mutual TLS.

Fails closed: without configuration or identity, and where policy cannot be evaluated, the answer is 503; nothing of the reason
goes outside. A client that leaves ends its request at the other end too. What a route answers itself (redirects, direct
responses, no route) is left to the outbound side, which also counts and logs it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING

from proxyless.core.call import Deliver, Fail, Passthrough, Reply
from proxyless.core.inbound import Admission, admit
from proxyless.core.request import Address, Peer, Request
from proxyless.core.resources import FilterChain, HttpConnectionManager, Listener
from proxyless.errors import EngineError, ProxylessError
from proxyless.gateway.client import Client, ClientGoneError, Receive, Scope, Send
from proxyless.gateway.headers import authority_of, closing, forwarded, returned
from proxyless.runtime.inbound import malformed_path, reading
from proxyless.runtime.outbound import OutboundExchange
from proxyless.telemetry import families

if TYPE_CHECKING:
    from proxyless.core.snapshot import Snapshot
    from proxyless.engine import AsyncEngine
    from proxyless.runtime.mesh import Mesh

__all__ = ["GatewayApp", "http_listeners", "plain_chain"]

log = logging.getLogger("proxyless.gateway")

_ANSWERED_BY_ROUTE = frozenset(("route_not_found", "direct_response", "path_normalization_failed"))
_STATUSES = range(200, 600)  # what can be handed on


@dataclass(frozen=True, slots=True, eq=False)
class _Listening:
    """The listener of our port in one snapshot. `chain` None: there is none any more."""

    snapshot: Snapshot
    chain: FilterChain | None
    trusted_hops: int = 0


class GatewayApp:
    """The ASGI application behind one port of the gateway.

    Args:
        mesh: a mesh of kind ``router``.
        engine: for calls into the mesh.
        where: address of the listener, as the configuration has it.
        leaving: whether the gateway drains.
    """

    def __init__(
        self, mesh: Mesh, engine: AsyncEngine, where: Address, leaving: Callable[[], bool] = lambda: False
    ) -> None:
        self._mesh, self._engine, self._where, self._leaving = mesh, engine, where, leaving
        self._open = mesh.settings.disabled_inbound
        self._listening: _Listening | None = None
        self._said = ""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            raise ProxylessError(f"the gateway serves no {scope['type']} connections")
        client = Client(scope, receive, send, leaving=self._leaving())
        try:
            await self._serve(scope, client)
        except ClientGoneError:
            return

    async def _serve(self, scope: Scope, client: Client) -> None:
        snapshot = self._mesh.snapshot
        if snapshot is None or not self._mesh.configured:
            await self._unready(client)
            return
        listening = self._here(snapshot)
        request = self._request(scope, client, listening)
        exchange = OutboundExchange(self._mesh.telemetry, snapshot, request, self._mesh.learned, self._mesh.rng)
        refusal = self._refusal(scope, client, listening, request)
        if refusal is not None:
            exchange.refused(refusal.status, refusal.details)
            closes = [(b"connection", b"close")] if refusal.status != 403 else []
            await client.answer(refusal.status, [*refusal.headers, *closes], refusal.body)
            return
        broken = False
        async with client.present():
            broken = not await self._forward(exchange, request, client)
        if broken:
            await client.cut()

    # --------------------------------------------------------------------------------------------------------- judgement

    def _here(self, snapshot: Snapshot) -> _Listening:
        listening = self._listening
        if listening is None or listening.snapshot is not snapshot:
            chain, hops = None, 0
            for listener in http_listeners(snapshot):
                if listener.address == self._where:
                    chain = plain_chain(listener)
            if chain is not None and isinstance(chain.filter, HttpConnectionManager):
                hops = chain.filter.xff_num_trusted_hops
            listening = self._listening = _Listening(snapshot, chain, hops)
        return listening

    def _request(self, scope: Scope, client: Client, listening: _Listening) -> Request:
        raw: bytes = scope["raw_path"]
        return Request(
            scope["method"],
            raw.decode("latin-1"),
            closing(forwarded(scope["headers"], trusted_hops=listening.trusted_hops), client.address),
            authority=authority_of(scope["headers"], scope["http_version"]) or "",
            query=scope.get("query_string", b"").decode("latin-1"),
            destination=self._where,
        )

    def _refusal(self, scope: Scope, client: Client, listening: _Listening, request: Request) -> Admission | None:
        """Why this request goes no further; None when it does."""
        reason = "malformed"
        if authority_of(scope["headers"], scope["http_version"]) is None:
            refusal = _refuse(request, 400, "invalid_host", b"bad request")
        elif problem := malformed_path(request):
            refusal = _refuse(request, 400, problem, b"bad request")
        elif client.unknown_coding:
            refusal = _refuse(request, 501, "unsupported_transfer_coding", b"unsupported transfer coding")
        elif _asks_for_websocket(scope):
            refusal = _refuse(request, 501, "upgrade_failed", b"upgrades are not supported")
        else:
            judged = self._judge(scope, client, listening, request)
            if judged is None:
                return None
            refusal, reason = judged, "policy" if judged.status == 403 else "error"
        self._mesh.telemetry.metrics.add(families.INBOUND_DENIED, reason)
        return refusal

    def _judge(self, scope: Scope, client: Client, listening: _Listening, request: Request) -> Admission | None:
        """The gateway's own policy."""
        chain = listening.chain
        if self._open or chain is None:  # without a listener there is no route either
            return None
        manager = chain.filter
        table = listening.snapshot.tables.get(manager.rds) if isinstance(manager, HttpConnectionManager) else None
        peer = Peer(address=client.address, local=self._where)
        if listening.trusted_hops:  # counted from the end of X-Forwarded-For as it came
            request = reading(request, request.path, forwarded(scope["headers"], trusted_hops=listening.trusted_hops))
        try:
            admission = admit(chain, request, peer, table=table)
        except Exception:  # whatever it was, a request is never let through by a fault of ours
            log.exception("policy could not be evaluated; the request is refused")
            return _refuse(request, 503, "policy_evaluation_failed", b"service is not ready")
        for verdict in admission.shadow:
            if not verdict.allowed:
                log.info("dry run would deny %s policy=%s (%s)", ascii(request.path), verdict.policy, verdict.prefix)
        if admission.allowed or admission.details in _ANSWERED_BY_ROUTE:
            return None
        log.info("denied %s %s: %s", ascii(request.method), ascii(request.path), admission.details)
        return admission

    async def _unready(self, client: Client) -> None:
        reasons = "; ".join(self._mesh.not_ready_reasons()) or "starting"
        if reasons != self._said:  # once for each reason, not for each request
            self._said = reasons
            log.warning("requests are answered 503: %s", reasons)
        self._mesh.telemetry.metrics.add(families.INBOUND_DENIED, "not_ready")
        await client.answer(503, [], b"service is not ready")

    # -------------------------------------------------------------------------------------------------------- forwarding

    async def _forward(self, exchange: OutboundExchange, request: Request, client: Client) -> bool:
        """-> the client has a whole answer."""
        body = await client.body()
        request.body_replayable = isinstance(body, bytes)
        try:
            action = await exchange.run_async(self._engine, body)
        except EngineError as error:  # the request cannot be sent as it is
            log.info("refused %s %s: %s", ascii(request.method), ascii(request.path), error)
            await client.answer(400, [(b"connection", b"close")], b"bad request")
            return True
        match action:
            case Deliver():
                return await _deliver(action, exchange, client)
            case Reply():
                await client.answer(action.status, action.headers, action.body)
            case Fail():
                reply = action.reply()
                await client.answer(reply.status, reply.headers, reply.body)
            case Passthrough():  # a gateway leads nowhere but into the mesh
                exchange.passed(404)
                await client.answer(404, [])
        return True


async def _deliver(action: Deliver, exchange: OutboundExchange, client: Client) -> bool:
    status = exchange.response.status
    try:
        if status not in _STATUSES:
            await client.answer(502, [], b"the upstream answers with a status that is none")
            return True
        await client.start(status, returned(status, action.headers(exchange.response.headers)))
        whole = exchange.body
        if whole is not None:
            await client.end(whole)
            return True
        async with aclosing(exchange.chunks_async()) as chunks:
            async for chunk in chunks:
                await client.write(chunk)
    except EngineError:
        return False  # the access log says why
    finally:
        exchange.close()
    await client.end()
    return True


def http_listeners(snapshot: Snapshot) -> list[Listener]:
    """Listeners of a gateway that take plain HTTP."""
    return [
        listener
        for listener in snapshot.listeners.values()
        if listener.direction != "INBOUND" and not listener.use_original_dst and plain_chain(listener) is not None
    ]


def plain_chain(listener: Listener) -> FilterChain | None:
    """The chain for plain HTTP; it has no conditions."""
    for chain in listener.filter_chains:
        if isinstance(chain.filter, HttpConnectionManager) and chain.tls is None:
            return chain
    return None


def _refuse(request: Request, status: int, details: str, body: bytes) -> Admission:
    return Admission(False, status, body, "-", details, "", request)


def _asks_for_websocket(scope: Scope) -> bool:
    """Any other upgrade (h2c) is an offer that a server may pass over (RFC 9110 section 7.8)."""
    return any(name == b"upgrade" and b"websocket" in value.lower() for name, value in scope["headers"])
