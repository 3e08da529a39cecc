"""Gateways: listeners and route configurations of a `router` node (istio-semantics 7)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from proxyless.controlplane import hosts
from proxyless.controlplane.manifest.model import Gateway, Resource, Server, VirtualService
from proxyless.controlplane.translate.authorization import http_filters, network_filters, policies_for
from proxyless.controlplane.translate.build import Tree, extension
from proxyless.controlplane.translate.http_manager import http_manager, rds
from proxyless.controlplane.translate.matches import is_catch_all
from proxyless.controlplane.translate.node import ProxyNode
from proxyless.controlplane.translate.outbound import ANY, TLS_INSPECTOR
from proxyless.controlplane.translate.request_authentication import jwt_filter, jwt_rules_for
from proxyless.controlplane.translate.routes import route_configuration
from proxyless.controlplane.translate.tcp_routes import l4_filter, tls_matches
from proxyless.controlplane.translate.tls import gateway_socket
from proxyless.controlplane.translate.virtual_services import Binding, attached, http_routes
from proxyless.controlplane.translate.world import World

__all__ = ["gateway_listeners", "gateway_routes", "unknown_gateway_routes"]

_HTTP = frozenset({"HTTP", "HTTP2", "GRPC", "GRPC-WEB"})
_TERMINATES = frozenset({"SIMPLE", "MUTUAL", "OPTIONAL_MUTUAL", "ISTIO_MUTUAL"})


@dataclass(frozen=True, slots=True)
class _Bound:
    """A server of a Gateway that selects the node, and the port the gateway process listens on for it."""

    gateway: Resource[Gateway]
    server: Server
    port: int

    @property
    def name(self) -> str:
        return f"{self.gateway.namespace}/{self.gateway.name}"

    @property
    def is_http(self) -> bool:
        return self.server.port.protocol.upper() in _HTTP

    @property
    def terminates(self) -> bool:
        """TLS ends here and HTTP comes out of it."""
        return (
            self.server.port.protocol.upper() == "HTTPS"
            and self.server.tls is not None
            and self.server.tls.mode in _TERMINATES
        )

    @property
    def redirects(self) -> bool:
        return self.server.tls is not None and self.server.tls.https_redirect

    @property
    def route_name(self) -> str:
        if self.is_http:
            return f"http.{self.port}"
        port = self.server.port
        return f"https.{port.number}.{port.name}.{self.gateway.name}.{self.gateway.namespace}"


def _bound(world: World, node: ProxyNode) -> list[_Bound]:
    labels = node.label_map
    mapped = world.mesh.proxyless.gateway_ports
    return [
        _Bound(gateway, server, mapped.get(server.port.number, server.port.number))
        for gateway in world.gateways
        if gateway.spec.selector.items() <= labels.items()
        for server in gateway.spec.servers
        if server.port.number
    ]


def gateway_listeners(world: World, node: ProxyNode) -> Iterator[Tree]:
    """One for each address and port; plain HTTP has a single chain, TLS one for each set of server names."""
    by_address: dict[tuple[str, int], list[_Bound]] = {}
    for bound in _bound(world, node):
        by_address.setdefault((bound.server.bind or ANY, bound.port), []).append(bound)
    labels = node.label_map
    policies = policies_for(world, node.namespace, labels)
    filters = [*jwt_filter(jwt_rules_for(world, node.namespace, labels)), *http_filters(world, policies)]
    for (address, port), servers in sorted(by_address.items()):
        plain = [bound for bound in servers if bound.is_http]
        if plain:  # the protocol of a port is that of the first; plain text and TLS do not share one
            chains = [{"filters": [_manager(world, node, plain[0].route_name, filters)]}]
        else:
            chains = [
                chain
                for bound in servers
                for chain in _stream_chains(world, node, bound, filters, network_filters(world, policies))
            ]
        if chains:
            yield {
                "name": f"{address}_{port}",
                "address": {"socket_address": {"address": address, "port_value": port}},
                "traffic_direction": "OUTBOUND",
                "filter_chains": chains,
                "listener_filters": [] if plain else [extension(*TLS_INSPECTOR)],
            }


def _manager(world: World, node: ProxyNode, route_name: str, filters: list[Tree]) -> Tree:
    return http_manager(
        world,
        f"outbound_{route_name};",
        rds(route_name),
        filters,
        server_name="istio-envoy",
        use_remote_address={"value": True},
        xff_num_trusted_hops=node.trusted_proxies,
        forward_client_cert_details="SANITIZE_SET",
        set_current_client_cert_details={"subject": {"value": True}, "cert": True, "dns": True, "uri": True},
    )


def _stream_chains(
    world: World, node: ProxyNode, bound: _Bound, filters: list[Tree], network: list[Tree]
) -> Iterator[Tree]:
    server = bound.server
    if bound.terminates and server.tls is not None:
        yield {
            "filter_chain_match": {"server_names": _server_names(server)},
            "filters": [_manager(world, node, bound.route_name, filters)],
            "transport_socket": gateway_socket(server.tls),
        }
        return
    binding = Binding(node, server.port.number, frozenset({bound.name}))
    if server.port.protocol.upper() in ("TLS", "HTTPS"):
        if server.tls is not None and server.tls.mode not in ("PASSTHROUGH", "AUTO_PASSTHROUGH"):
            return  # TLS that ends here with something else than HTTP inside: refused rather than passed on unopened
        for rule in attached(world, node.namespace, binding.gateways):
            if any(_common(bound, rule, host) for host in rule.spec.hosts):
                for match, target in tls_matches(world, binding, rule):
                    yield {"filter_chain_match": match, "filters": [*network, target]}
        return
    for rule in attached(world, node.namespace, binding.gateways):
        for route in rule.spec.tcp:
            if not route.match or any(not m.port or m.port == server.port.number for m in route.match):
                yield {"filters": [*network, l4_filter(world, binding, route.route, rule.namespace)]}
                return


def _server_names(server: Server) -> list[str]:
    names = [host.rpartition("/")[2] for host in server.hosts]
    return [] if "*" in names else names


def gateway_routes(world: World, node: ProxyNode) -> Iterator[Tree]:
    """One route configuration for each plain port, and one for each server that ends TLS."""
    by_name: dict[str, list[_Bound]] = {}
    for bound in _bound(world, node):
        if bound.is_http or bound.terminates:
            by_name.setdefault(bound.route_name, []).append(bound)
    for name, servers in sorted(by_name.items()):
        yield route_configuration(name, _virtual_hosts(world, node, servers) or [_nothing(name)])


def unknown_gateway_routes(name: str) -> Tree:
    """The answer for a name that nobody has: 404 for everything."""
    return route_configuration(name, [_nothing(name)])


def _nothing(name: str) -> Tree:
    return {"name": f"blackhole:{name.partition('.')[2] or name}", "domains": ["*"]}


def _virtual_hosts(world: World, node: ProxyNode, servers: list[_Bound]) -> list[Tree]:
    """Routes of every VirtualService that is bound to one of the servers, by host, the oldest rule first."""
    found: dict[str, Tree] = {}
    for bound in servers:
        port = bound.server.port.number
        if bound.redirects:
            for host in bound.server.hosts:
                _virtual_host(found, host.rpartition("/")[2], port)["require_tls"] = "ALL"
        binding = Binding(node, port, frozenset({bound.name}))
        for rule in attached(world, node.namespace, binding.gateways):
            routes = http_routes(world, binding, rule)
            for own in rule.spec.hosts if routes else ():
                for host in _common(bound, rule, own):
                    virtual_host = _virtual_host(found, host, port)
                    if bound.redirects:
                        virtual_host["require_tls"] = "ALL"
                    known = virtual_host["routes"]
                    known += [route for route in routes if route not in known]
    for virtual_host in found.values():
        virtual_host["routes"].sort(key=lambda route: is_catch_all(route["match"]))  # stable: these only go last
    return [found[host] for host in sorted(found)]


def _virtual_host(found: dict[str, Tree], host: str, port: int) -> Tree:
    return found.setdefault(
        host,
        {"name": f"{host}:{port}", "domains": [host], "routes": [], "include_request_attempt_count": True},
    )


def _common(bound: _Bound, rule: Resource[VirtualService], host: str) -> list[str]:
    """The hosts that a VirtualService host and the server have in common; the narrower of each pair."""
    own = hosts.expand(host, rule.namespace)
    result = []
    for entry in bound.server.hosts:
        namespace, slash, wanted = entry.rpartition("/")
        if namespace == ".":
            namespace = bound.gateway.namespace
        if slash and namespace not in ("*", rule.namespace):
            continue
        if hosts.matches(own, wanted):
            result.append(own if hosts.subset_of(own, wanted) else wanted)
    return list(dict.fromkeys(result))
