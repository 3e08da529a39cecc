"""VirtualServices into Envoy routes: binding, destinations, order (istio-semantics 4)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from proxyless.controlplane import hosts
from proxyless.controlplane.manifest.model import (
    ConsistentHashLB,
    Destination,
    HTTPMatchRequest,
    Resource,
    VirtualService,
)
from proxyless.controlplane.registry import Service, exported
from proxyless.controlplane.translate import names
from proxyless.controlplane.translate.build import Tree, struct
from proxyless.controlplane.translate.delegates import http_of
from proxyless.controlplane.translate.destination_rules import policy_for, rule_for
from proxyless.controlplane.translate.matches import applies, is_catch_all, route_match
from proxyless.controlplane.translate.node import ProxyNode
from proxyless.controlplane.translate.route_actions import Resolve, apply_action
from proxyless.controlplane.translate.world import World

__all__ = [
    "MESH",
    "Binding",
    "ByHost",
    "attached",
    "by_host",
    "destination_cluster",
    "gateway_name",
    "hash_of",
    "http_routes",
]

MESH = "mesh"


@dataclass(frozen=True, slots=True)
class Binding:
    """For whom routes are made: the node, the port, and the gateway names it goes by (``mesh`` for a sidecar)."""

    node: ProxyNode
    port: int
    gateways: frozenset[str]


def gateway_name(name: str, namespace: str) -> str:
    """``<namespace>/<name>`` of a gateway reference in a resource of `namespace`; ``mesh`` stays."""
    if name == MESH:
        return MESH
    owner, slash, rest = name.partition("/")
    if slash:
        return f"{namespace}/{rest}" if owner == "." else name
    parts = name.split(".")
    if len(parts) > 2 and parts[2] == "svc":  # an old way of writing it
        return f"{parts[1]}/{parts[0]}"
    return f"{namespace}/{name}"


def attached(world: World, namespace: str, gateways: frozenset[str]) -> list[Resource[VirtualService]]:
    """The VirtualServices that a client of this namespace sees and that are bound to one of these gateways."""
    return world.remember(("attached", namespace, gateways), lambda: _attached(world, namespace, gateways))


def _attached(world: World, namespace: str, gateways: frozenset[str]) -> list[Resource[VirtualService]]:
    default = tuple(world.mesh.default_virtual_service_export_to)
    found = []
    for rule in world.virtual_services:
        bound = {gateway_name(name, rule.namespace) for name in rule.spec.gateways or (MESH,)}
        visible = exported(rule.spec.export_to or default, rule.namespace, namespace)
        if rule.spec.hosts and visible and not gateways.isdisjoint(bound):
            found.append(rule)
    return found


def http_routes(world: World, binding: Binding, rule: Resource[VirtualService]) -> list[Tree]:
    """The routes of one VirtualService, up to the first that takes everything."""
    labels = binding.node.label_map
    routes: list[Tree] = []
    for http, namespace in http_of(world, rule):
        for match in http.match or (None,):
            if match is not None and not _applies(match, binding, labels, rule.namespace):
                continue
            route: Tree = {"match": route_match(match), "metadata": _origin(rule)}
            if http.name:
                route["name"] = http.name
            apply_action(
                route,
                http,
                binding.port,
                _resolver(world, binding, namespace),
                world.mesh.default_http_retry_policy,
            )
            routes.append(route)
            if is_catch_all(route["match"]):
                return routes
    return routes


def _resolver(world: World, binding: Binding, namespace: str) -> Resolve:
    return lambda destination: (
        destination_cluster(world, binding, destination, namespace),
        hash_of(world, binding, destination, namespace),
    )


def _applies(match: HTTPMatchRequest, binding: Binding, labels: Mapping[str, str], namespace: str) -> bool:
    own = frozenset(name for name in match.gateways if gateway_name(name, namespace) in binding.gateways)
    return applies(match, binding.port, labels, binding.node.namespace, own)


def destination_cluster(world: World, binding: Binding, destination: Destination, namespace: str) -> str:
    """Name of the cluster; it may not exist, and a request to it is then answered 503 with flag NC."""
    host = hosts.expand(destination.host, namespace)
    port = _port(world.registry.visible(binding.node.namespace).get(host), binding, destination)
    return names.outbound_cluster(port, destination.subset, host)


def _port(service: Service | None, binding: Binding, destination: Destination) -> int:
    if destination.port is not None:
        return destination.port.number
    if binding.node.is_gateway and service is not None and len(service.ports) == 1:
        return service.ports[0].number
    return binding.port


def hash_of(world: World, binding: Binding, destination: Destination, namespace: str) -> ConsistentHashLB | None:
    """By what the destination's load balancer hashes, if it does."""
    host = hosts.expand(destination.host, namespace)
    service = world.registry.visible(binding.node.namespace).get(host)
    if service is None:
        return None
    rule = rule_for(world, binding.node, service)
    subset = next((s for s in rule.subsets if s.name == destination.subset), None) if rule else None
    settings = policy_for(world, rule, _port(service, binding, destination), subset).load_balancer
    return settings.consistent_hash if settings else None


def _origin(rule: Resource[VirtualService]) -> Tree:
    path = names.resource_path("VirtualService", rule.namespace, rule.name)
    return {"filter_metadata": {"istio": struct({"config": path})}}


class ByHost:
    """The oldest of several VirtualServices for each host, and which of them covers a service."""

    def __init__(self, rules: Iterable[Resource[VirtualService]]) -> None:
        self.rules: dict[str, Resource[VirtualService]] = {}
        for rule in rules:
            for host in rule.spec.hosts:
                self.rules.setdefault(hosts.expand(host, rule.namespace), rule)
        self._hosts = hosts.HostSet(self.rules)

    def covering(self, host: str) -> Resource[VirtualService] | None:
        """The rule for the host itself, else for the longest wildcard."""
        found = self._hosts.covering(host)
        return None if found is None else self.rules[found]


def by_host(world: World, namespace: str, gateways: frozenset[str]) -> ByHost:
    return world.remember(("by_host", namespace, gateways), lambda: ByHost(attached(world, namespace, gateways)))
