"""Route configurations of a sidecar: one for each port on which somebody speaks HTTP (istio-semantics 4.6)."""

from __future__ import annotations

from collections.abc import Iterator

from proxyless.controlplane import hosts
from proxyless.controlplane.manifest.model import Destination, PortSelector, Resource, VirtualService
from proxyless.controlplane.registry import Service
from proxyless.controlplane.translate import names
from proxyless.controlplane.translate.build import Tree, duration
from proxyless.controlplane.translate.node import ProxyNode
from proxyless.controlplane.translate.retries import retry_policy
from proxyless.controlplane.translate.route_actions import forward
from proxyless.controlplane.translate.virtual_services import MESH, Binding, by_host, hash_of, http_routes
from proxyless.controlplane.translate.world import World

__all__ = ["http_ports", "route_configuration", "sidecar_routes", "unknown_routes"]

HOSTLESS_PORT = 80  # where VirtualService hosts live that are no service


def http_ports(world: World, namespace: str) -> list[int]:
    """Ports with at least one HTTP service that a client of this namespace may call."""
    services = world.registry.visible(namespace).values()
    return sorted({port.number for service in services for port in service.ports if port.is_http})


def sidecar_routes(world: World, node: ProxyNode) -> Iterator[Tree]:
    for port in http_ports(world, node.namespace):
        yield route_configuration(str(port), [*_virtual_hosts(world, node, port), _everything_else(world)])


def unknown_routes(world: World, name: str) -> Tree:
    """The answer for a name that nobody has: only what happens to unknown hosts."""
    return route_configuration(name, [_everything_else(world)])


def route_configuration(name: str, virtual_hosts: list[Tree]) -> Tree:
    return {
        "name": name,
        "virtual_hosts": virtual_hosts,
        "validate_clusters": {"value": False},
        "ignore_port_in_host_matching": True,
        "max_direct_response_body_size_bytes": {"value": 1048576},
    }


def _virtual_hosts(world: World, node: ProxyNode, port: int) -> list[Tree]:
    """Sorted by name; a domain belongs to the first that has it."""
    services = {
        host: service
        for host, service in world.registry.visible(node.namespace).items()
        if (own := service.port(port)) is not None and own.is_http
    }
    mesh = frozenset({MESH})
    chosen = by_host(world, node.namespace, mesh)
    binding = Binding(node, port, mesh)
    made: dict[int, list[Tree]] = {}
    found: dict[str, Tree] = {}

    def routes(rule: Resource[VirtualService]) -> list[Tree]:
        if id(rule) not in made:
            made[id(rule)] = http_routes(world, binding, rule)
        return made[id(rule)]

    for host, service in services.items():
        rule = chosen.covering(host)
        own_routes = routes(rule) if rule is not None else []
        domains = names.domains(service, node.dns_domain)
        found[host] = _virtual_host(f"{host}:{port}", domains, own_routes or [_default_route(world, binding, service)])
    for host, rule in chosen.rules.items():
        if host not in found and _hostless_here(host, rule, services, port) and routes(rule):
            found[host] = _virtual_host(f"{host}:{port}", [host], routes(rule))
    return _without_duplicates(found[host] for host in sorted(found))


def _hostless_here(host: str, rule: Resource[VirtualService], services: dict[str, Service], port: int) -> bool:
    """Whether a VirtualService host that is no service on this port has a virtual host on it: on the ports of the
    services that the rule is about, and on port 80 when it is about none."""
    if hosts.is_wildcard(host) and _covers_any(host, services):
        return False  # its services have virtual hosts of their own
    own = (hosts.expand(name, rule.namespace) for name in rule.spec.hosts)
    return port == HOSTLESS_PORT or any(_covers_any(name, services) for name in own)


def _covers_any(host: str, services: dict[str, Service]) -> bool:
    if hosts.is_wildcard(host):
        return any(hosts.subset_of(service, host) for service in services)
    return host in services


def _virtual_host(name: str, domains: list[str], routes: list[Tree]) -> Tree:
    return {"name": name, "domains": domains, "routes": routes, "include_request_attempt_count": True}


def _default_route(world: World, binding: Binding, service: Service) -> Tree:
    cluster = names.outbound_cluster(binding.port, "", service.host)
    target = Destination(host=service.host, port=PortSelector(number=binding.port))
    return {
        "name": "default",
        "match": {"prefix": "/"},
        "route": forward(
            cluster,
            retry_policy(None, world.mesh.default_http_retry_policy),
            hash_of(world, binding, target, service.namespace),
        ),
    }


def _everything_else(world: World) -> Tree:
    """Unknown hosts: forwarded to where they were headed, or 502 under REGISTRY_ONLY."""
    if world.mesh.registry_only:
        route: Tree = {"name": "block_all", "match": {"prefix": "/"}, "direct_response": {"status": 502}}
        return _virtual_host("block_all", ["*"], [route])
    action: Tree = {"cluster": names.PASSTHROUGH, "timeout": duration(0), "max_grpc_timeout": duration(0)}
    return _virtual_host("allow_any", ["*"], [{"name": "allow_any", "match": {"prefix": "/"}, "route": action}])


def _without_duplicates(virtual_hosts: Iterator[Tree]) -> list[Tree]:
    """Envoy refuses a configuration in which two virtual hosts have one domain."""
    taken: set[str] = {"*"}
    result = []
    for virtual_host in virtual_hosts:
        own = [domain for domain in dict.fromkeys(virtual_host["domains"]) if domain not in taken]
        taken.update(own)
        if own:
            result.append({**virtual_host, "domains": own})
    return result
