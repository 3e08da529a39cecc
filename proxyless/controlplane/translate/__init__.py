"""Istio configuration into Envoy resources, as istiod does for a sidecar or a gateway.

Pure and deterministic: the same `World` and node give the same bytes. One module for each concern; every message is made by
`proxyless.protos`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from proxyless.controlplane.translate.build import Tree, serialized
from proxyless.controlplane.translate.clusters import (
    fixed_clusters,
    inbound_clusters,
    load_assignments,
    outbound_clusters,
)
from proxyless.controlplane.translate.gateways import gateway_listeners, gateway_routes, unknown_gateway_routes
from proxyless.controlplane.translate.inbound import virtual_inbound
from proxyless.controlplane.translate.inbound_ports import effective_labels, inbound_ports
from proxyless.controlplane.translate.node import InvalidNodeError, ProxyNode, parse_node
from proxyless.controlplane.translate.outbound import outbound_listeners, virtual_outbound
from proxyless.controlplane.translate.routes import sidecar_routes, unknown_routes
from proxyless.controlplane.translate.world import World
from proxyless.protos import CLUSTER, ENDPOINT, LISTENER, ROUTE, type_name

__all__ = ["InvalidNodeError", "ProxyNode", "World", "missing_resource", "parse_node", "translate"]

Resources = Mapping[str, Mapping[str, bytes]]


def translate(world: World, node: ProxyNode) -> Resources:
    """Everything the node may see: type URL to name to serialised resource.

    The whole set, whatever the client asks for; EDS and RDS clients pick by name.
    """
    node = replace(node, labels=tuple(sorted(effective_labels(world, node).items())))
    listeners: list[Tree]
    if node.is_gateway:
        listeners, routes = list(gateway_listeners(world, node)), gateway_routes(world, node)
        own_clusters: Iterable[Tree] = ()
    else:
        ports = inbound_ports(world, node)
        listeners = [*outbound_listeners(world, node), virtual_inbound(world, node, ports), virtual_outbound(world)]
        routes, own_clusters = sidecar_routes(world, node), inbound_clusters(world, ports)
    clusters = [*outbound_clusters(world, node), *own_clusters, *fixed_clusters(world, node)]
    return {
        LISTENER: _serialized(LISTENER, listeners),
        ROUTE: _serialized(ROUTE, routes),
        CLUSTER: _serialized(CLUSTER, clusters),
        ENDPOINT: _serialized(ENDPOINT, load_assignments(world, node), key="cluster_name"),
    }


def missing_resource(world: World, node: ProxyNode, type_url: str, name: str) -> bytes:
    """The answer for an EDS or RDS name that does not exist: empty, so that the client need not wait."""
    if type_url == ENDPOINT:
        return serialized(type_name(ENDPOINT), {"cluster_name": name})
    routes = unknown_gateway_routes(name) if node.is_gateway else unknown_routes(world, name)
    return serialized(type_name(ROUTE), routes)


def _serialized(type_url: str, trees: Iterable[Tree], key: str = "name") -> dict[str, bytes]:
    kind = type_name(type_url)
    return {tree[key]: serialized(kind, tree) for tree in sorted(trees, key=lambda tree: str(tree[key]))}
