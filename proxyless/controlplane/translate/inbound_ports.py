"""Which ports a node serves, and with what labels it is known."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from proxyless.controlplane import hosts
from proxyless.controlplane.registry import Port, Service
from proxyless.controlplane.translate.node import ProxyNode
from proxyless.controlplane.translate.world import World

__all__ = ["InboundPort", "effective_labels", "inbound_ports"]


@dataclass(frozen=True, slots=True)
class InboundPort:
    """A port that the workload listens on (`target`), as part of a service."""

    service: Service
    port: Port
    target: int


def inbound_ports(world: World, node: ProxyNode) -> tuple[InboundPort, ...]:
    """The node's own ports by number; of several services on one the first by host counts.

    A workload that registers itself names its service and port, which the operator's list must allow; any other is
    recognised by its addresses.
    """
    found: dict[int, InboundPort] = {}
    if node.service:
        own = _registered(world, node)
        return () if own is None else (own,)
    for service, endpoint in world.registry.at(node.ips):
        for port in service.ports:
            if endpoint.serves is None or port.number in endpoint.serves:
                target = endpoint.port_of(port)
                found.setdefault(target, InboundPort(service, port, target))
    return tuple(found[target] for target in sorted(found))


def _registered(world: World, node: ProxyNode) -> InboundPort | None:
    host = hosts.expand(node.service, node.namespace)
    if (node.namespace, node.service_account) not in world.registry.identities_of(host):
        return None
    service = world.registry.visible(node.namespace).get(host) or world.registry.lookup(host)
    port = service.port_for(node.port) if service else None
    return InboundPort(service, port, node.port) if service and port and node.port else None


def effective_labels(world: World, node: ProxyNode) -> Mapping[str, str]:
    """What selectors compare with: the labels of the declared workload if there are any, else the node's own; the
    operator's list has the last word."""
    labels: dict[str, str] = {}
    if not node.service:
        for _, endpoint in world.registry.at(node.ips):
            labels.update(endpoint.labels)
    return {**(labels or node.label_map), **world.registry.grant_labels(node.namespace, node.service_account)}
