"""Every accepted resource, compiled and joined; immutable. A request reads one snapshot once and uses nothing else.

`compile_snapshot` is incremental: an upstream whose cluster and load assignment did not change, and the table of a route
configuration that did not change, are the objects of the previous snapshot. What points to something absent is listed in
`missing` and fails only the requests that need it (503 NC for a cluster), as Envoy does.

Listeners come in two shapes. The sidecar form has one listener for a port (`0.0.0.0_80`), whose filter chains carry HTTP
connection managers or TCP proxies; a listener on one address serves that address only. The gRPC form has API listeners named
`host:port`. An INBOUND listener with `use_original_dst` (`virtualInbound`) is the inbound side.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from ipaddress import ip_address
from typing import NamedTuple

from proxyless.core.request import Address, Request
from proxyless.core.resources import (
    Cluster,
    ClusterType,
    FilterChain,
    Health,
    HttpConnectionManager,
    LbEndpoint,
    Listener,
    LoadAssignment,
    LocalityEndpoints,
    PathNormalization,
    RouteConfiguration,
    TcpProxy,
    UpstreamTls,
)
from proxyless.core.routing import RouteTable

__all__ = [
    "Endpoint",
    "HttpTarget",
    "Missing",
    "OutboundListener",
    "Resources",
    "Snapshot",
    "Upstream",
    "compile_snapshot",
]

# 127.0.0.1 and ::1: what istiod sends under INTERCEPTION_MODE NONE. Nothing is bound here.
_ANY_ADDRESS = frozenset({"0.0.0.0", "::", "127.0.0.1", "::1", ""})  # noqa: S104 - compared, never bound
_HTTP1_ALPN = ("istio-http/1.1", "istio", "http/1.1")
_HTTP2_ALPN = ("istio-h2", "istio", "h2")
_NOTHING: LoadAssignment = LoadAssignment(name="")


@dataclass(frozen=True, slots=True, kw_only=True)
class Resources:
    """What a control plane sent and we accepted, by resource name."""

    listeners: Mapping[str, Listener] = field(default_factory=dict)
    routes: Mapping[str, RouteConfiguration] = field(default_factory=dict)
    clusters: Mapping[str, Cluster] = field(default_factory=dict)
    assignments: Mapping[str, LoadAssignment] = field(default_factory=dict)


class Missing(NamedTuple):
    """A reference to what is not there. `kind`: ``route``, ``cluster`` or ``endpoints``."""

    kind: str
    name: str


# ------------------------------------------------------------------------------------------------------------- upstreams


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
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


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
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


def _compile_upstream(cluster: Cluster, assignment: LoadAssignment | None) -> Upstream:
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


# ------------------------------------------------------------------------------------------------------------- listeners


@dataclass(frozen=True, slots=True, eq=False)
class HttpTarget:
    """Routes of a filter chain and how paths are normalised before; `paths` None: not at all."""

    table: RouteTable
    paths: PathNormalization | None


Target = HttpTarget | TcpProxy


@dataclass(frozen=True, slots=True, eq=False)
class _Chains:
    """Filter chains of one listener, by what an outbound connection can look like.

    Attributes:
        servers: by server name, `.suffix` for a wildcard; `tls`: TLS with another one or none.
        service: host of the only service that a chain without conditions leads to; empty when there is no such chain. In
            Envoy it takes every connection to the port; we know the name that the application asked for.
    """

    plain: Target | None = None
    servers: Mapping[str, Target] = field(default_factory=dict)
    tls: Target | None = None
    service: str = ""

    def for_server(self, name: str) -> Target | None:
        servers = self.servers
        if servers:
            found = servers.get(name)
            rest = name
            while found is None and "." in rest:
                rest = rest.partition(".")[2]
                found = servers.get("." + rest)
            if found is not None:
                return found
        return self.tls


@dataclass(frozen=True, slots=True, eq=False)
class OutboundListener:
    """All outbound listeners of one port.

    Attributes:
        any: the listener on every address; None when there is none.
        addresses: listeners on one address.
        services: the same by names of the service that they lead to: a sidecar sees the address that the name resolved to,
            we see the name.
        hosts: API listeners (gRPC form) by host name without port, lower case.
    """

    port: int
    any: _Chains | None
    addresses: Mapping[str, _Chains]
    services: Mapping[str, _Chains]
    hosts: Mapping[str, HttpTarget]

    def target(self, request: Request) -> Target | None:
        """What a request to this port meets: routes, a TCP proxy, or None (not the mesh's)."""
        host = request.destination.host
        if self.hosts:
            named = self.hosts.get(host.lower())
            if named is not None:
                return named
        chains = self.any
        if self.addresses:
            chains = self.addresses.get(host) or self.services.get(host.lower().rstrip(".")) or chains
        if chains is None:
            return None
        target = chains.for_server((request.sni or host).lower()) if request.scheme == "https" else chains.plain
        if chains.service and target is chains.plain and chains is self.any and not _names(chains.service, host):
            return None
        return target


def _names(service: str, host: str) -> bool:
    """`host` is that service, one of its shorter names in Kubernetes' manner, or an address."""
    name = host.lower().rstrip(".")
    if name == service or service.startswith(name + "."):
        return True
    try:
        return ip_address(host.strip("[]")) is not None
    except ValueError:
        return False


def _is_http(chain: FilterChain) -> bool:
    return isinstance(chain.filter, HttpConnectionManager)


class _ListenerCompiler:
    """Compiles listeners against route tables; collects the names of routes that are not there."""

    def __init__(self, tables: Mapping[str, RouteTable], clusters: Mapping[str, Cluster]) -> None:
        self.tables, self.clusters = tables, clusters
        self.inline: list[RouteTable] = []
        self.proxies: list[TcpProxy] = []
        self.missing: set[Missing] = set()

    def http(self, manager: HttpConnectionManager) -> HttpTarget:
        if manager.routes is not None:
            table = RouteTable(manager.routes)
            self.inline.append(table)
        else:
            table = self.tables.get(manager.rds) or self._absent(manager.rds)
        return HttpTarget(table, None if manager.paths == PathNormalization() else manager.paths)

    def _absent(self, name: str) -> RouteTable:
        """No routes at all: a request must not slip out unrouted because its routes have not arrived."""
        self.missing.add(Missing("route", name))
        return RouteTable(RouteConfiguration(name=name, virtual_hosts=()))

    def target(self, chain: FilterChain | None) -> Target | None:
        if chain is None or chain.filter is None:
            return None
        if isinstance(chain.filter, TcpProxy):
            self.proxies.append(chain.filter)
            return chain.filter
        return self.http(chain.filter)

    def chains(self, listener: Listener) -> _Chains:
        """Chains bound to a destination prefix serve addresses that the application never names: they are left out."""
        plain = servers_less = None
        servers: dict[str, Target] = {}
        port = 0 if listener.use_original_dst or listener.address is None else listener.address.port
        for chain in listener.filter_chains:
            match = chain.match
            if match.prefix_ranges or match.source_prefix_ranges or match.source_ports:
                continue
            if match.destination_port not in (0, port):
                continue
            if match.server_names:
                target = self.target(chain)
                for name in match.server_names if target is not None else ():
                    servers.setdefault(name.lower().removeprefix("*"), target)  # type: ignore[arg-type]  # not None here
            elif chain.tls is not None or match.transport_protocol == "tls":
                servers_less = servers_less or chain
            elif plain is None or (_is_http(chain) and not _is_http(plain)):
                plain = chain
        default = self.target(listener.default_filter_chain)
        tls = self.target(servers_less) if servers_less is not None else self._opaque(plain, default)
        return _Chains(self.target(plain) if plain is not None else default, servers, tls, self._service(plain))

    def _service(self, plain: FilterChain | None) -> str:
        if plain is None or not isinstance(plain.filter, TcpProxy):
            return ""
        cluster = self.clusters.get(plain.filter.clusters[0].name)
        return cluster.service.lower() if cluster is not None else ""

    def _opaque(self, plain: FilterChain | None, default: Target | None) -> Target | None:
        """TLS that no chain asks for: a TCP chain without conditions takes it, an HTTP one cannot."""
        if plain is not None and isinstance(plain.filter, TcpProxy) and not plain.match.transport_protocol:
            return plain.filter
        return default


# --------------------------------------------------------------------------------------------------------------- snapshot


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Snapshot:
    """The whole configuration at one moment.

    Attributes:
        generation: grows with each snapshot of a process.
        outbound: listeners by port.
        fallback: where a connection to a port without a listener goes (`virtualOutbound`): a TCP proxy to the pass-through
            or the black-hole cluster; None: not said, which means pass through.
        inbound: the listener that takes inbound connections, None when the workload has none.
        upstreams: by cluster name.
        missing: references to what is absent, sorted.
        resources: what it was made from, for dumps; `listeners` and `routes` are its parts.
        tables: compiled route configurations by name.
    """

    generation: int
    outbound: Mapping[int, OutboundListener]
    fallback: TcpProxy | None
    inbound: Listener | None
    upstreams: Mapping[str, Upstream]
    missing: tuple[Missing, ...]
    resources: Resources
    tables: Mapping[str, RouteTable]

    @property
    def listeners(self) -> Mapping[str, Listener]:
        return self.resources.listeners

    @property
    def routes(self) -> Mapping[str, RouteConfiguration]:
        return self.resources.routes

    def target(self, request: Request) -> Target | None:
        """What an outbound request meets by destination port, address and server name; None: it is not the mesh's."""
        listener = self.outbound.get(request.destination.port)
        if listener is not None:
            target = listener.target(request)
            if target is not None:
                return target
        return self.fallback


def compile_snapshot(resources: Resources, previous: Snapshot | None, generation: int) -> Snapshot:
    """Compile and join `resources`. Never raises for references that lead nowhere; `previous` only saves work."""
    upstreams, missing = _upstreams(resources, previous)
    tables = _tables(resources, previous)
    compiler = _ListenerCompiler(tables, resources.clusters)
    outbound, fallback = _outbound(resources.listeners.values(), compiler)
    missing |= compiler.missing
    for table in (*tables.values(), *compiler.inline):
        missing.update(Missing("cluster", name) for name in table.clusters - upstreams.keys())
    for proxy in compiler.proxies:
        missing.update(Missing("cluster", each.name) for each in proxy.clusters if each.name not in upstreams)
    return Snapshot(
        generation=generation,
        outbound=outbound,
        fallback=fallback,
        inbound=_inbound(resources.listeners.values()),
        upstreams=upstreams,
        missing=tuple(sorted(missing)),
        resources=resources,
        tables=tables,
    )


def _upstreams(resources: Resources, previous: Snapshot | None) -> tuple[dict[str, Upstream], set[Missing]]:
    before = previous.upstreams if previous is not None else {}
    upstreams: dict[str, Upstream] = {}
    missing: set[Missing] = set()
    for name, cluster in resources.clusters.items():
        assignment = None
        if cluster.type is ClusterType.EDS:
            assignment = resources.assignments.get(cluster.eds_name or name)
            if assignment is None:
                missing.add(Missing("endpoints", cluster.eds_name or name))
        old = before.get(name)
        if old is not None and _same(old.cluster, cluster) and _same(old.assignment, assignment):
            upstreams[name] = old
        else:
            upstreams[name] = _compile_upstream(cluster, assignment)
    return upstreams, missing


def _same(old: object, new: object) -> bool:
    return old is new or old == new


def _tables(resources: Resources, previous: Snapshot | None) -> dict[str, RouteTable]:
    before = previous.tables if previous is not None else {}
    tables: dict[str, RouteTable] = {}
    for name, configuration in resources.routes.items():
        old = before.get(name)
        same = old is not None and _same(old.configuration, configuration)
        tables[name] = old if old is not None and same else RouteTable(configuration)
    return tables


def _outbound(
    listeners: Iterable[Listener], compiler: _ListenerCompiler
) -> tuple[dict[int, OutboundListener], TcpProxy | None]:
    fallback: TcpProxy | None = None
    anywhere: dict[int, _Chains] = {}
    addresses: dict[int, dict[str, _Chains]] = {}
    hosts: dict[int, dict[str, HttpTarget]] = {}
    for listener in listeners:
        if listener.direction == "INBOUND":
            continue
        if listener.api is not None:
            host, _, port = listener.name.rpartition(":")
            if port.isascii() and port.isdigit():
                hosts.setdefault(int(port), {})[host.lower()] = compiler.http(listener.api)
        elif listener.use_original_dst:
            chains = compiler.chains(listener)
            fallback = chains.plain if isinstance(chains.plain, TcpProxy) else fallback
        elif listener.address is not None and listener.address.host in _ANY_ADDRESS:
            anywhere[listener.address.port] = compiler.chains(listener)
        elif listener.address is not None:
            addresses.setdefault(listener.address.port, {})[listener.address.host] = compiler.chains(listener)
    ports = sorted(anywhere.keys() | addresses.keys() | hosts.keys())
    return {
        port: OutboundListener(
            port,
            anywhere.get(port),
            addresses.get(port, {}),
            _by_service(addresses.get(port, {}).values(), compiler.clusters, anywhere.get(port)),
            hosts.get(port, {}),
        )
        for port in ports
    }, fallback


def _by_service(
    listeners: Iterable[_Chains], clusters: Mapping[str, Cluster], anywhere: _Chains | None
) -> dict[str, _Chains]:
    """By the full name of the service, and by its shorter forms in Kubernetes' manner where they are unambiguous. A name of
    one label is left to the virtual hosts of the port, if it has any: they know our namespace."""
    shortest = 2 if anywhere is not None and isinstance(anywhere.plain, HttpTarget) else 1
    named: dict[str, _Chains] = {}
    short: dict[str, list[_Chains]] = {}
    for chains in listeners:
        for target in (chains.plain, chains.tls):
            cluster = clusters.get(target.clusters[0].name) if isinstance(target, TcpProxy) else None
            if cluster is not None and cluster.service:
                named.setdefault(cluster.service.lower(), chains)
    for service, chains in named.items():
        labels = service.split(".")
        for count in range(shortest, len(labels)):
            short.setdefault(".".join(labels[:count]), []).append(chains)
    unambiguous = {name: found[0] for name, found in short.items() if len(found) == 1}
    return {**unambiguous, **named}


def _inbound(listeners: Iterable[Listener]) -> Listener | None:
    """The one with `use_original_dst`, else the first by name (gRPC form)."""
    candidates = sorted(
        (listener for listener in listeners if listener.direction == "INBOUND"),
        key=lambda listener: (not listener.use_original_dst, listener.name),
    )
    return candidates[0] if candidates else None
