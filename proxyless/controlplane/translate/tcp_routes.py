"""TCP and TLS routes of VirtualServices (istio-semantics 4.5)."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence

from proxyless.controlplane.manifest.model import (
    L4MatchAttributes,
    Resource,
    RouteDestination,
    TLSMatchAttributes,
    VirtualService,
)
from proxyless.controlplane.registry import Port, Service
from proxyless.controlplane.translate import names
from proxyless.controlplane.translate.build import Tree, extension
from proxyless.controlplane.translate.http_manager import tcp_proxy
from proxyless.controlplane.translate.node import ProxyNode
from proxyless.controlplane.translate.virtual_services import (
    MESH,
    Binding,
    by_host,
    destination_cluster,
    gateway_name,
)
from proxyless.controlplane.translate.world import World

__all__ = ["l4_filter", "tcp_targets", "tls_chains", "tls_matches"]


def tcp_targets(world: World, node: ProxyNode, service: Service, port: Port) -> Tree:
    """The filter for plain TCP to a service: the first route that fits, else the service itself."""
    binding = Binding(node, port.number, frozenset({MESH}))
    rule = _rule_of(world, binding, service)
    for route in rule.spec.tcp if rule else ():
        if rule and (not route.match or any(_applies(match, binding, rule.namespace) for match in route.match)):
            return l4_filter(world, binding, route.route, rule.namespace)
    return tcp_proxy(names.outbound_cluster(port.number, "", service.host))


def tls_chains(world: World, node: ProxyNode, service: Service, port: Port, own_address: bool) -> list[Tree]:
    """Filter chains for TLS that passes through, chosen by server name. A service with an address of its own needs
    none unless a VirtualService has TLS routes for it."""
    binding = Binding(node, port.number, frozenset({MESH}))
    rule = _rule_of(world, binding, service)
    chains = [
        {"filter_chain_match": match, "filters": [target]}
        for match, target in (tls_matches(world, binding, rule) if rule else [])
    ]
    if chains:
        return chains
    target = tcp_proxy(names.outbound_cluster(port.number, "", service.host))
    return [{"filter_chain_match": {} if own_address else {"server_names": [service.host]}, "filters": [target]}]


def tls_matches(world: World, binding: Binding, rule: Resource[VirtualService]) -> list[tuple[Tree, Tree]]:
    """(filter chain match, filter) of the TLS routes of a rule that hold for this client and port."""
    found: list[tuple[Tree, Tree]] = []
    for route in rule.spec.tls:
        for match in route.match:
            if _applies(match, binding, rule.namespace):
                target = l4_filter(world, binding, route.route, rule.namespace)
                found.append((_chain_match(match), target))
    return found


def _chain_match(match: TLSMatchAttributes) -> Tree:
    result: Tree = {"server_names": [name for name in match.sni_hosts if name != "*"]}
    if match.destination_subnets:
        networks = [ipaddress.ip_network(subnet, strict=False) for subnet in match.destination_subnets]
        result["prefix_ranges"] = [
            {"address_prefix": str(network.network_address), "prefix_len": {"value": network.prefixlen}}
            for network in networks
        ]
    return result


def _rule_of(world: World, binding: Binding, service: Service) -> Resource[VirtualService] | None:
    return by_host(world, binding.node.namespace, binding.gateways).covering(service.host)


def _applies(match: L4MatchAttributes | TLSMatchAttributes, binding: Binding, namespace: str) -> bool:
    if match.port and match.port != binding.port:
        return False
    if match.gateways:
        return any(gateway_name(name, namespace) in binding.gateways for name in match.gateways)
    if not match.source_labels.items() <= binding.node.label_map.items():
        return False
    return not match.source_namespace or match.source_namespace == binding.node.namespace


def l4_filter(world: World, binding: Binding, targets: Sequence[RouteDestination], namespace: str) -> Tree:
    """A TCP proxy to one destination, or to several by weight."""
    clusters = [(destination_cluster(world, binding, t.destination, namespace), t.weight or 0) for t in targets]
    if len(clusters) == 1:
        return tcp_proxy(clusters[0][0])
    weighted = [{"name": cluster, "weight": weight} for cluster, weight in clusters if weight]
    return extension(
        "envoy.filters.network.tcp_proxy",
        "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
        {"stat_prefix": clusters[0][0], "weighted_clusters": {"clusters": weighted}},
    )
