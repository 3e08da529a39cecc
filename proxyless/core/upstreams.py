"""A cluster with its endpoints, compiled: the TLS of each endpoint is settled here, once."""

from __future__ import annotations

from proxyless.core.request import Address
from proxyless.core.resources import Cluster, Health, LbEndpoint, LoadAssignment, LocalityEndpoints, UpstreamTls
from proxyless.values import frozen, replace

__all__ = ["Endpoint", "Upstream", "compile_upstream"]

_HTTP1_ALPN = ("istio-http/1.1", "istio", "http/1.1")
_HTTP2_ALPN = ("istio-h2", "istio", "h2")
_NOTHING = LoadAssignment(name="")


@frozen(kw_only=True, eq=False)
class Endpoint:
    """One address of an upstream. `tls` None: plain text. Compared by identity."""

    address: Address
    tls: UpstreamTls | None
    weight: int = 1
    priority: int = 0
    health: Health = Health.UNKNOWN
    workload: str = ""
    hostname: str = ""
    locality: tuple[str, str, str] = ("", "", "")


@frozen(kw_only=True, eq=False)
class Upstream:
    """A cluster with its endpoints. Compared by identity: the same object as long as nothing of it changed.

    Attributes:
        endpoints: of every priority and health, in the order received.
        addresses: theirs.
        assignment: where they came from; None when EDS has not answered.
        raw: the same upstream for connections that carry no HTTP of ours (TLS of the application inside): other ALPN.
    """

    cluster: Cluster
    endpoints: tuple[Endpoint, ...]
    addresses: frozenset[Address]
    assignment: LoadAssignment | None = None
    raw: Upstream | None = None

    @property
    def for_tcp(self) -> Upstream:
        return self.raw or self

    def endpoint_for(self, address: Address) -> Endpoint:
        """ORIGINAL_DST: the address that the application named, with the cluster's transport socket."""
        return Endpoint(address=address, tls=_http_alpn(self.cluster.tls, self.cluster.http2))


def compile_upstream(cluster: Cluster, assignment: LoadAssignment | None) -> Upstream:
    """`assignment`: of EDS; a cluster's own endpoints go before it."""
    source = cluster.assignment or assignment or _NOTHING
    raw = _upstream(cluster, source, assignment, None, http=False)
    if not any(endpoint.tls is not None and "istio" in endpoint.tls.alpn for endpoint in raw.endpoints):
        return raw
    return _upstream(cluster, source, assignment, raw, http=True)


def _upstream(
    cluster: Cluster, source: LoadAssignment, assignment: LoadAssignment | None, raw: Upstream | None, *, http: bool
) -> Upstream:
    adapted: dict[int, UpstreamTls | None] = {}  # one TLS object for all endpoints of a match: engines key pools by it
    endpoints = tuple(
        _endpoint(cluster, locality, each, adapted, http=http)
        for locality in source.localities
        for each in locality.endpoints
    )
    addresses = frozenset(endpoint.address for endpoint in endpoints)
    return Upstream(cluster=cluster, endpoints=endpoints, addresses=addresses, assignment=assignment, raw=raw)


def _endpoint(
    cluster: Cluster,
    locality: LocalityEndpoints,
    source: LbEndpoint,
    adapted: dict[int, UpstreamTls | None],
    *,
    http: bool,
) -> Endpoint:
    tls = _match_transport(cluster, source)
    if http:
        key = id(tls)
        if key not in adapted:
            adapted[key] = _http_alpn(tls, cluster.http2)
        tls = adapted[key]
    return Endpoint(
        address=source.address,
        tls=tls,
        weight=source.weight,
        priority=locality.priority,
        health=source.health,
        workload=source.workload,
        hostname=source.hostname,
        locality=(locality.region, locality.zone, locality.sub_zone),
    )


def _match_transport(cluster: Cluster, endpoint: LbEndpoint) -> UpstreamTls | None:
    """The first transport-socket match that is a subset of the endpoint's labels, else the cluster's own socket."""
    labels = endpoint.socket_match
    for match in cluster.tls_matches:
        if match.match.items() <= labels.items():
            return match.tls
    return cluster.tls


def _http_alpn(tls: UpstreamTls | None, http2: bool) -> UpstreamTls | None:
    """What Istio's `istio.alpn` filter offers for a request: the cluster's own list is for opaque TCP."""
    if tls is None or "istio" not in tls.alpn:
        return tls
    return replace(tls, alpn=_HTTP2_ALPN if http2 else _HTTP1_ALPN)
