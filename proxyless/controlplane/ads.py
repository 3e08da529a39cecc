"""The Aggregated Discovery Service over gRPC: one view for each identity, pushed when it changes.

Each listener knows who is at its other end (`Identify`): the socket of one workload, or the verified certificate of a TLS
connection. A node that claims another namespace or service account gets PERMISSION_DENIED. Missing ACKs hold nothing
back; a slow client gets the newest configuration next, never a queue of old ones, and holds up nobody else.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

import grpc
import grpc.aio

from proxyless.controlplane.subscriptions import Answer, ClientState, Nack, Request, View
from proxyless.controlplane.translate.node import InvalidNodeError, ProxyNode, parse_node
from proxyless.protos import STREAM_ADS_METHOD, message
from proxyless.spiffe import SpiffeId

__all__ = ["AdsObserver", "AdsServicer", "AdsStats", "Client", "Identify", "ViewSource"]

log = logging.getLogger("proxyless.controlplane.ads")

_INBOX = 64  # unread requests of one stream; beyond that the stream is not read until they are answered

Identify = Callable[[Any], SpiffeId | None]
"""Who is at the other end of a call (`grpc.aio.ServicerContext`); None when there is no verified identity."""


class ViewSource(Protocol):
    """Where configuration comes from."""

    def view(self, node: ProxyNode, identity: SpiffeId | None) -> View:
        """Everything this client may see now. Called on the event loop; must not block."""


class AdsObserver(Protocol):
    """Hooks for metrics."""

    def pushed(self, type_url: str, resources: int) -> None: ...
    def refused(self, type_url: str) -> None: ...
    def denied(self) -> None: ...


class AdsStats:
    """Counts since start; the default observer."""

    def __init__(self) -> None:
        self.pushes: dict[str, int] = {}
        self.nacks: dict[str, int] = {}
        self.denials = 0

    def pushed(self, type_url: str, resources: int) -> None:
        self.pushes[type_url] = self.pushes.get(type_url, 0) + 1

    def refused(self, type_url: str) -> None:
        self.nacks[type_url] = self.nacks.get(type_url, 0) + 1

    def denied(self) -> None:
        self.denials += 1


@dataclass(eq=False, slots=True)
class Client:
    """One open stream, for status output."""

    node: ProxyNode
    identity: SpiffeId | None
    state: ClientState
    wake: asyncio.Event


class AdsServicer:
    """State-of-the-world ADS. One instance serves every listener; `handler` gives the service for one of them."""

    def __init__(self, source: ViewSource, observer: AdsObserver | None = None) -> None:
        self._source = source
        self.stats = AdsStats()
        self._observer: AdsObserver = observer or self.stats
        self.clients: set[Client] = set()

    def handler(self, identify: Identify) -> Any:
        """A generic RPC handler whose callers are named by `identify`."""

        async def stream(_: AsyncIterator[Any], context: Any) -> None:
            await self._serve(context, identify(context))

        method = grpc.stream_stream_rpc_method_handler(
            stream,
            request_deserializer=message("envoy.service.discovery.v3.DiscoveryRequest").FromString,
            response_serializer=lambda response: response.SerializeToString(),
        )
        service, _, name = STREAM_ADS_METHOD[1:].partition("/")
        return grpc.method_handlers_generic_handler(service, {name: method})

    def changed(self) -> None:
        """There may be something new for every client. Call on the event loop."""
        for client in self.clients:
            client.wake.set()

    async def _serve(self, context: Any, identity: SpiffeId | None) -> None:
        first = await context.read()
        if first is grpc.aio.EOF:
            return
        node = await self._admit(first, context, identity)
        client = Client(node, identity, ClientState(_nonce), asyncio.Event())
        inbox: deque[Any] = deque([first])
        room = asyncio.Semaphore(_INBOX)
        client.wake.set()
        reader = asyncio.create_task(_read(context, inbox, room, client.wake))
        self.clients.add(client)
        log.info("xDS client %s connected as %s", node.id, identity or "nobody in particular")
        try:
            while not reader.done() or inbox:
                await client.wake.wait()
                client.wake.clear()
                await self._turn(client, inbox, room, context)
        finally:
            reader.cancel()
            self.clients.discard(client)
            log.info("xDS client %s disconnected", node.id)

    async def _admit(self, request: Any, context: Any, identity: SpiffeId | None) -> ProxyNode:
        """The node of the first request, or an end of the stream that says why."""
        try:
            node = parse_node(request.node)
        except InvalidNodeError as error:
            log.warning("xDS client %s refused: %s", identity or context.peer(), error)
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
            raise
        reason = _mismatch(node, identity)
        if reason:
            self._observer.denied()
            log.warning("xDS client %s refused: %s (%s)", identity, reason, context.peer())
            await context.abort(grpc.StatusCode.PERMISSION_DENIED, reason)
        if identity is not None and not node.service_account:
            node = replace(node, service_account=identity.service_account or "")
        return node

    async def _turn(self, client: Client, inbox: deque[Any], room: asyncio.Semaphore, context: Any) -> None:
        """Answer what was asked, then push what has changed meanwhile."""
        while inbox:
            request = inbox.popleft()
            room.release()
            answers, nack = client.state.on_request(_request(request), self._source.view(client.node, client.identity))
            if nack is not None:
                self._refused(client, nack)
            await self._write(context, answers)
        await self._write(context, client.state.on_view(self._source.view(client.node, client.identity)))

    async def _write(self, context: Any, answers: list[Answer]) -> None:
        for answer in answers:
            await context.write(_response(answer))
            self._observer.pushed(answer.type_url, len(answer.resources))

    def _refused(self, client: Client, nack: Nack) -> None:
        self._observer.refused(nack.type_url)
        log.error(
            "xDS client %s (%s) refused %s of version %s: %s",
            client.node.id,
            client.identity,
            nack.type_url.rpartition(".")[2],
            nack.version,
            nack.message[:2000],
        )


async def _read(context: Any, inbox: deque[Any], room: asyncio.Semaphore, wake: asyncio.Event) -> None:
    try:
        while True:
            request = await context.read()
            if request is grpc.aio.EOF:
                return
            await room.acquire()
            inbox.append(request)
            wake.set()
    finally:
        wake.set()


def _mismatch(node: ProxyNode, identity: SpiffeId | None) -> str:
    """Why this identity may not have this node's view; empty when it may."""
    if identity is None:
        return "no verified identity on this connection"
    if identity.namespace != node.namespace:
        return f"{identity} cannot be a node of namespace {node.namespace!r} (metadata NAMESPACE; PROXYLESS_NAMESPACE)"
    if node.service_account and identity.service_account != node.service_account:
        return f"{identity} cannot be a node of service account {node.service_account!r} (metadata SERVICE_ACCOUNT)"
    return ""


def _nonce(version: str) -> str:
    return f"{version}{uuid.uuid4()}"


def _request(request: Any) -> Request:
    return Request(
        type_url=request.type_url,
        names=tuple(request.resource_names),
        nonce=request.response_nonce,
        version=request.version_info,
        error=request.error_detail.message or "no reason given" if request.HasField("error_detail") else None,
    )


def _response(answer: Answer) -> Any:
    response = message("envoy.service.discovery.v3.DiscoveryResponse")(
        version_info=answer.version, nonce=answer.nonce, type_url=answer.type_url
    )
    for resource in answer.resources:
        response.resources.add(type_url=answer.type_url, value=resource)
    return response
