"""A request of httpx to ours, an action of ours to a response or an error of httpx. Both colours."""

from __future__ import annotations

import ssl
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal, Protocol

from proxyless.core.actions import Action, Deliver, Fail, Reply
from proxyless.core.replies import BODILESS
from proxyless.core.request import Address, Request
from proxyless.engine.timeouts import UNLIMITED, Timeouts
from proxyless.errors import NoIdentityError, NotReadyError, RequestError, UpstreamTimeoutError
from proxyless.httpx.info import CallInfo
from proxyless.httpx.library import Library, name_of
from proxyless.runtime.outbound import OutboundExchange

if TYPE_CHECKING:
    from proxyless.core.learned import Learned
    from proxyless.core.resources import UpstreamTls
    from proxyless.core.rng import Rng
    from proxyless.core.snapshot import Snapshot
    from proxyless.engine.registry import ClientContexts
    from proxyless.settings import Settings
    from proxyless.telemetry.recorder import Telemetry

__all__ = [
    "Failures",
    "LazyContexts",
    "MeshLike",
    "core_request",
    "not_ready",
    "response_of",
    "start_limit",
    "timeouts_of",
]

Failures = Literal["raise", "respond"]
EXTENSION = "proxyless"


class MeshLike(Protocol):
    """What transports need of `runtime.mesh.Mesh`."""

    @property
    def settings(self) -> Settings: ...
    @property
    def snapshot(self) -> Snapshot | None: ...
    @property
    def learned(self) -> Learned: ...
    @property
    def rng(self) -> Rng: ...
    @property
    def contexts(self) -> ClientContexts: ...
    @property
    def telemetry(self) -> Telemetry: ...
    @property
    def configured(self) -> bool: ...
    def ensure(self) -> None: ...
    def not_ready_reasons(self) -> list[str]: ...
    def wait_configured(self, timeout: float) -> bool: ...
    async def await_configured(self, timeout: float) -> bool: ...


class LazyContexts:
    """The mesh's TLS contexts, asked for only where an endpoint wants mutual TLS."""

    def __init__(self, mesh: MeshLike) -> None:
        self._mesh = mesh

    @property
    def generation(self) -> int:
        try:
            return self._mesh.contexts.generation
        except NoIdentityError:
            return -1

    def client(self, tls: UpstreamTls) -> ssl.SSLContext:
        return self._mesh.contexts.client(tls)

    def is_current(self, tls: UpstreamTls, context: ssl.SSLContext) -> bool:
        return self._mesh.contexts.is_current(tls, context)


def core_request(request: Any, *, replayable: bool) -> Request:
    """`httpx.Request` -> ours. Bytes stay as they are; Host decides the authority, the URL the destination."""
    url = request.url
    headers = request.headers.raw
    host = url.raw_host.decode("ascii")
    scheme = url.scheme
    port = url.port
    authority = ""
    for name, value in headers:
        if name.lower() == b"host":
            authority = value.decode("latin-1")
            break
    path, _, query = url.raw_path.decode("ascii").partition("?")
    return Request(
        request.method,
        path,
        headers,
        authority=authority or (host if port is None else f"{host}:{port}"),
        scheme=scheme,
        query=query,
        destination=_address(host, (443 if scheme == "https" else 80) if port is None else port),
        sni=host if scheme == "https" else "",
        body_replayable=replayable,
    )


def timeouts_of(request: Any) -> Timeouts:
    """The client's `timeout=`, which httpx puts into the extensions."""
    given = request.extensions.get("timeout")
    if not given:
        return UNLIMITED
    return _timeouts(given.get("connect"), given.get("read"), given.get("write"), given.get("pool"))


# A client's requests have the same limits and mostly the same few destinations: finding such a tuple costs half of making it.
_timeouts = lru_cache(64)(Timeouts)
_address = lru_cache(1024)(Address)


def start_limit(timeouts: Timeouts, mesh: MeshLike) -> float:
    """Seconds that a call may wait for the first configuration: as long as for a connection."""
    for limit in (timeouts.connect, timeouts.pool, timeouts.read):
        if limit is not None:
            return limit
    return mesh.settings.start_timeout


def not_ready(mesh: MeshLike, library: Library) -> RequestError:
    """A NotReadyError that says why."""
    reasons = "; ".join(mesh.not_ready_reasons()) or "no configuration yet"
    return library.error(NotReadyError, "ConnectTimeout")(f"the mesh is not ready: {reasons}")


def response_of(action: Action, exchange: OutboundExchange, library: Library, failures: Failures, stream: type) -> Any:
    """-> a response of the library. `stream`: its class for a body that is still being received.

    Raises:
        RequestError: also the library's own.
    """
    if type(action) is Deliver:
        received = exchange.response
        headers = action.headers(received.headers) if action.mutations else received.headers
        extensions = {"http_version": b"HTTP/1.1", "reason_phrase": received.reason, EXTENSION: CallInfo(exchange)}
        if received.body is not None:
            return library.WholeResponse(received.status, headers, received.body, extensions)
        return library.Response(
            received.status, headers=headers, stream=stream(exchange, library), extensions=extensions
        )
    if type(action) is Fail:
        if failures == "raise":
            raise _failure(action, exchange, library) from exchange.error
        action = action.reply()
    if type(action) is not Reply:
        raise TypeError(f"not the end of a call: {action!r}")
    headers = action.headers
    if action.status not in BODILESS:
        headers = [*headers, (b"content-length", b"%d" % len(action.body))]
    body = action.body if exchange.request.method != "HEAD" else b""  # RFC 9110 section 9.3.2: the headers are a GET's
    return library.Response(
        action.status,
        headers=headers,
        stream=library.ByteStream(body),
        extensions={"http_version": b"HTTP/1.1", EXTENSION: CallInfo(exchange)},
    )


def _failure(action: Fail, exchange: OutboundExchange, library: Library) -> Exception:
    if action.outcome is None or exchange.error is None:  # the time was over between two attempts
        theirs = "ReadTimeout" if issubclass(action.error, UpstreamTimeoutError) else "TransportError"
    else:
        theirs = name_of(exchange.error)
    action.error = library.error(action.error, theirs)
    return action.to_error(exchange.call.record)
