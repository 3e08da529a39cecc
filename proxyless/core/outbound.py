"""Outbound listeners by port: what a connection that the application asks for meets.

They come in two shapes. The sidecar form has one listener for a port (`0.0.0.0_80`), whose filter chains carry HTTP connection
managers or TCP proxies; a listener on one address serves that address only. The gRPC form has API listeners named `host:port`.
Chains bound to a destination prefix, a source or another port serve connections that an application here never makes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from ipaddress import ip_address
from typing import NamedTuple

from proxyless.core.request import Request
from proxyless.core.resources import (
    Cluster,
    FilterChain,
    HttpConnectionManager,
    Listener,
    PathNormalization,
    RouteConfiguration,
    TcpProxy,
)
from proxyless.core.routing import RouteTable
from proxyless.values import field, frozen

__all__ = ["HttpTarget", "ListenerCompiler", "Missing", "OutboundListener", "Target", "compile_outbound"]

# 127.0.0.1 and ::1: what istiod sends under INTERCEPTION_MODE NONE. Nothing is bound here.
_ANY_ADDRESS = frozenset({"0.0.0.0", "::", "127.0.0.1", "::1", ""})  # noqa: S104 - compared, never bound


class Missing(NamedTuple):
    """A reference to what is not there. `kind`: ``route``, ``cluster`` or ``endpoints``."""

    kind: str
    name: str


@frozen(eq=False)
class HttpTarget:
    """Routes of a filter chain and how paths are normalised before; `paths` None: not at all."""

    table: RouteTable
    paths: PathNormalization | None


Target = HttpTarget | TcpProxy


@frozen(eq=False)
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


@frozen(eq=False)
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


class ListenerCompiler:
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
                if target is not None:
                    servers.update((name.lower().removeprefix("*"), target) for name in match.server_names)
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


def compile_outbound(
    listeners: Iterable[Listener], compiler: ListenerCompiler
) -> tuple[dict[int, OutboundListener], TcpProxy | None]:
    """Listeners by port, and the proxy of `virtualOutbound`, which takes connections to any other port."""
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
