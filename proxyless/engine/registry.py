"""The pools of one engine: one for each endpoint, TLS rule and identity; retired on rotation and when an endpoint goes.

Shared by both engines and not thread-safe: the engine serialises access.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from proxyless.core.request import Address
from proxyless.core.resources import UpstreamTls
from proxyless.engine.pool import Pool, Pooled
from proxyless.errors import EngineError, IdentityError, PeerVerificationError

if TYPE_CHECKING:
    from proxyless.core.call import Attempt
    from proxyless.core.snapshot import Endpoint, Snapshot, Upstream

__all__ = ["ClientContexts", "EndpointPool", "Registry", "check_protocol", "connect_error"]


class ClientContexts(Protocol):
    """Where TLS contexts come from: `proxyless.identity.tls.TlsContexts`."""

    @property
    def generation(self) -> int:
        """Changes whenever our SVID or the trust bundles do."""
        ...

    def client(self, tls: UpstreamTls) -> ssl.SSLContext: ...
    def is_current(self, tls: UpstreamTls, context: ssl.SSLContext) -> bool: ...


C = TypeVar("C", bound=Pooled)


class EndpointPool(Pool[C]):
    """A pool and what it takes to connect.

    Attributes:
        tls: rule of the endpoint; None for plain text, or for the application's own TLS.
        context: None for plain text.
        server_name: SNI, and the name to verify where the context verifies names.
    """

    __slots__ = ("address", "context", "server_name", "tls", "upstream")

    def __init__(self, attempt: Attempt, context: ssl.SSLContext | None, server_name: str, doomed: list[C]) -> None:
        super().__init__(attempt.upstream.cluster, attempt.state, doomed)
        self.upstream: Upstream = attempt.upstream
        self.address: Address = attempt.endpoint.address
        self.tls: UpstreamTls | None = attempt.endpoint.tls
        self.context, self.server_name = context, server_name


_HTTP2 = frozenset(("h2", "istio-h2"))
_MAX_RECENT = 4096  # endpoints of a pass-through cluster are made for each call
_Key = tuple[str, Address, UpstreamTls | None, str]


class Registry(Generic[C]):
    """Pools by endpoint. `doomed` collects the connections that the engine must close."""

    def __init__(self, contexts: ClientContexts | None, app_context: Callable[[], ssl.SSLContext] | None) -> None:
        self._contexts, self._app_context = contexts, app_context
        self._generation: int | None = None  # None: no connection with mutual TLS was made yet
        self._pools: dict[_Key, EndpointPool[C]] = {}
        # An endpoint keeps its identity from snapshot to snapshot while it does not change: no TLS rule is hashed.
        self._recent: dict[int, tuple[Endpoint, EndpointPool[C]]] = {}
        self.doomed: list[C] = []

    def __iter__(self) -> Iterator[EndpointPool[C]]:
        return iter(self._pools.values())

    def find(self, attempt: Attempt) -> EndpointPool[C]:
        """The pool for an attempt.

        Raises:
            EngineError: kind ``tls``, there is no identity to connect with.
        """
        self._follow_identity()
        endpoint = attempt.endpoint
        if not attempt.app_tls:
            known = self._recent.get(id(endpoint))
            if known is not None and known[0] is endpoint and known[1].state is attempt.state:
                return known[1]
        app_name = attempt.server_name if attempt.app_tls else ""
        key = (attempt.upstream.cluster.name, endpoint.address, endpoint.tls, app_name)
        pool = self._pools.get(key)
        if pool is None or pool.state is not attempt.state:
            if pool is not None:
                pool.retire()
            pool = self._pools[key] = self._make(attempt, app_name)
        elif pool.upstream is not attempt.upstream:
            pool.upstream, pool.cluster = attempt.upstream, attempt.upstream.cluster
        if not attempt.app_tls:
            if len(self._recent) >= _MAX_RECENT:
                self._recent.clear()
            self._recent[id(endpoint)] = (endpoint, pool)
        return pool

    def _make(self, attempt: Attempt, app_name: str) -> EndpointPool[C]:
        tls = attempt.endpoint.tls
        if attempt.app_tls:
            if tls is not None:
                raise EngineError("tls", "TLS of the application inside TLS of the mesh is not supported")
            if self._app_context is None:
                raise EngineError("tls", "no TLS context for https:// was given")
            return EndpointPool(attempt, self._app_context(), app_name, self.doomed)
        if tls is None:
            return EndpointPool(attempt, None, "", self.doomed)
        if self._contexts is None:
            raise EngineError("tls", "the endpoint wants mutual TLS and there is no identity source")
        self._generation = self._contexts.generation
        try:
            context = self._contexts.client(tls)
        except (IdentityError, OSError) as error:
            raise EngineError("tls", str(error)) from error
        # An address as server name is not sent as SNI (RFC 6066), and mesh contexts do not verify names.
        return EndpointPool(attempt, context, tls.sni or attempt.endpoint.address.host, self.doomed)

    def _follow_identity(self) -> None:
        """When our certificate or the trust bundles changed: no new request on connections made before (rule M-32)."""
        if self._generation is None or self._contexts is None or self._contexts.generation == self._generation:
            return
        self._generation = None
        for key, pool in list(self._pools.items()):
            if pool.tls is not None:
                del self._pools[key]
                pool.retire()
        self._recent.clear()

    def prune(self, snapshot: Snapshot) -> None:
        """A new snapshot is in use: retire pools whose endpoint is gone or changed its TLS rule. Looks only at clusters
        that changed."""
        self._recent.clear()
        rules: dict[str, dict[Address, list[UpstreamTls | None]]] = {}
        for key, pool in list(self._pools.items()):
            name = key[0]
            upstream = snapshot.upstreams.get(name)
            if upstream is not None:
                if upstream is pool.upstream:
                    continue
                if name not in rules:
                    rules[name] = _rules(upstream)
                if pool.tls in rules[name].get(pool.address, ()):
                    pool.upstream, pool.cluster = upstream, upstream.cluster
                    continue
            del self._pools[key]
            pool.retire()

    def sweep(self, now: float, wall: float) -> None:
        """Drop connections that are too old and pools without any. To be called every now and then."""
        self._follow_identity()
        for key, pool in list(self._pools.items()):
            if self._outdated(pool):
                pool.retire()
            else:
                pool.sweep(now, wall)
                if pool.connections:
                    continue
            # Names under a wildcard host are many: an empty pool is not kept.
            del self._pools[key]
            self._recent.clear()

    def _outdated(self, pool: EndpointPool[C]) -> bool:
        """A file that the TLS rule names was replaced: that does not show in the generation."""
        if pool.tls is None or self._contexts is None:
            return False
        try:
            return pool.context is None or not self._contexts.is_current(pool.tls, pool.context)
        except (IdentityError, OSError):
            return False  # what was loaded stays in use while it is valid

    def clear(self) -> None:
        """Retire everything."""
        for pool in self._pools.values():
            pool.retire()
        self._pools.clear()
        self._recent.clear()


def _rules(upstream: Upstream) -> dict[Address, list[UpstreamTls | None]]:
    rules: dict[Address, list[UpstreamTls | None]] = {}
    for variant in (upstream, upstream.for_tcp):
        for endpoint in variant.endpoints:
            rules.setdefault(endpoint.address, []).append(endpoint.tls)
    return rules


def check_protocol(connected: ssl.SSLObject | ssl.SSLSocket, address: Address) -> None:
    """Raises EngineError when the peer has chosen a protocol that is not ours."""
    if connected.selected_alpn_protocol() in _HTTP2:
        raise EngineError("tls", f"{address}: the endpoint speaks HTTP/2 only, which is not supported")


def connect_error(error: Exception, address: Address) -> EngineError:
    """What came of an attempt to connect: refused, unreachable, handshake refused, wrong identity."""
    # The hook of identity.tls raises inside do_handshake; a chain that OpenSSL itself refuses is the same to the caller.
    if isinstance(error, (ssl.SSLCertVerificationError, PeerVerificationError)):
        return EngineError("identity", f"{address}: {_reason(error)}")
    if isinstance(error, (ssl.SSLError, IdentityError)):
        return EngineError("tls", f"{address}: {_reason(error)}")
    return EngineError("connect", f"{address}: {_reason(error)}")


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__
