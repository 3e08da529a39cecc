"""Listeners for what a sidecar's application calls: one for each port, chosen by where the call was headed."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from dataclasses import dataclass, field

from proxyless.controlplane.registry import Port, Service
from proxyless.controlplane.translate import names
from proxyless.controlplane.translate.build import Tree, duration, extension
from proxyless.controlplane.translate.http_manager import http_manager, rds, tcp_proxy
from proxyless.controlplane.translate.node import ProxyNode
from proxyless.controlplane.translate.tcp_routes import tcp_targets, tls_chains
from proxyless.controlplane.translate.world import World

__all__ = ["HTTP_INSPECTOR", "TLS_INSPECTOR", "outbound_listeners", "virtual_outbound"]

ANY = "0.0.0.0"  # noqa: S104 - a name in Envoy's configuration, nothing is bound here

HTTP_INSPECTOR = (
    "envoy.filters.listener.http_inspector",
    "envoy.extensions.filters.listener.http_inspector.v3.HttpInspector",
)
TLS_INSPECTOR = (
    "envoy.filters.listener.tls_inspector",
    "envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector",
)


@dataclass(slots=True)
class _Listener:
    """One address and port while its filter chains are being gathered."""

    http: bool = False
    tls: bool = False
    catch_all: bool = False
    chains: list[Tree] = field(default_factory=list)


def outbound_listeners(world: World, node: ProxyNode) -> Iterator[Tree]:
    """HTTP ports have one listener for all services, which are told apart by Host; TLS by server name; plain TCP by address."""
    listeners: dict[tuple[str, int], _Listener] = {}
    for service in world.registry.visible(node.namespace).values():
        for port in service.ports:
            if port.is_http:
                _add_http(world, listeners.setdefault((ANY, port.number), _Listener()), port.number)
            elif port.protocol != "UDP":
                _add_stream(world, node, listeners, service, port)
    for (address, number), listener in sorted(listeners.items(), key=lambda item: item[0]):
        if listener.chains:
            yield _listener(world, address, number, listener)


def _add_http(world: World, listener: _Listener, port: int) -> None:
    if listener.http:
        return
    listener.http = True
    manager = http_manager(world, f"outbound_{ANY}_{port};", rds(str(port)), [], use_remote_address={"value": False})
    match = {"transport_protocol": "raw_buffer", "application_protocols": ["http/1.1", "h2c"]}
    listener.chains.insert(0, {"filter_chain_match": match, "filters": [manager]})


def _add_stream(
    world: World, node: ProxyNode, listeners: dict[tuple[str, int], _Listener], service: Service, port: Port
) -> None:
    """A port that is TLS of the application's own, or plain TCP."""
    single = [address for address in service.addresses if _is_single(address)]
    ranges = [address for address in service.addresses if not _is_single(address)]
    for address in single or [ANY]:
        listener = listeners.setdefault((address, port.number), _Listener())
        if port.is_tls:
            chains = tls_chains(world, node, service, port, own_address=address != ANY)
            listener.tls = listener.tls or any(chain["filter_chain_match"].get("server_names") for chain in chains)
        else:
            target = tcp_targets(world, node, service, port)
            chains = [{"filter_chain_match": {"prefix_ranges": [_range(a) for a in ranges]}, "filters": [target]}]
        for chain in chains:
            unconditional = not any(chain["filter_chain_match"].values())
            if unconditional and (listener.catch_all or listener.http):
                continue  # two services that nothing tells apart: the first by host has the port
            listener.catch_all = listener.catch_all or unconditional
            if chain["filter_chain_match"] not in (known["filter_chain_match"] for known in listener.chains):
                listener.chains.append(chain)


def _is_single(address: str) -> bool:
    return "/" not in address


def _range(address: str) -> Tree:
    network = ipaddress.ip_network(address, strict=False)
    return {"address_prefix": str(network.network_address), "prefix_len": {"value": network.prefixlen}}


def _listener(world: World, address: str, port: int, listener: _Listener) -> Tree:
    inspectors = [extension(*TLS_INSPECTOR)] if listener.tls else []
    inspectors += [extension(*HTTP_INSPECTOR)] if listener.http else []
    result: Tree = {
        "name": f"{address}_{port}",
        "address": {"socket_address": {"address": address, "port_value": port}},
        "traffic_direction": "OUTBOUND",
        "bind_to_port": {"value": False},
        "filter_chains": listener.chains,
        "listener_filters": inspectors,
        "listener_filters_timeout": duration(0),
        "continue_on_listener_filters_timeout": True,
    }
    if not listener.catch_all:
        result["default_filter_chain"] = {
            "name": "PassthroughFilterChain",
            "filter_chain_match": {},
            "filters": [tcp_proxy(unknown_cluster(world))],
        }
    return result


def unknown_cluster(world: World) -> str:
    """Where connections go that nothing matches."""
    return names.BLACK_HOLE if world.mesh.registry_only else names.PASSTHROUGH


def virtual_outbound(world: World) -> Tree:
    """The listener that takes every connection and hands it to the one for its destination; what is left passes."""
    return {
        "name": "virtualOutbound",
        "address": {"socket_address": {"address": ANY, "port_value": 15001}},
        "traffic_direction": "OUTBOUND",
        "use_original_dst": {"value": True},
        "filter_chains": [
            {
                "name": "virtualOutbound-blackhole",
                "filter_chain_match": {"destination_port": {"value": 15001}},
                "filters": [tcp_proxy(names.BLACK_HOLE)],
            },
            {"name": "virtualOutbound-catchall-tcp", "filters": [tcp_proxy(unknown_cluster(world))]},
        ],
    }
